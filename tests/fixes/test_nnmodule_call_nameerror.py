import ast

from conftest import check, in_range

ID = "nnmodule-call-nameerror"

# Prints a name and what came of it, for each way to walk through a module.
PROGRAM = """
import torch
import torch._dynamo

torch._dynamo.config.inline_inbuilt_nn_modules = False

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        new = lambda: torch.nn.Linear(3, 3, dtype=torch.float64)
        self.sequential = torch.nn.Sequential(new(), torch.nn.Sequential(new(), torch.nn.BatchNorm1d(3).double()))
        self.dictionary = torch.nn.ModuleDict({"b": new(), "a": new()})
        self.parameter = torch.nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.register_buffer("buffer", torch.randn(3, dtype=torch.float64))
        self.register_buffer("shared", self.buffer)

    def forward(self, x, walk):
        for each in walk(self):
            x = x + (each(x) if isinstance(each, torch.nn.Module) else each.sum())
        return x

def layers(modules):
    return [each for each in modules if isinstance(each, torch.nn.Linear)]

WALKS = {
    "children": lambda m: m.sequential.children(),
    "children of one": lambda m: m.sequential[1].children(),
    "modules": lambda m: layers(m.sequential.modules()),
    "parameters": lambda m: m.sequential.parameters(),
    "parameters of all": lambda m: m.parameters(),
    "own parameters": lambda m: m.parameters(recurse=False),
    "own parameters, by position": lambda m: m.parameters(False),
    "parameters of nothing": lambda m: m.sequential[1].parameters(recurse=False),
    "buffers": lambda m: m.buffers(),
    "own buffers": lambda m: m.buffers(False),
    "values": lambda m: m.dictionary.values(),
    "list": lambda m: list(m.sequential.children())[:1] + list(m.dictionary.values()),
    "next": lambda m: [next(m.parameters()), next(m.sequential.parameters())],
    "zip": lambda m: [a for pair in zip(m.sequential.children(), m.dictionary.values()) for a in pair],
    "named_children": lambda m: [each for _, each in m.sequential.named_children()],
    "named_parameters": lambda m: [each for _, each in m.named_parameters(recurse=False)],
    "named_buffers": lambda m: [each for _, each in m.named_buffers()],
    "named_modules": lambda m: layers([each for _, each in m.sequential.named_modules()]),
    "items": lambda m: [each for key, each in m.dictionary.items() if key in m.dictionary.keys()],
    "index": lambda m: [m.sequential[0], m.dictionary["a"], *m.sequential[1:]],
    "iteration": lambda m: m.sequential,
    "too many arguments": lambda m: m.parameters(False, 1),
    "unknown argument": lambda m: m.buffers(deep=True),
    "argument": lambda m: m.sequential.children(1),
}

def attempt(name, walk, **options):
    torch._dynamo.reset()
    model = Model()
    try:
        compiled = torch.compile(lambda x: model(x, walk), **options)
        for rows in (2, 4, 5):
            x = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
            results = compiled(x), model(x, walk)
            gradients = [
                torch.autograd.grad(y.sum() * 2, list(model.parameters()), allow_unused=True) if y.requires_grad else ()
                for y in results
            ]
            same = [torch.equal(*results)] + [a is b or torch.equal(a, b) for a, b in zip(*gradients, strict=True)]
            if not all(same):
                return print((name, "differs"))
    except Exception as error:
        return print((name, "NameError" if "NameError" in str(error) else "refused"))
    print((name, "right"))

# Without statistics, which would differ between the two models' turns.
torch.nn.BatchNorm1d.forward = lambda self, x: x * self.weight + self.bias
for name, walk in WALKS.items():
    attempt(name, walk, backend="eager")
for name in ("children", "parameters of all", "values"):
    attempt(name + ", aot_eager, dynamic", WALKS[name], backend="aot_eager", dynamic=True)
torch._dynamo.config.inline_inbuilt_nn_modules = True
attempt("inlined", WALKS["children"], backend="aot_eager")
"""
REFUSED = {"too many arguments", "unknown argument", "argument"}
REPAIRED = {"children", "children of one", "modules", "parameters", "parameters of all", "own parameters", "buffers"}
REPAIRED |= {"own parameters, by position", "parameters of nothing", "own buffers", "values", "list", "next", "zip"}
REPAIRED |= {"children, aot_eager, dynamic", "parameters of all, aot_eager, dynamic", "values, aot_eager, dynamic"}


def outcomes(process):
    return dict(ast.literal_eval(line) for line in check(process).splitlines())


def test_modules_are_walked_through_like_in_eager_mode(python):
    patched, unpatched = outcomes(python(PROGRAM)), outcomes(python(PROGRAM, TORCH_FORWARDFIX="0"))
    assert patched == {name: "refused" if name in REFUSED else "right" for name in patched}
    assert patched.keys() > REPAIRED
    assert unpatched == {**patched, **(dict.fromkeys(REPAIRED, "NameError") if in_range(ID) else {})}


GRAPH = """
import torch, torch._dynamo
from torch._dynamo.variables import nn_module
torch._dynamo.config.inline_inbuilt_nn_modules = False
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    def forward(self, x):
        for {pattern} in self.layers.{walk}():
            x = layer(x)
        return x
def show(gm, inputs):
    print(gm.code)
    return gm
torch.compile(Model(), backend=show)(torch.ones(2))
print(hasattr(nn_module.NNModuleVariable.call_method, "__wrapped__"))
"""


def test_the_graph_is_that_of_the_named_counterpart(python):
    *named, _ = check(python(GRAPH.format(pattern="_, layer", walk="named_children"))).splitlines()
    *graph, wrapped = check(python(GRAPH.format(pattern="layer", walk="children"))).splitlines()
    assert graph == named
    assert wrapped == str(in_range(ID))
