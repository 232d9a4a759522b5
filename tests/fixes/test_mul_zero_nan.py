from conftest import check, in_range

# Inductor's passes, and then the graph as it is: many graphs in the time of one C++ kernel.
PASSES = """
import functools, sys
import torch
from torch._inductor import compile_fx

graphs = []

def interpret(gm, example_inputs, **options):
    compile_fx._recursive_post_grad_passes(gm, is_inference=options.get("is_inference", False))
    graphs.append(gm.graph)
    def run(args):
        result = gm(*args)
        args.clear()
        return result
    run._boxed_call = True
    return run

passes = functools.partial(compile_fx.compile_fx, inner_compile=interpret)

def multiplies(graph):
    return any("mul" in str(node.target) for node in graph.nodes)

def same(left, right):
    if left.is_complex():
        left, right = torch.view_as_real(left), torch.view_as_real(right)
    numbers, expected = left.nan_to_num(), right.nan_to_num()
    return left.dtype == right.dtype and torch.equal(left.isnan(), right.isnan()) and (
        torch.equal(numbers, expected) and torch.equal(numbers.signbit(), expected.signbit()))
"""

PRODUCTS = (
    PASSES
    + """
forms = {
    "x * 0": lambda x: x * 0,
    "0 * x": lambda x: 0 * x,
    "x * False": lambda x: x * False,
    "x.mul_(0)": lambda x: x.clone().mul_(0),
    "Scalar": lambda x: torch.ops.aten.mul.Scalar(x, 0),
    "later": lambda x: (x.exp() * 0 + 1).sum(),
    "x * 0.0": lambda x: x * 0.0,
    "x * zeros": lambda x: x * torch.zeros(3),
}
special = [float("nan"), float("inf"), -float("inf"), -1.0, -0.0, 2.0]
wrong = []
for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.complex64, torch.float64, torch.float16)):
    for name, form in list(forms.items())[:None if number < 3 else 2]:
        torch._dynamo.reset()
        compiled = torch.compile(form, backend=passes, dynamic=bool(number % 2))
        for rows in (6, 4):
            torch.manual_seed(rows)
            x = torch.cat([torch.tensor(special), torch.randn(12)])[torch.randperm(18)][:3 * rows]
            x = x.reshape(rows, 3).to(dtype)
            if not same(compiled(x), form(x)):
                wrong.append(f"{name} {dtype}")

x = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
torch.compile(lambda x: (x * 0) * torch.tensor([float("inf"), float("nan"), 1.0]), backend=passes)(x).sum().backward()
if not same(x.grad, torch.tensor([float("nan"), float("nan"), 0.0])):
    wrong.append("gradient")

kept = []
for dtype in (torch.int64, torch.int8, torch.bool):
    for name in ("x * 0", "0 * x", "x * False", "Scalar"):
        x = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
        torch._dynamo.reset()
        assert torch.equal(torch.compile(forms[name], backend=passes)(x), forms[name](x)), (name, dtype)
        if multiplies(graphs[-1]):
            kept.append(f"{name} {dtype}")
constant = lambda: torch.full((3,), 2.0) * 0 + torch.full((3,), float("inf")) * 0
assert same(torch.compile(constant, backend=passes)(), constant())
print(sorted(set(wrong)), kept)
folder = sys.modules["torch._inductor.fx_passes.joint_graph"].UniformValueConstantFolder
print(hasattr(folder._add_peephole_patterns, "__wrapped__"))
"""
)


def test_float_products_equal_eager_and_integer_and_constant_products_are_folded_as_before(python):
    assert check(python(PRODUCTS)) == f"[] []\n{in_range('mul-zero-nan')}\n"


def test_opt_out_drops_nan_as_before(python):
    lines = check(python(PRODUCTS, TORCH_FORWARDFIX="0")).splitlines()
    assert lines[1] == "False"
    if in_range("mul-zero-nan"):
        for case in ("x * 0 torch.float32", "0 * x torch.bfloat16", "Scalar torch.complex64", "gradient"):
            assert repr(case) in lines[0]
        assert "x * 0.0" not in lines[0]
        assert "x * zeros" not in lines[0]
        assert lines[0].endswith(" []")
    else:
        assert lines[0] == "[] []"


INDUCTOR = """
import torch
from torch._dynamo.utils import counters

def f(x):
    return x * 0, (x > 0).long() * 0

# For one kernel, precompiling torch's headers takes longer than the kernel does.
compiled = torch.compile(f, options={"cpp_cache_precompile_headers": False})
x = torch.tensor([float("nan"), float("inf"), -1.0, 2.0])
products, zeros = compiled(x)
assert products.isnan().tolist() == [True, True, False, False] and products[2:].tolist() == [0, 0], products
assert products[2].signbit() and not products[3].signbit() and zeros.tolist() == [0, 0, 0, 0], (products, zeros)
print(counters["aot_autograd"]["autograd_cache_hit"])
"""


def test_inductor_equals_eager_in_a_cold_and_a_warm_process(python):
    assert check(python(INDUCTOR)) == "0\n"
    assert check(python(INDUCTOR)) == "1\n"
