import ast

from conftest import check, in_range

ID = "guard-tensor-repr"

# Prints, for each case, how often something of the user's was printed while torch compiled, and the lines of the guards
# that made it compile again. Addresses are taken out.
PROGRAM = """
import enum, logging, math, re
import torch
import torch._dynamo
import torch._dynamo.guards

shown, said = [], []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
torch._logging.set_logs(recompiles=True)
logging.getLogger("torch._dynamo.guards.__recompiles").addHandler(handler)

class Weight(torch.nn.Parameter):
    def __repr__(self, **options):
        shown.append(self)
        return super().__repr__(**options)

class Refuses(torch.nn.Parameter):
    def __repr__(self, **options):
        shown.append(self)
        raise RuntimeError("not now")

def report(name, *rest):
    lines = [line for message in said for line in message.splitlines() if "type=" in line]
    lines = [re.sub(r"\\b(0x[0-9a-f]+|[0-9]{6,})\\b", "ADDRESS", line).partition("  #")[0].strip() for line in lines]
    print((name, len(shown), lines, *rest))

def attempt(name, function, *calls, backend="eager"):
    torch._dynamo.reset()
    graphs = []
    def count(gm, inputs):
        graphs.append(gm)
        return torch._dynamo.lookup_backend(backend)(gm, inputs)
    compiled = torch.compile(function, backend=count)
    expected = [function(*arguments) for arguments in calls]
    shown.clear(), said.clear()
    for arguments, one in zip(calls, expected):
        assert torch.equal(compiled(*arguments), one), name
    report(name, len(graphs))

def step(optimizer_class, count, weight_class=Weight, backend="eager", rounds=3, **options):
    def train(compiled):
        torch.manual_seed(0)
        weights = [weight_class(torch.randn(3, dtype=torch.float64)) for _ in range(count)]
        optimizer = optimizer_class(weights, foreach=True, **options)
        run = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        for _ in range(rounds):
            for weight in weights:
                weight.grad = torch.randn_like(weight.data)
            run()
        return weights, optimizer, run
    torch._dynamo.reset()
    expected = train(compiled=False)[0]
    shown.clear(), said.clear()
    weights, optimizer, run = train(compiled=True)
    report(f"{optimizer_class.__name__}, {count} of {weight_class.__name__}, {backend}")
    # Compiled, AdamW counts its steps in float32.
    assert all(torch.allclose(*pair, rtol=1e-5) for pair in zip(weights, expected))
    # Another weight in the place of the first: the guard still tells them apart.
    optimizer.param_groups[0]["params"][0] = weights[0] = weight_class(torch.ones(3, dtype=torch.float64))
    weights[0].grad = torch.ones(3, dtype=torch.float64)
    run()
    assert (weights[0] != 1).all()

for count in (2, 5, 8):
    step(torch.optim.SGD, count, lr=0.1)
    step(torch.optim.AdamW, count)
step(torch.optim.AdamW, 2, backend="aot_eager")
step(torch.optim.SGD, 2, Refuses, lr=0.1)

x = torch.ones(2)
attempt("id of a tensor", lambda x, y: x + (id(y) > 0), (x, Weight(x)), (x, Weight(x)))
attempt("built-in function", lambda x, f: f(x), (x, torch.sin), (x, torch.cos), (x, torch.sin))
attempt("function", lambda x, f: f(x), (x, lambda x: x + 1), (x, lambda x: x + 2))
attempt("module", lambda x, m: x + m.pi if m is math else x, (x, math), (x, re))
attempt("class", lambda x, c: x + len(c.__name__), (x, int), (x, float), backend="aot_eager")
attempt("layer", lambda x, m: m(x), (x, torch.nn.ReLU()), (x, torch.nn.Tanh()))
attempt("enum", lambda x, m: x + m.value, (x, enum.Enum("E", "A B").A), (x, enum.Enum("E", "A B").B))
print(("own repr", 0, [], "repr" in vars(torch._dynamo.guards)))
# Who prints a tensor of his own sees it.
before = len(shown)
assert repr(Weight(x)) and len(shown) == before + 1
"""


def outcomes(process):
    rows = [ast.literal_eval(line) for line in check(process).splitlines() if line[0] == "("]
    return {name: tuple(rest) for name, *rest in rows}


def test_nothing_is_printed_while_guards_are_built_and_they_check_what_they_did(python):
    patched, unpatched = outcomes(python(PROGRAM)), outcomes(python(PROGRAM, TORCH_FORWARDFIX="0"))
    assert patched.pop("own repr")[-1] is in_range(ID)
    assert unpatched.pop("own repr")[-1] is False
    assert {name: shown for name, (shown, *_) in patched.items() if shown} == {}
    assert {name: rest for name, (_, _, *rest) in patched.items()} == {
        name: rest for name, (_, _, *rest) in unpatched.items()
    }
    assert patched["function"][2] == patched["built-in function"][2] == 2
    assert "type=<class '__main__.Weight'>" in patched["id of a tensor"][1][0]
    for name in ("function", "built-in function", "module", "class", "layer"):
        assert patched[name] == unpatched[name]
    grows = [unpatched[f"SGD, {count} of Weight, eager"][0] for count in (2, 5, 8)]
    if in_range(ID):
        assert 0 < grows[0] < grows[1] < grows[2]
        assert "file " in patched["function"][1][0]
    else:
        assert patched == unpatched


LATE = """
import os
import torch
import torch._dynamo.guards as guards
import torch_forwardfix

assert "repr" not in vars(guards)
del os.environ["TORCH_FORWARDFIX"]
torch_forwardfix.activate()
once = vars(guards).get("repr")
torch_forwardfix.activate()
print(vars(guards).get("repr") is once, once is not None)
import importlib
importlib.reload(guards)
states = {fix.id: fix.state for fix in torch_forwardfix.status()}
assert (states["guard-tensor-repr"] == "applied") == (once is not None), states
assert vars(guards).get("repr") is once

class Loud:
    def __repr__(self):
        raise AssertionError("printed")

if once:
    assert once(Loud()) == "<class '__main__.Loud'>"
    assert once(torch.ones(2)) == "<class 'torch.Tensor'>"
    assert once(Loud().__repr__) == "<class 'method'>"  # its repr has that of the object
    assert [once(each) for each in (Loud, len, os)] == [repr(each) for each in (Loud, len, os)]
"""


def test_late_and_twice_is_once(python):
    assert check(python(LATE, TORCH_FORWARDFIX="0")) == f"True {in_range(ID)}\n"
