import ast
from importlib.metadata import version

from conftest import check, in_range

# Prints what comes out wrong, the AOTAutograd cache hits of each case, and which of the two targets are wrapped. The
# dtypes tell; of zero elements, so that no kernel has to be compiled.
PROGRAM = """
import importlib
import torch, torch._dynamo
import torch._functorch.config
from torch._dynamo.utils import counters

def square(x):
    return x @ x

def inside(x):
    with torch.autocast("cpu"):
        return x @ x

def inside_named(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x

def zeros(x):
    return torch.zeros(0)

def mean_count(x):
    return (x > 0).sum(dim=0) / 3

x = torch.zeros(0, 0)
wrong = set()

def compare(name, function, x=x, **options):
    torch._dynamo.reset()
    counters.clear()
    result, expected = torch.compile(function, **options)(x), function(x)
    if x.requires_grad:
        result.sum().backward()
    if result.dtype != expected.dtype or not torch.equal(result, expected):
        wrong.add(name)
    hits.setdefault(name, []).append(counters["aot_autograd"]["autograd_cache_hit"])

def under_autocast(dtype, function, name, x=x, **options):
    with torch.autocast("cpu", dtype=dtype):
        compare(name, function, x, **options)

bf16, fp16, f32, f64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
hits = {}
compare("plain", square)
compare("plain", inside_named)
for dtype in (bf16, fp16, bf16):
    under_autocast(dtype, square, "autocast")
    under_autocast(dtype, square, "aot_eager", backend="aot_eager")
    under_autocast(dtype, square, "training", torch.zeros(0, 0, requires_grad=True))
for dtype in (f32, f64, f32):
    torch.set_default_dtype(dtype)
    compare("default", zeros)
    compare("default", mean_count)
    with torch._functorch.config.patch(enable_autograd_cache=False):
        compare("graph cache alone", mean_count)
    torch.set_default_dtype(f32)
for dtype in (bf16, fp16, bf16):
    torch.set_autocast_dtype("cpu", dtype)
    compare("inside", inside)
    compare("unaffected", square)
torch.set_autocast_dtype("cpu", bf16)

details = [importlib.import_module("torch._inductor.codecache").FxGraphHashDetails]
details.append(importlib.import_module("torch._functorch._aot_autograd.autograd_cache").AOTAutogradCacheDetails)
print([sorted(wrong), hits, [hasattr(vars(each)["__init__"], "__wrapped__") for each in details]])
"""
RELEASE = tuple(map(int, version("torch").split(".")[:2]))


def run(python, **environment):
    return ast.literal_eval(check(python(PROGRAM, **environment)).splitlines()[-1])


def expected_wrong():
    if not in_range("aot-cache-key-dtypes"):
        return []
    if RELEASE >= (2, 14):
        return ["inside"]
    return ["autocast", "default", "graph cache alone", "training"]


def test_each_dtype_has_entries_of_its_own_that_later_compiles_and_processes_hit(python):
    wrong, hits, wrapped = run(python)
    assert wrong == []
    assert hits["autocast"] == hits["training"] == [0, 0, 1]
    assert hits["default"] == [0, 0, 0, 0, 1, 1]
    assert hits["inside"] == ([0, 0, 1] if RELEASE >= (2, 14) else [0, 0, 0])  # not cached before
    assert hits["unaffected"] == [1, 1, 1]
    ours = in_range("aot-cache-key-dtypes")
    assert wrapped == [ours and RELEASE < (2, 13), ours]
    wrong, hits, _ = run(python)
    assert wrong == []
    assert hits["plain"][0] == 1
    assert hits["autocast"] == hits["training"] == hits["unaffected"] == [1, 1, 1]
    assert hits["default"] == [1] * 6
    assert hits["inside"] == ([1, 1, 1] if RELEASE >= (2, 14) else [0, 0, 0])


def test_entries_of_an_unpatched_process_are_taken_only_where_they_are_right(python):
    wrong, hits, wrapped = run(python, TORCH_FORWARDFIX="0")
    assert wrong == expected_wrong()
    assert wrapped == [False, False]
    # Alone: fixes that change generated code keep to entries of their own.
    wrong, hits, _ = run(python, TORCH_FORWARDFIX_ONLY="aot-cache-key-dtypes")
    assert wrong == []
    # Up to 2.12 an entry may be of any default dtype, and none is taken.
    stays_warm = not in_range("aot-cache-key-dtypes") or RELEASE >= (2, 13)
    assert hits["plain"][0] == hits["autocast"][0] == hits["default"][0] == (1 if stays_warm else 0)
