import pytest
from conftest import check, in_range

PRELUDE = """
import logging, sys, warnings
warnings.simplefilter("error", RuntimeWarning)
import torch

def double(x):
    return x.sin() * 2

class Double(torch.nn.Module):
    def forward(self, x):
        return double(x)

x = torch.arange(4.0, requires_grad=True)
seen = []

def backend(graph, inputs):
    seen.append(graph)
    return graph
"""

WAYS = {
    "function": "compiled = torch.compile(double, fullgraph=True, backend=backend)",
    "default backend": "compiled = torch.compile(double, fullgraph=True)",
    "aot_eager": "compiled = torch.compile(double, fullgraph=True, backend='aot_eager')",
    "decorator": "compiled = torch.compile(fullgraph=True, backend=backend)(double)",
    "module": "compiled = torch.compile(Double(), fullgraph=True, backend=backend)",
    "Module.compile": "compiled = Double(); compiled.compile(fullgraph=True, backend=backend)",
    "optimize": "compiled = torch._dynamo.optimize(backend, nopython=True)(double)",
    "nested": (
        "inner = torch.compile(double, fullgraph=True, backend=backend)\n"
        "compiled = torch.compile(lambda x: inner(x) + 0, fullgraph=True, backend=backend)"
    ),
    "without fullgraph": "compiled = torch.compile(double, backend=backend)",
    "dynamic": "compiled = torch.compile(double, fullgraph=True, dynamic=True, backend=backend)",
}

RUN = """
for size in (1, 4, 7):
    x = torch.linspace(-1, 1, size, requires_grad=True)
    for _ in range(2):
        y = compiled(x)
        assert torch.equal(y, double(x))
        grad, = torch.autograd.grad(y.sum(), x)
        assert torch.equal(grad, torch.autograd.grad(double(x).sum(), x)[0])
"""


@pytest.mark.parametrize("way", WAYS)
def test_disabled_by_the_environment_every_way_runs_eagerly(python, way):
    check(python(PRELUDE + WAYS[way] + RUN + "assert not seen", TORCH_COMPILE_DISABLE="1"))


@pytest.mark.parametrize("way", WAYS)
def test_disabled_in_code_every_way_runs_eagerly(python, way):
    check(python(PRELUDE + "torch._dynamo.config.disable = True\n" + WAYS[way] + RUN + "assert not seen"))


def test_disabled_by_the_environment_the_callable_comes_back_unwrapped(python):
    if not in_range("compile-disable"):
        program = "assert torch.compile(double, fullgraph=True)._torchdynamo_orig_callable is double"
    else:
        program = """
assert torch.compile(double, fullgraph=True) is double
module = Double()
assert torch.compile(module) is module
assert not module.state_dict() and list(torch.compile(torch.nn.Linear(1, 1)).state_dict()) == ["weight", "bias"]
"""
    check(python(PRELUDE + program, TORCH_COMPILE_DISABLE="1"))


@pytest.mark.parametrize("value", ["0", "true", "on", "01", " 1"])
def test_any_value_but_1_changes_nothing(python, value):
    check(python(PRELUDE + WAYS["function"] + RUN + "assert seen", TORCH_COMPILE_DISABLE=value))


def test_one_warning_line_says_what_happened_and_how_to_undo_it(python):
    program = PRELUDE + WAYS["function"] + RUN + "torch.compile(Double(), fullgraph=True)(x)"
    process = python(program, TORCH_COMPILE_DISABLE="1")
    check(process)
    lines = [line for line in process.stderr.splitlines() if "TORCH_COMPILE_DISABLE" in line]
    assert len(lines) == (1 if in_range("compile-disable") else 0)
    assert all("uncompiled" in line and "unset" in line for line in lines)


def test_the_flag_in_code_can_be_taken_back(python):
    program = """
compiled = torch.compile(double, fullgraph=True, backend=backend)
with torch._dynamo.config.patch(disable=True):
    assert torch.equal(compiled(x), double(x))
    assert not seen
torch._dynamo.reset()
assert torch.equal(compiled(x), double(x))
assert len(seen) == 1
"""
    check(python(PRELUDE + program))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("torch._dynamo.graph_break(); return x + 1", id="graph break"),
        pytest.param("print(x); return x + 1", id="call into print"),
        pytest.param("return x + 1 if x.sum() > 0 else x - 1", id="data-dependent branch"),
    ],
)
def test_errors_of_fullgraph_that_are_not_about_disabling_are_raised(python, body):
    program = f"""
def broken(x):
    {body}

try:
    torch.compile(broken, fullgraph=True, backend=backend)(x)
except torch._dynamo.exc.Unsupported:
    print("raised")
"""
    assert check(python(PRELUDE + program)).endswith("raised\n")


def test_a_frame_skipped_for_another_reason_is_still_an_error_where_torch_makes_it_one(python):
    program = """
from torch.utils._python_dispatch import TorchDispatchMode

class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

try:
    with Mode():
        torch.compile(double, fullgraph=True, backend=backend)(x)
    print("accepted")
except (RuntimeError, RuntimeWarning) as error:
    print("found no compiled frames" in str(error))
"""
    assert check(python(PRELUDE + program)) == check(python(PRELUDE + program, TORCH_FORWARDFIX="0"))


def test_a_wrong_backend_is_refused_all_the_same(python):
    process = python(PRELUDE + "torch.compile(double, backend='no such backend')", TORCH_COMPILE_DISABLE="1")
    assert process.returncode == 1
    assert "no such backend" in process.stderr


def test_export_and_control_flow_operators_work_as_they_do_without_us(python):
    program = """
from torch.nn.attention.flex_attention import flex_attention
pred = torch.tensor(True)
print(torch.cond(pred, lambda x: x.sin(), lambda x: x.cos(), (x,)).tolist())
torch.manual_seed(0)
q = torch.randn(1, 1, 16, 16)
expected = torch.nn.functional.scaled_dot_product_attention(q, q, q)
torch.testing.assert_close(flex_attention(q, q, q), expected)
if sys.argv[1] == "export":
    print(torch.equal(torch.export.export(Double(), (x,), strict=True).module()(x), double(x)))
"""
    # Up to 2.10 a strict export fails while dynamo is disabled, with us and without.
    strict = (
        "export" if python(PRELUDE + _EXPORT, TORCH_COMPILE_DISABLE="1", TORCH_FORWARDFIX="0").returncode == 0 else ""
    )
    check(python(PRELUDE + program, strict, TORCH_COMPILE_DISABLE="1"))


_EXPORT = "torch.export.export(Double(), (x,), strict=True)"


def test_compile_inside_a_compiled_function_is_treated_alike_with_us(python):
    program = """
@torch.compile(backend=backend)
def outer(x):
    inner = torch.compile(double, backend=backend)
    return inner(x) + 1

assert torch.equal(outer(x), double(x) + 1)
from torch._dynamo.utils import counters
print(len(seen), sorted(counters["graph_break"].values()), dict(counters["frames"]))
"""
    assert check(python(PRELUDE + program)) == check(python(PRELUDE + program, TORCH_FORWARDFIX="0"))
