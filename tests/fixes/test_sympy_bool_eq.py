from conftest import check, in_range

IN_RANGE = in_range("sympy-bool-eq")

COMPILE = """
import logging, torch
logging.disable(logging.CRITICAL)

def conditions(x, low, high):
    i = torch.arange(x.shape[0])
    always, ones = i >= 0, torch.full_like(torch.empty(4, 4), 0.9).any(1)
    return (
        (i > low) == (i < high),
        (i > low) != (i < high),
        (i > low) == (i % 2 == 0),
        always == (i < high),
        (i == 3) == (i - 1 == 2),
        torch.isclose(torch.where(ones, ones, ones), ones),
        torch.where((i > low) == (i < high), x, x * 2),
        # without a comparison of conditions
        i % 3 == 2,
        (x > 0) == (x < 1),
        torch.logical_xor(i > low, i < high),
        (i > low) == i % 2,
    )

compiled = torch.compile(conditions, dynamic=True, options={"cpp_cache_precompile_headers": False})
for size, low, high in (8, 2, 5), (5, -1, 9), (1, 0, 1), (17, 5, 2):
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)).requires_grad_()
    results, expected = compiled(x, low, high), conditions(x, low, high)
    for position, pair in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(*pair), (size, position, pair)
    gradients = [torch.autograd.grad(y[6].sum(), x)[0] for y in (results, expected)]
    assert torch.equal(*gradients), gradients
print("compiled")
"""


def test_comparisons_of_conditions_give_what_eager_gives_also_from_a_warm_cache(python):
    assert check(python(COMPILE)) == "compiled\n"
    assert check(python(COMPILE)) == "compiled\n"


STATIC = """
import torch

def conditions(x):
    i = torch.arange(8)
    return (i > 2) == (i < 5), (i > 2) != (i < 5)

compiled = torch.compile(conditions, dynamic=False, options={"cpp_cache_precompile_headers": False})
assert all(map(torch.equal, compiled(torch.zeros(8)), conditions(torch.zeros(8))))
print("compiled")
"""


def test_static_shapes_compile_and_do_not_without_the_fix_where_it_applies(python):
    assert check(python(STATIC)) == "compiled\n"
    plain = python(STATIC, TORCH_FORWARDFIX="0")
    assert plain.returncode == IN_RANGE
    assert ("A Boolean argument can only be used in Eq and Ne" in plain.stderr) is IN_RANGE


RANGES = """
import itertools
import sympy, torch, torch._inductor
from torch._inductor.bounds import ValueRangeAnalysis
from torch.utils._sympy.value_ranges import SymPyValueRangeAnalysis, ValueRanges

eq = SymPyValueRangeAnalysis.eq
true, false = sympy.true, sympy.false
booleans = [ValueRanges(false, false), ValueRanges(false, true), ValueRanges(true, true)]
numbers = [ValueRanges(low, high) for low in (-1, 0, 1, 2) for high in (0, 1, 5, sympy.oo) if low <= high]
for a, b in itertools.chain(itertools.product(booleans, booleans), itertools.product(numbers, numbers)):
    for analysis in SymPyValueRangeAnalysis, ValueRangeAnalysis, ValueRangeAnalysis():
        equal, different = analysis.eq(a, b), analysis.ne(a, b)
        if a.is_singleton() and b.is_singleton():
            known = a.lower == b.lower
        else:
            known = None if a.is_bool or not (a.lower > b.upper or b.lower > a.upper) else False
        low, high = (false, true) if known is None else (sympy.S(known), sympy.S(known))
        assert (equal.lower, equal.upper) == (low, high), (a, b, equal)
        assert (different.lower, different.upper) == (sympy.Not(high), sympy.Not(low)), (a, b, different)
plain = getattr(eq, "__wrapped__", eq)
assert all(plain(a, b) == eq(a, b) for a in numbers for b in numbers)
# A boolean and a number: it may say less than it could, never what is wrong.
for a, b in itertools.product(booleans, numbers):
    said = {bool(v) for v in (eq(a, b).lower, eq(a, b).upper)}
    for x, y in itertools.product((0, 1), (-1, 0, 1, 2, 3)):
        if x in (int(bool(a.lower)), int(bool(a.upper))) and b.lower <= y <= b.upper:
            assert (x == y) in said, (a, b, x, y)
assert eq(True, False) == eq(false, True) == ValueRanges(false, false)
assert eq(3, 3) == ValueRanges(true, true)
assert (eq.__name__, eq.__qualname__) == ("eq", "SymPyValueRangeAnalysis.eq")
print(hasattr(eq, "__wrapped__"))
"""


def test_ranges_are_right_for_booleans_and_unchanged_for_numbers(python):
    assert check(python(RANGES)) == f"{IN_RANGE}\n"
