import json

from conftest import check, in_range

ID = "cantsplit-divisibility"

# What a GPU gets is written on any machine; it cannot be run here, so the texts are compared.
KERNELS = """
import hashlib, json, random
from unittest import mock
import sympy, torch, torch_forwardfix
import torch.nn.functional as F
import torch._inductor.scheduler
from torch._inductor.sizevars import SizeVarAllocator
from torch.utils._sympy.functions import FloorDiv

class KernelWritten(Exception):
    pass

text = []
def written(key, path, *args, **kwargs):
    text.append(open(path).read())
    raise KernelWritten()

def sum_and_self(x):  # the bug: a dimension that is a sum, reduced along another one
    y = torch.cat([x.new_ones(1, 8), x]) * 2
    return y.sum(-1), y
def layer_norm(x):
    y = torch.cat([x, x[:1]]).view(-1, 8)
    return F.layer_norm(y, (8,)), y * 2
def padded(x):
    y = F.pad(x, (0, 0, 2, 1)).view(-1, 8)
    return y - y.mean(-1, keepdim=True), y + 1
def no_sum(x):
    y = x.view(-1, 8) * 2
    return y.sum(-1), y
def two_dimensions(x):
    y = x.t() * 2
    return torch.softmax(y, -1), y.flatten()

def outcome(function, dynamic=True):
    torch._dynamo.reset()
    text.clear()
    options = {"cpu_backend": "triton"}
    with (
        torch._inductor.config.patch(compile_threads=1),
        mock.patch("torch._inductor.ir.is_gpu", return_value=True),
        mock.patch("torch._inductor.scheduler.BaseSchedulerNode.is_gpu", return_value=True),
        mock.patch("torch.utils._triton.triton_hash_with_backend", return_value="none"),
        mock.patch("torch._inductor.codecache.PyCodeCache.load_by_key_path", written),
    ):
        try:
            torch.compile(function, dynamic=dynamic, options=options)(torch.ones(24, 8))
        except Exception as error:
            if not text:
                assert "CantSplit" in str(error), error
                return "CantSplit"
    return [text[0].count("def triton_per_"), hashlib.sha256(text[0].encode()).hexdigest()[:8]]

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
    "sum_and_self": outcome(sum_and_self),
    "layer_norm": outcome(layer_norm),
    "padded": outcome(padded),
    "no_sum": outcome(no_sum),
    "two_dimensions": outcome(two_dimensions),
    "static": outcome(sum_and_self, dynamic=False),
    "yes": [answer(pair) for pair in yes],
    "no": [answer(pair) for pair in no],
    "other": [answer(pair) for pair in constant + wide],
    "fractions": [sizes.statically_known_multiple_of(*pair) for pair in fractions],
    "random": [answer(pair) for pair in random_pairs],
}
print(json.dumps(results))
"""
TRIGGERS = ("sum_and_self", "layer_norm", "padded")


def test_sums_as_dimensions_get_one_reduction_and_all_other_kernels_and_answers_stay_as_they_are(python):
    with_fix = json.loads(check(python(KERNELS, TORCH_FORWARDFIX_ONLY=ID)).splitlines()[-1])
    without = json.loads(check(python(KERNELS, TORCH_FORWARDFIX="0")).splitlines()[-1])
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
        assert "sum_and_self" in crashed  # which of the others do, depends on the release
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
