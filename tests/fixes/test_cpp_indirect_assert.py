from conftest import check, in_range

ID = "cpp-indirect-assert"

# Without the precompiled header, which costs more than a few small kernels.
GATHER = """
import torch, torch.nn.functional as F
torch._inductor.config.cpp_cache_precompile_headers = False

def scalar_mask(table, index):
    return F.pad(table[index], (0, 0, 1, 0))
"""

OUT_OF_BOUNDS = """
from torch._inductor.utils import run_and_get_code

table, index = torch.arange(8.0), torch.arange(160).reshape(4, 40) % 8
compiled = torch.compile(scalar_mask)
_, (code, *_) = run_and_get_code(compiled, table, index)
print([line.strip() for line in code.splitlines() if "TORCH_CHECK" in line])
index[2, 20] = 8
try:
    compiled(table, index)
except RuntimeError as error:
    assert "index out of bounds: 0 <=" in str(error), error
else:
    raise AssertionError("the index is not checked")
"""


def test_gathers_under_every_kind_of_mask_match_eager_and_a_wrong_index_is_still_caught(python):
    program = (
        GATHER
        + """
def check(function, table, index, **options):
    torch._dynamo.reset()
    compiled = torch.compile(function, **options)(table, index)
    expected = function(table, index)
    if isinstance(expected, torch.Tensor):
        compiled, expected = [compiled], [expected]
    for actual, wanted in zip(compiled, expected, strict=True):
        assert torch.equal(actual, wanted), (function, options, table.dtype, index.shape)

def int_mask(table, index):  # every third column from another row, as Qwen-VL's rotary embedding does it
    picked = table[index]
    mixed = picked[0].clone()
    mixed[..., 1::3] = picked[1, ..., 1::3]
    return mixed

def other_masks(table, index):  # a vector for a mask, no mask at all, a scalar for an index
    return F.pad(table[index[0]], (1, 0)), table[index] + 1, F.pad(table[:, None].repeat(1, 40)[index[0]], (0, 0, 1, 0))

index = torch.randint(-8, 8, (5, 7))
check(scalar_mask, torch.randn(8), index, dynamic=False)
check(scalar_mask, torch.arange(8), index.int(), dynamic=True)
index = torch.randint(0, 8, (4, 40))
check(scalar_mask, torch.randn(8).bfloat16(), index)
check(scalar_mask, torch.randn(8), index, backend="aot_eager")
check(other_masks, torch.randn(8), index)
check(int_mask, torch.randn(8, 12), torch.randint(0, 8, (2, 5)))

table = torch.randn(8, dtype=torch.float64, requires_grad=True)
expected, = torch.autograd.grad(scalar_mask(table, index).square().sum(), table)
torch._dynamo.reset()
actual, = torch.autograd.grad(torch.compile(scalar_mask)(table, index).square().sum(), table)
torch.testing.assert_close(actual, expected)
"""
    )
    check(python(program))
    # In a second process, out of the warm cache.
    assert "VecMask<int64_t" in check(python(GATHER + OUT_OF_BOUNDS))


def test_without_a_compiler_the_reproduction_says_so_and_sees_no_bug(python):
    reproduce = "from torch_forwardfix.fixes.cpp_indirect_assert import reproduce; reproduce()"
    process = python(reproduce, CXX="no-such-compiler")
    assert process.returncode == 1
    assert "No working C++ compiler found" in process.stderr, process.stderr
    assert "BugPresent" not in process.stderr


TEXT = """
import torch_forwardfix
import torch, torch._inductor.codegen.cpp as cpp

method = cpp.CppVecKernel.indirect_assert
print(hasattr(method, "__wrapped__"), {fix.id: fix.state for fix in torch_forwardfix.status()}["cpp-indirect-assert"])
print(method.__name__, method.__qualname__, method.__module__)

def variable(name, is_vec):
    result = object.__new__(cpp.CppCSEVariable)
    result.name, result.is_vec, result.dtype = name, is_vec, torch.int64
    return result

class Kernel(cpp.CppVecKernel):
    assert_function = "CHECK"
    tail_size = None
    def __init__(self):
        pass
    def _get_vec_type(self, dtype):
        return "Vec"
    def _get_mask_type(self, dtype):
        return "Mask"

kernel = Kernel()
for index in (True, False):
    for mask in (variable("mask", False), variable("mask", True), None):
        print(method(kernel, variable("index", index), "0", "8", mask))
"""


def test_only_the_scalar_mask_on_a_vector_index_is_written_differently(python):
    status, names, *lines = check(python(TEXT)).splitlines()
    _, _, *unpatched = check(python(TEXT, TORCH_FORWARDFIX="0")).splitlines()
    assert names == "indirect_assert CppVecKernel.indirect_assert torch._inductor.codegen.cpp"
    assert len(lines) == 6
    assert "~(Mask::from(mask))" in lines[0]  # what 2.12 and later write by themselves
    if in_range(ID):
        assert status == "True applied"
        assert "~(Mask(mask))" in unpatched[0]
        assert lines[1:] == unpatched[1:]
    else:
        assert status == "False not-affected"
        assert lines == unpatched
