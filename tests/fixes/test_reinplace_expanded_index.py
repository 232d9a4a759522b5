import json

from conftest import check, in_range

ID = "reinplace-expanded-index"

WRITES = """
import json, sys
import torch

# Each operation gets a base of its own: one that is looked at afterwards is not written to.
EXPANDED = {
    "index_add": lambda base, index, source: base.index_add(0, index, source),
    "index_copy": lambda base, index, source: base.index_copy(0, index, source),
    "index_put": lambda base, index, source: base.index_put((index,), source),
    "accumulate": lambda base, index, source: base.index_put((index,), source, accumulate=True),
    "unsafe": lambda base, index, source: torch.ops.aten._unsafe_index_put(base, [index], source),
    "diagonal_scatter": lambda base, index, source: torch.diagonal_scatter(base, source[0]),
    "mutated copy": lambda base, index, source: mutated(base, index, source),
}
# Without the fix, writes to some expanded columns do not even compile.
KINDS = ("rows", "columns") if len(sys.argv) > 1 else ("rows",)
NEIGHBOURS = {
    "scatter": lambda base, index, source: base.scatter(0, index[:, None].expand(source.shape), source),
    "used afterwards": lambda base, index, source: base.index_put((index,), source) + base,
}

def mutated(base, index, source):
    base = base.contiguous()
    base[index] = source
    return base

def write(x, index, source):
    size = source.shape[1]
    results = []
    for number, operation in enumerate((*EXPANDED.values(), *NEIGHBOURS.values()), 2):
        bases = ((x[:1] * number).expand(size, size), (x[:, :1] * number * 100).expand(size, size))
        results += [operation(base, index, source) for _, base in zip(KINDS, bases)]
    results.append((x * 3).index_put((index,), source))
    results.append(torch.diagonal_scatter(x * 4, source[0]))
    return results

def wrong(compiled, size, dtype, seed):
    torch.manual_seed(seed)
    x = torch.randint(-9, 9, (size, size)).to(dtype)
    index, source = torch.randperm(size)[:3], torch.randint(-9, 9, (3, size)).to(dtype)
    names = [f"{name} {kind}" for name in (*EXPANDED, *NEIGHBOURS) for kind in KINDS]
    names += ["index_put", "diagonal_scatter"]
    pairs = zip(names, compiled(x, index, source), write(x, index, source), strict=True)
    return [name for name, ours, eager in pairs if not torch.equal(ours, eager)]

static = torch.compile(write)
print(json.dumps([wrong(static, 5, torch.float64, 0), wrong(static, 5, torch.float64, 1)]))
if len(sys.argv) > 1:
    torch._dynamo.reset()
    dynamic = torch.compile(write, dynamic=True)
    print(json.dumps([wrong(dynamic, 4, torch.int64, 2), wrong(dynamic, 6, torch.int64, 3)]))
    print(json.dumps(wrong(torch.compile(write, backend="aot_eager"), 5, torch.bfloat16, 4)))
"""


def test_writes_to_expanded_tensors_are_those_of_eager_from_cold_and_warm_caches(python):
    for attempt in ("cold", "warm"):
        static, dynamic, aot_eager = map(json.loads, check(python(WRITES, "all")).splitlines())
        assert static == dynamic == [[], []], attempt
        assert aot_eager == [], attempt


def test_writes_to_expanded_tensors_are_wrong_without_the_fix(python):
    first, second = json.loads(check(python(WRITES, TORCH_FORWARDFIX="0")))
    assert first == second
    if in_range(ID):
        names = ("index_add", "index_copy", "index_put", "accumulate", "unsafe")
        assert {f"{name} rows" for name in names} == set(first) - {"diagonal_scatter rows"}
    else:
        assert first == []


CODE = """
import torch
import torch._inductor.fx_passes.reinplace as reinplace
from torch._inductor.utils import run_and_get_code
from torch.func import grad, vmap

def picked(x):
    stacked = torch.stack([x[..., k] for k in range(4)], dim=-1)
    return (torch.index_select(stacked, -1, torch.tensor([0, 2])) * torch.tensor([1.0, -1.0])).sum()

def gradient(x):
    return vmap(grad(picked))(x)

def neighbours(x, y, index, source):
    x.index_put_((index,), source)
    y.view(-1)[index] = source[0]
    return (y * 3).index_put((index,), source[0]), torch.diagonal_scatter(y * 4, source)

x = torch.arange(16.0).reshape(4, 4)
print(torch.equal(torch.compile(gradient, fullgraph=True, dynamic=True)(x), gradient(x)))
print(hasattr(reinplace.reinplace_inplaceable_ops_core, "__wrapped__"))
print(run_and_get_code(torch.compile(neighbours), x, x.clone(), torch.tensor([0, 2]), torch.ones(4))[1])
"""


def test_per_sample_gradients_are_right_and_other_code_stays_the_same(python):
    # A graph out of a cache has no code to show.
    fresh = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
    right, wrapped, code = check(python(CODE, **fresh)).splitlines()
    was_right, was_wrapped, unpatched_code = check(python(CODE, TORCH_FORWARDFIX="0", **fresh)).splitlines()
    assert (right, was_right) == ("True", str(not in_range(ID)))
    assert (wrapped, was_wrapped) == (str(in_range(ID)), "False")
    assert code == unpatched_code
    assert len(code) > 1000
