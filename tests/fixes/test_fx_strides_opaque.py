import textwrap

from conftest import check, in_range

ID = "fx-strides-opaque"

# An operator per kind of stride constraint, all of which take an object that is no tensor (in 2.9, a float).
OPERATORS = """
import importlib
import torch

torch._inductor.config.cpp_cache_precompile_headers = False  # costs more than one small kernel

def register(name, old, new, **options):
    try:
        from torch._library import opaque_object
    except ImportError:
        return "float", float
    base = object
    for home, attribute in (("torch._custom_class_base", "CustomClassBase"), ("torch._opaque_base", "OpaqueBase")):
        try:
            base = getattr(importlib.import_module(home), attribute)
            break
        except ImportError:
            pass

    class Factor(base):
        def __init__(self, value):
            self.value = value
        def __eq__(self, other):
            return type(other) is type(self) and other.value == self.value
        def __hash__(self):
            return hash(self.value)
        def __repr__(self):
            return f"{name}({self.value})"
        def __fx_repr__(self):
            return repr(self), {name: type(self)}

    Factor.__name__ = Factor.__qualname__ = name
    if hasattr(opaque_object, "register_custom_class"):
        opaque_object.register_custom_class(Factor, typ=new, **options)
    else:
        opaque_object.register_opaque_type(Factor, typ=old, **options)
    return opaque_object.get_opaque_type_name(Factor), Factor

library = torch.library.Library("scaling", "DEF")
seen = []

def scale(x, y, factor):
    seen.append((x.stride(), y.stride()))
    return x * y * getattr(factor, "value", factor)

def define(name, kind, *tags):
    library.define(f"{name}(Tensor x, Tensor y, {kind} factor) -> Tensor", tags=tags)
    library.impl(name, scale, "CompositeExplicitAutograd")
    torch.library.register_fake(f"scaling::{name}", lambda x, y, _: torch.empty_like(x * y), lib=library)
    torch.library.register_autograd(
        f"scaling::{name}",
        lambda ctx, grad: (grad * ctx.saved_tensors[1] * ctx.value, grad * ctx.saved_tensors[0] * ctx.value, None),
        setup_context=setup,
        lib=library,
    )

def setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.value = 3.0

kind, Factor = register("Factor", "reference", "symbolic")
define("fixed", kind, torch.Tag.needs_fixed_stride_order)
define("contiguous", kind, torch.Tag.needs_contiguous_strides)
define("exact", kind, torch.Tag.needs_exact_strides)
define("flexible", kind, torch.Tag.flexible_layout)
define("no_object_fixed", "float", torch.Tag.needs_fixed_stride_order)
define("no_object_contiguous", "float", torch.Tag.needs_contiguous_strides)
"""

COMPARE = """
def call(x, y, factor, name):
    return getattr(torch.ops.scaling, name)(x @ x, (y @ y).t(), factor)

x, y = torch.randn(2, 4, 4)
# A case with contiguous inputs costs a C++ kernel, the copy; the others call mm and the operator alone.
cases = [("fixed", {}), ("fixed", {"dynamic": True}), ("fixed", {"backend": "aot_eager"}), ("contiguous", {})]
cases += [(name, {}) for name in ("exact", "flexible", "no_object_fixed", "no_object_contiguous")]
for name, options in cases:
    factor = 3.0 if name.startswith("no_object") else Factor(3.0)
    torch._dynamo.reset()
    expected = call(x, y, factor, name)
    expected_strides = seen.pop()
    seen.clear()
    actual = torch.compile(call, fullgraph=True, **options)(x, y, factor, name)
    assert torch.equal(actual, expected), (name, options)
    strides = seen.pop()
    if "contiguous" in name:
        assert strides == ((4, 1), (4, 1)), (name, options, strides)
    elif name != "flexible":
        assert strides == expected_strides == ((4, 1), (1, 4)), (name, options, strides)

torch._dynamo.reset()
a, b = (torch.randn(4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
expected = torch.autograd.grad(call(a, b, Factor(3.0), "fixed").sum(), (a, b))
actual = torch.autograd.grad(torch.compile(call, backend="aot_eager")(a, b, Factor(3.0), "fixed").sum(), (a, b))
torch.testing.assert_close(actual, expected)

if torch.__version__ >= "2.11":  # a constant that is lifted to an input of the graph, as vLLM has it for layer names
    kind, Lifted = register("Lifted", "value", "constant", hoist=True)
    for name, tag in (("fixed", "needs_fixed_stride_order"), ("contiguous", "needs_contiguous_strides")):
        define("lifted_" + name, kind, getattr(torch.Tag, tag))
        for value in (2.0, 5.0):
            actual = torch.compile(call, fullgraph=True)(x, y, Lifted(value), "lifted_" + name)
            assert torch.equal(actual, call(x, y, Lifted(value), "lifted_" + name))
"""


