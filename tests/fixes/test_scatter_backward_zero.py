import json

from conftest import check, in_range

ID = "scatter-backward-zero"

GRADIENTS = """
import json, sys
import torch

OPERATIONS = {
    "diagonal": lambda x, source: torch.diagonal_scatter(x, source).sum(),
    "diagonal, columns": lambda x, source: torch.diagonal_scatter(x, source[1:], 1).sum(0),
    "select": lambda x, source: torch.select_scatter(x, source, -1, -1).sum(1),
    "slice": lambda x, source: torch.slice_scatter(x, source[None], 0, 1, 2).sum(),
    "dense gradient": lambda x, source: (torch.diagonal_scatter(x, source) * source).sum(),
    "assignment": lambda x, source: assigned(x, source).sum(),
}

def assigned(x, source):
    y = x.clone()
    y[1] = source
    return y

def everything(source, *inputs):
    return [operation(x, source) for operation, x in zip(OPERATIONS.values(), inputs, strict=True)]

def wrong(compiled, size, dtype, seed):
    torch.manual_seed(seed)
    source = torch.randint(-9, 9, (size,)).to(dtype)
    inputs = [torch.randint(-9, 9, (size, size)).to(dtype).requires_grad_() for _ in OPERATIONS]
    outputs, expected = compiled(source, *inputs), everything(source, *inputs)
    tangents = [torch.randint(1, 9, output.shape).to(dtype) for output in expected]
    ours = torch.autograd.grad(outputs, inputs, tangents)
    eager = torch.autograd.grad(expected, inputs, tangents)
    for name, output, reference in zip(OPERATIONS, outputs, expected, strict=True):
        assert torch.equal(output, reference), name
    return [
        name
        for name, grad, reference in zip(OPERATIONS, ours, eager, strict=True)
        if not torch.equal(grad, reference) or grad.stride() != reference.stride()
    ]

static = torch.compile(everything)
print(json.dumps([wrong(static, 5, torch.float64, 0), wrong(static, 5, torch.float64, 1)]))
if len(sys.argv) > 1:
    torch._dynamo.reset()
    dynamic = torch.compile(everything, dynamic=True)
    print(json.dumps([wrong(dynamic, 4, torch.float32, 2), wrong(dynamic, 6, torch.float32, 3)]))
    print(json.dumps(wrong(torch.compile(everything, backend="aot_eager"), 5, torch.bfloat16, 4)))
"""


def test_gradients_are_those_of_eager_from_cold_and_warm_caches(python):
    for attempt in ("cold", "warm"):
        static, dynamic, aot_eager = map(json.loads, check(python(GRADIENTS, "all")).splitlines())
        assert static == dynamic == [[], []], attempt
        assert aot_eager == [], attempt


def test_gradients_are_wrong_without_the_fix(python):
    first, second = json.loads(check(python(GRADIENTS, TORCH_FORWARDFIX="0")))
    assert first == second
    if in_range(ID):
        assert {"diagonal", "diagonal, columns"} <= set(first)
        assert not {"dense gradient", "assignment"} & set(first)
    else:
        assert first == []


LAYOUTS = """
import torch, torch._dynamo
import torch._prims_common as prims
from torch._subclasses import FakeTensorMode

aten = torch.ops.aten

def layouts(place):
    base = torch.zeros(1, 5, device=place)
    bases = {
        "expanded": base.expand(5, 5),
        "expanded to one": base.expand(1, 5),
        "columns": torch.zeros(5, 5, device=place).t(),
        "holes": torch.zeros(5, 10, device=place)[:, ::2],
        "scalar": torch.zeros((), device=place).expand(5, 5),
    }
    for name, x in bases.items():
        results = {
            "diagonal": aten.diagonal_scatter.default(x, x.new_zeros(min(x.shape))),
            "select": aten.select_scatter.default(x, x.new_zeros(5), 0, 0),
            "slice": aten.slice_scatter.default(x, x.new_zeros(1, 5), 0, 0, 1),
            "own": prims.clone_preserve_strides(x),
        }
        for operator, result in results.items():
            print(place, name, operator, tuple(result.shape), result.stride(), result.dtype)

layouts("meta")
with FakeTensorMode():
    layouts("cpu")
print(hasattr(prims.clone_preserve_strides, "__wrapped__"))
"""


def test_only_scatters_into_overlapping_memory_get_another_layout(python):
    *patched, wrapped = check(python(LAYOUTS)).splitlines()
    *unpatched, _ = check(python(LAYOUTS, TORCH_FORWARDFIX="0")).splitlines()
    assert wrapped == str(in_range(ID))
    changed = [old for old, new in zip(unpatched, patched, strict=True) if old != new]
    assert all(" own " not in line and line.split()[1] in ("expanded", "scalar") for line in changed)
    expanded = [line for line in patched if line.split()[1] == "scalar" or "expanded diagonal" in line]
    assert len(expanded) == 10
    assert all("(5, 5) (5, 1)" in line for line in expanded if " own " not in line)
    assert all("(5, 5) (0, 0)" in line for line in expanded if " own " in line)
    assert bool(changed) == in_range(ID)
