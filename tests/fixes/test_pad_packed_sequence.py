import ast

from conftest import check, in_range

ID = "pad-packed-sequence"

# Prints a name and what came of it for each program.
PROGRAM = """
import torch
import torch._dynamo
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence, unpack_sequence
from torch.utils._pytree import tree_leaves

class Model(torch.nn.Module):
    def __init__(self, rnn, **options):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.batch_first = rnn(3, 4, dtype=torch.float64, **options), options.get("batch_first", False)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False)
        packed, _ = self.rnn(packed)
        y, lengths = pad_packed_sequence(packed, self.batch_first)
        return y @ y.mT, lengths

def decode(packed):
    padded, lengths = pad_packed_sequence(packed, batch_first=True)
    return padded @ padded.mT, lengths

def total_length(packed):
    return pad_packed_sequence(packed, padding_value=-1.0, total_length=9)[0].cumsum(0)

def unpack(packed):
    return [x.sum() for x in unpack_sequence(packed)]

def twice(packed):
    return pad_packed_sequence(packed)[0].sum(0) @ pad_packed_sequence(packed, True)[0].sum(1).T

def x_of(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

def packed(seed, dtype=torch.float64, enforce_sorted=False, requires_grad=True):
    lengths = torch.randint(1, 6, (4 + seed,), generator=torch.Generator().manual_seed(seed))
    lengths = lengths.sort(descending=True).values if enforce_sorted else lengths
    x = x_of(seed, 6, len(lengths), 3, dtype=dtype)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    return packed.data.requires_grad_(requires_grad), packed

def attempt(name, function, *calls, backend="aot_eager", **options):
    torch._dynamo.reset()
    try:
        compiled = torch.compile(function, backend=backend, **options)
        for inputs, arguments in calls:
            results = [tree_leaves(f(*arguments)) for f in (compiled, function)]
            leaf = [y for y in results[0] if y.requires_grad]
            gradients = [
                torch.autograd.grad(sum(y.sum() for y in ys if y.requires_grad), inputs) for ys in results if leaf
            ]
            for ours, eager in [results, *([gradients] if gradients else [])]:
                if len(ours) != len(eager) or not all(map(torch.equal, ours, eager)):
                    return print((name, "differs"))
    except Exception as error:
        unallocated = "_pad_packed_sequence" in str(error) and "fake tensor" in str(error)
        return print((name, "unallocated" if unallocated else type(error).__name__))
    print((name, "right"))

def each(**options):
    for seed in range(3):
        x, p = packed(seed, **options)
        yield x, (p,)

for function in (decode, total_length, unpack, twice):
    attempt(function.__name__, function, *each())
attempt("float32", decode, *each(dtype=torch.float32))
attempt("sorted", decode, *each(enforce_sorted=True))
attempt("dynamic", decode, *each(), dynamic=True)
attempt("alone", pad_packed_sequence, *each())
# Without gradients no kernel has to be compiled.
attempt("inductor", decode, *each(requires_grad=False), backend="inductor")
attempt("fullgraph", decode, *each(), fullgraph=True)

lengths = torch.tensor([2, 5, 4])
x = x_of(7, 5, 3, 3).requires_grad_()
attempt("gru", Model(torch.nn.GRU), (x, (x, lengths)))
attempt("lstm", Model(torch.nn.LSTM, batch_first=True, bidirectional=True), (x, (x.transpose(0, 1), lengths)))
attempt("pack_sequence", lambda a, b: pack_sequence([a, b]).data * 2, (x, (x[0], x[1, :2])))
attempt("pad_sequence", lambda a, b: pad_sequence([a, b]) * 2, (x, (x[0], x[1, :2])), fullgraph=True)
"""
REPAIRED = ("decode", "total_length", "unpack", "twice", "float32", "sorted", "dynamic", "alone", "inductor")


def outcomes(process):
    return dict(ast.literal_eval(line) for line in check(process).splitlines())


def test_packed_sequences_are_unpacked_like_in_eager_mode(python):
    patched, unpatched = outcomes(python(PROGRAM)), outcomes(python(PROGRAM, TORCH_FORWARDFIX="0"))
    assert patched == {**dict.fromkeys(patched, "right"), "fullgraph": "Unsupported"}
    if in_range(ID):
        broken = {name for name, outcome in unpatched.items() if outcome == "unallocated"}
        assert broken >= {*REPAIRED, "fullgraph"}
        assert {name: unpatched[name] for name in unpatched if name not in broken} == {
            name: patched[name] for name in patched if name not in broken
        }
    else:
        assert patched == unpatched


def test_one_rule_is_added_in_range_alone(python):
    program = """
    import torch, torch._dynamo
    from torch._dynamo import trace_rules
    import torch_forwardfix
    torch_forwardfix.activate()
    rules = [key for rules in trace_rules.torch_name_rule_map for key in rules]
    print(rules.count("torch.nn.utils.rnn.pad_packed_sequence"), len(rules))
    print({each.id: each.state for each in torch_forwardfix.status()}["pad-packed-sequence"])
    """
    count, state = check(python(program)).splitlines()
    unpatched, off = check(python(program, TORCH_FORWARDFIX="0")).splitlines()
    assert state == ("applied" if in_range(ID) else "not-affected")
    assert off == "disabled"
    rules, unpatched_rules = int(count.split()[1]), int(unpatched.split()[1])
    assert (int(count.split()[0]), rules - unpatched_rules) == (1, in_range(ID))