def test_operators_with_objects_match_eager_and_get_the_strides_that_they_ask_for(python):
    check(python(OPERATORS + COMPARE))
    check(python(OPERATORS + COMPARE))  # and out of the caches of the first process


def test_opt_out_fails_as_before_for_both_constraints(python):
    process = python(
        "from torch_forwardfix.fixes.fx_strides_opaque import reproduce\nreproduce()", TORCH_FORWARDFIX="0"
    )
    if in_range(ID):
        assert process.returncode == 1
        assert "BugPresent: an operator that needs fixed stride order" in process.stderr, process.stderr
        assert "; an operator that needs contiguous strides" in process.stderr, process.stderr
    else:
        check(process)


COPIES = """
import sys
import torch_forwardfix
import torch._inductor.lowering as lowering

conv_wrapped = hasattr(sys.modules["torch._inductor.kernel.conv"].constrain_to_fx_strides, "__wrapped__")
import torch._inductor.graph, torch._inductor.comm_lowering, torch.distributed
torch._inductor.comm_lowering.register_comm_lowerings()

now = lowering.constrain_to_fx_strides
held = [
    (name, value)
    for name, module in sorted(sys.modules.items())
    if name.startswith("torch._inductor")
    for value in [vars(module).get("constrain_to_fx_strides")]
    if value is not None
]
table = [value for value in lowering._maybe_layout_constraints.values() if value.__name__ == "constrain_to_fx_strides"]
state = {fix.id: fix.state for fix in torch_forwardfix.status()}["fx-strides-opaque"]
contiguous = lowering.tag_to_layout_constraint(torch.Tag.needs_contiguous_strides)
print(state, len(held) + len(table), conv_wrapped, hasattr(now, "__wrapped__"), hasattr(contiguous, "__wrapped__"))
if state == "applied":
    assert [name for name, _ in held[:2]] == ["torch._inductor.graph", "torch._inductor.kernel.conv"], held
    assert all(value is now for _, value in held) and all(value is now for value in table), held
    assert lowering._maybe_layout_constraints[torch.ops.aten.convolution_backward.default] is now
    assert lowering._maybe_layout_constraints[torch.ops._c10d_functional.all_reduce.default] is now
    assert lowering.tag_to_layout_constraint(torch.Tag.needs_fixed_stride_order) is now

def backward(grad, x, weight):  # no kernel of inductor's own, just the operator under the constraint
    options = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False])
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *options)[:2]

x = torch.randn(1, 2, 5, 5).to(memory_format=torch.channels_last)
tensors = torch.randn(1, 3, 3, 3), x, torch.randn(3, 2, 3, 3)
torch.testing.assert_close(torch.compile(backward)(*tensors), backward(*tensors))
"""


def test_every_copy_of_the_function_is_patched_those_taken_before_and_those_taken_after(python):
    state, count, *wrapped = check(python(COPIES)).split()
    if in_range(ID):
        assert int(count) >= 17
        assert (state, wrapped) == ("applied", ["True"] * 3)
    else:
        assert (state, wrapped) == ("not-affected", ["False"] * 3)


def test_copies_are_patched_as_well_when_inductor_was_loaded_before_the_fixes(python):
    late = """
    import os
    import torch._inductor.graph, torch._inductor.comm_lowering, torch.distributed
    torch._inductor.comm_lowering.register_comm_lowerings()
    del os.environ["TORCH_FORWARDFIX"]
    import torch_forwardfix
    torch_forwardfix.activate()
    """
    process = python(textwrap.dedent(late) + COPIES, TORCH_FORWARDFIX="0")
    assert check(process).split()[0] == ("applied" if in_range(ID) else "not-affected")
