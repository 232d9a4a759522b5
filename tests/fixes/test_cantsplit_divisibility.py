import json

from conftest import check, in_range

ID = "cantsplit-divisibility"

# What a GPU gets is written on any machine; it cannot be run here, so the texts are compared.
KERNELS = """
import hashlib, json, random
import sympy, torch, torch_forwardfix
import torch.nn.functional as F
from torch._inductor.sizevars import SizeVarAllocator
from torch.utils._sympy.functions import FloorDiv
from torch_forwardfix import generation

def linear_and_sum(x, w):  # the bug: a dimension that is a sum, reduced along another one
    y = torch.cat([x.new_ones(1, 8), x]) @ w
    return (y + 1).sum(-1), y * 3
def layer_norm(x, w):
    y = torch.cat([x, x[:1]]) @ w
    return F.layer_norm(y, (8,)), y * 2
def padded(x, w):
    y = F.pad(x, (0, 0, 2, 1)) @ w
    return y - y.mean(-1, keepdim=True), y + 1
def fused(x, w):
    y = torch.cat([x.new_ones(1, 8), x]) * 2
    return y.sum(-1), y
def no_sum(x, w):
    y = x @ w
    return (y + 1).sum(-1), y * 3
def two_dimensions(x, w):
    y = x.t() * 2
    return torch.softmax(y, -1), y.flatten()

def outcome(function, dynamic=True):
    try:
        kernels = generation.generate(function, torch.ones(24, 8), torch.ones(8, 8), dynamic=dynamic).kernels
    except Exception as error:
        assert "CantSplit" in str(error), error
        return "CantSplit"
    # What stands before the function are hints for tuning; divisibility is told there as well.
    text = "".join(kernel.source.partition("@triton.jit")[2] for kernel in kernels)
    return [sum("reduction" in kernel.kind for kernel in kernels), hashlib.sha256(text.encode()).hexdigest()[:8]]

s, t, u = sympy.symbols("s t u", integer=True, positive=True)
many = sympy.symbols("m:21", integer=True, positive=True)
q = FloorDiv(t, s)
yes = [(8*s + 8, s + 1), (s*t + s, t + 1), (s*t + t, s + 1), (s*q + q, s + 1), (s*q + q, q), (s**2*q + s*q, s*q + q)]
yes += [(s*t + s + t + 1, t + 1), (6*s + 4, 3*s + 2), ((8*s + 8)*q, s*q + q), (s + 1, s + 1), (8*s, s), (s*t*u, s*u)]
no = [(s, t), (3*s + 2, 6*s + 4), (4*s + 4, 6*s + 6), (s*s + 1, s + 1), (s*t + 1, t), (8*s + 7, s + 1)]
no += [(s + 1, 8*s + 8)]
fractions = [((s + 1) / 2, s + 1), (s / 2 + sympy.Rational(1, 2), s + 1), ((s + 1) / u, s + 1), (s * t / u, s)]
constant = [(8*s + 8, 8), (8*s + 4, 8), (8*s + 8, sympy.Integer(8)), (s, 8), (16, 8), (12, 8), (q, 8)]
wide = [(sum(many) * 8, sum(many)), (sum(many) * s, sum(many))]
numbers = random.Random(0)
def polynomial():
    terms = [numbers.randint(1, 6), *(numbers.randint(0, 4) * symbol for symbol in (s, t, s * t))]
    return sum(numbers.sample(terms, 2))
random_pairs = []
while len(random_pairs) < 40:
    a, b, c = polynomial(), polynomial(), polynomial()
    if b.free_symbols if isinstance(b, sympy.Basic) else False:
        random_pairs += [(sympy.expand(a * b), b), (sympy.expand(a * b + c), b)]
sizes = SizeVarAllocator()
def answer(pair):
    try:
        result = sizes.statically_known_multiple_of(*pair)
    except (sympy.PolynomialError, RecursionError) as error:
        return type(error).__name__  # of sympy's %, which 2.9 asks
    assert result is True or result is False, (pair, result)
    if result:  # then it must be so for numbers
        for _ in range(5):
            values = {symbol: numbers.randint(1, 50) for symbol in (s, t, u, *many)}
            numerator, denominator = (sympy.sympify(side).subs(values) for side in pair)
            assert denominator == 0 or numerator % denominator == 0, (pair, values)  # FloorDiv can be 0
    return result

method = SizeVarAllocator.statically_known_multiple_of
state = {fix.id: fix.state for fix in torch_forwardfix.status()}["cantsplit-divisibility"]
results = {
    "patched": [state, hasattr(method, "__wrapped__"), method.__qualname__],
    "linear_and_sum": outcome(linear_and_sum),
    "layer_norm": outcome(layer_norm),
    "padded": outcome(padded),
    "fused": outcome(fused),
    "no_sum": outcome(no_sum),
    "two_dimensions": outcome(two_dimensions),
    "static": outcome(linear_and_sum, dynamic=False),
    "yes": [answer(pair) for pair in yes],
    "no": [answer(pair) for pair in no],
    "other": [answer(pair) for pair in constant + wide],
    "fractions": [sizes.statically_known_multiple_of(*pair) for pair in fractions],
    "random": [answer(pair) for pair in random_pairs],
}
print(json.dumps(results))
"""
TRIGGERS = ("linear_and_sum", "layer_norm", "padded")


def test_sums_as_dimensions_get_one_reduction_and_all_other_kernels_and_answers_stay_as_they_are(python):
    with_fix = json.loads(check(python(KERNELS, TORCH_FORWARDFIX_ONLY=ID, CUDA_VISIBLE_DEVICES="")).splitlines()[-1])
    without = json.loads(check(python(KERNELS, TORCH_FORWARDFIX="0", CUDA_VISIBLE_DEVICES="")).splitlines()[-1])
    state, wrapped, name = with_fix.pop("patched")
    assert name == without.pop("patched")[2] == "SizeVarAllocator.statically_known_multiple_of"
    assert (state, wrapped) == (("applied", True) if in_range(ID) else ("not-affected", False))
    if in_range(ID):
        assert all(answer is True for answer in with_fix["yes"])
        assert with_fix.pop("yes") != without.pop("yes")
        assert not any(with_fix["no"])
        assert all(with_fix[trigger][0] == 1 for trigger in TRIGGERS), with_fix
        answers = list(zip(with_fix.pop("random"), without.pop("random"), strict=True))
        assert all(now or not before for now, before in answers)
        assert any(now and not before for now, before in answers)
        crashed = {trigger for trigger in TRIGGERS if without[trigger] == "CantSplit"}
        assert "linear_and_sum" in crashed  # which of the others do, depends on the release
        for trigger in crashed:
            del without[trigger], with_fix[trigger]
    assert with_fix == without


EAGER = """
import torch
torch._inductor.config.cpp_cache_precompile_headers = False

def sum_and_self(x):
    y = torch.cat([x.new_ones(1, 8), x]) * 2
    return y.sum(-1), y

compiled = torch.compile(sum_and_self, dynamic=True)
for rows in (24, 5, 17):
    x = torch.randn(rows, 8, dtype=torch.float64)
    torch.testing.assert_close(compiled(x), sum_and_self(x))
"""


def test_dynamic_shapes_that_are_run_match_eager(python):
    check(python(EAGER))
