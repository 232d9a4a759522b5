import json

from conftest import check, in_range

ID = "reinplace-overwrite"

UPDATES = """
import json, sys
import torch

@torch.library.custom_op("forwardfix::increment", mutates_args={"x"})
def increment(x: torch.Tensor) -> None:
    x.add_(1)

def put(x, index, source):
    y = x.index_put((index,), source)
    x.zero_()
    return y

def scattered(x, index, source):
    y = torch.slice_scatter(x, source, 0, 1, 3)
    x.fill_(2)
    return y

def selected(x, index, source):
    y = torch.select_scatter(x, source[0], 0, 1)
    x.fill_(3)
    return y

def copied_between(x, index, source):
    x.index_fill_(0, index, 7)
    y = x.clone()
    x.clamp_(max=1)
    return y

def custom(x, index, source):
    increment(x)
    y = x.clone()
    x.zero_()
    return y

def put_then_custom(x, index, source):
    y = x.index_put((index,), source)
    increment(y)
    x.zero_()
    return y

def put_twice(x, index, source):
    y = x.index_put((index,), source).index_put((index - 1,), source)
    x.zero_()
    return y

def written_elsewhere(x, index, source):
    y = x.index_put((index,), source)
    x.copy_(y.index_put((index - 1,), source))
    return y

WRONG = (put, scattered, selected, copied_between, custom, put_then_custom, put_twice, written_elsewhere)

def written_back(x, index, source):
    y = torch.slice_scatter(x, source, 0, 1, 3)
    x.copy_(y)
    return x + 1

def assigned(x, index, source):
    x[index] = source
    return x * 2

def used_before(x, index, source):
    y = x.index_put((index,), source).sum(0)
    x.zero_()
    return y

CASES = (*WRONG, written_back, assigned, used_before)

def everything(index, source, *inputs):
    return [case(x, index, source) for case, x in zip(CASES, inputs, strict=True)]

def wrong(compiled, size, dtype, seed):
    torch.manual_seed(seed)
    index, source = torch.randperm(size - 1)[:2] + 1, torch.randint(-9, 9, (2, size)).to(dtype)
    inputs = [torch.randint(-9, 9, (size, size)).to(dtype) for _ in CASES]
    mutated = [x.clone() for x in inputs]
    outputs, expected = compiled(index, source, *inputs), everything(index, source, *mutated)
    return [
        case.__name__
        for case, output, reference, x, y in zip(CASES, outputs, expected, inputs, mutated, strict=True)
        if not torch.equal(output, reference) or not torch.equal(x, y)
    ]

static = torch.compile(everything)
print(json.dumps([wrong(static, 4, torch.float64, 0), wrong(static, 4, torch.float64, 1)]))
if len(sys.argv) > 1:
    torch._dynamo.reset()
    dynamic = torch.compile(everything, dynamic=True)
    print(json.dumps([wrong(dynamic, 4, torch.int64, 2), wrong(dynamic, 6, torch.int64, 3)]))
    print(json.dumps(wrong(torch.compile(everything, backend="aot_eager"), 5, torch.bfloat16, 4)))
else:
    print(json.dumps([case.__name__ for case in WRONG]))
"""


def test_results_outlive_what_is_written_into_the_argument_from_cold_and_warm_caches(python):
    for attempt in ("cold", "warm"):
        static, dynamic, aot_eager = map(json.loads, check(python(UPDATES, "all")).splitlines())
        assert static == dynamic == [[], []], attempt
        assert aot_eager == [], attempt


def test_results_show_what_is_written_later_without_the_fix(python):
    (first, second), expected = map(json.loads, check(python(UPDATES, TORCH_FORWARDFIX="0")).splitlines())
    assert first == second == (expected if in_range(ID) else [])


CODE = """
import torch
import torch._inductor.fx_passes.reinplace as reinplace
from torch._inductor.utils import run_and_get_code

@torch.library.custom_op("forwardfix::increment", mutates_args={"x", "y"})
def increment(x: torch.Tensor, y: torch.Tensor) -> None:
    x.add_(1)
    y.add_(1)

def right(cache, x, y, z, index, source):
    cache.view(-1, 4)[index] = source
    y[1:3] = source
    z.index_put_((index,), source)
    z.mul_(2)
    before = x.index_put((index,), source).sum()
    x.zero_()
    return before, y * 2

def custom(x, y, index, source):
    increment(x, y)
    kept = x.clone()
    x.zero_()
    return kept

def code(function, *shapes):
    compiled = torch.compile(function)
    index, source = torch.tensor([0, 2]), torch.full((2, 4), 5.0)
    return run_and_get_code(compiled, *(torch.ones(shape) for shape in shapes), index, source)[1]

print(hasattr(reinplace.decompose_generalized_scatter, "__wrapped__"))
print(code(right, (2, 2, 4), (4, 4), (4, 4), (4, 4)))
print(sum(line.count(" = empty_strided") for part in code(custom, (4, 4), (4, 4)) for line in part.splitlines()))
"""


def test_only_what_is_overwritten_gets_a_copy(python):
    # A graph out of a cache has no code to show.
    fresh = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
    wrapped, code, buffers = check(python(CODE, **fresh)).splitlines()
    was_wrapped, unpatched_code, unpatched_buffers = check(python(CODE, TORCH_FORWARDFIX="0", **fresh)).splitlines()
    assert (wrapped, was_wrapped) == (str(in_range(ID)), "False")
    assert code == unpatched_code
    assert len(code) > 1000
    assert int(buffers) == int(unpatched_buffers) + in_range(ID)
