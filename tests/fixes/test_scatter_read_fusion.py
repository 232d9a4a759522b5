import json

from conftest import check, in_range

ID = "scatter-read-fusion"

KERNELS = """
import json, torch, torch_forwardfix
from torch._inductor.scheduler import Scheduler
from torch_forwardfix import generation

def zeros(x, rows=1):
    return torch.zeros(rows, x.shape[1], device=x.device, dtype=x.dtype)

def scattered(x, index):
    total = zeros(x).scatter_add_(0, index.unsqueeze(-1).expand(-1, x.shape[1]), x)
    return torch.index_select(total, 0, index)
def normalised(x, index):
    squares = x**2 + 0.5
    return squares / (zeros(x).index_add_(0, index, squares)[index] + 1e-6)
def put(x, index):
    return x - zeros(x).index_put((index,), x, accumulate=True)[0]
def trained(x, index):
    return x * zeros(x).index_add(0, index, x)[index]
def read_before(x, index, total):
    shifted = x - total
    return shifted, total.index_add_(0, index, x)
def put_before(x, index, total):
    shifted = x - total
    return shifted, total.index_put_((index,), x, accumulate=True)

def columns_before(x, index, total):
    shifted = x - total
    return shifted, total.index_add_(1, index, x)

def many_rows(x, index):
    return x - zeros(x, 7).index_add_(0, index, x)[index]
def not_read(x, index):
    return x * 2, zeros(x).index_add_(0, index, x)
def not_added(x, index):
    return x - zeros(x).index_put((index,), x)[0]
def in_place(x, y):
    return y - x, x.mul_(y)
def row_in_place(x, index, total):
    doubled = total * 2
    return x + 1, doubled, total.add_(doubled)
def embedding(weight, index):
    return torch.nn.functional.embedding(index, weight).sum()
def norm(x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:])
def rms(x, weight):
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight)
def soft(x):
    return torch.softmax(x, -1), (x * 2).t().contiguous().view(-1), x.sum(0)
def updates(a, b):
    return torch._foreach_add(a, b)

def mutated(source):
    return source.partition("'mutated_arg_names': [")[2].partition("]")[0]

def seen(function, *inputs, **how):
    return [
        [kernel.calls("tl.load"), kernel.calls("tl.atomic_add"), mutated(kernel.source), kernel.source]
        for kernel in generation.generate(function, *inputs, **how).kernels
    ]

def inputs(n, columns, dtype=torch.float32):
    return torch.randn(n, columns, dtype=dtype), torch.zeros(n, dtype=torch.long)

triggers, neighbours = {}, {}
for function in (scattered, normalised, put):
    triggers[function.__name__] = seen(function, *inputs(8, 4))
triggers["large"] = seen(normalised, *inputs(5000, 3, torch.float64))
triggers["dynamic"] = seen(scattered, *inputs(8, 4), dynamic=True)
triggers["trained"] = seen(trained, inputs(8, 4)[0].requires_grad_(), inputs(8, 4)[1], backward=True)
for function in (read_before, put_before):
    triggers[function.__name__] = seen(function, *inputs(4096, 4), torch.ones(1, 4))
place = torch.zeros(4096, dtype=torch.long)
triggers["one place"] = seen(read_before, torch.ones(4096), place, torch.ones(1))
triggers["one place put"] = seen(put_before, torch.ones(4096), place, torch.ones(1))
triggers["one column"] = seen(columns_before, torch.ones(64, 4096), place, torch.ones(64, 1))
for function in (many_rows, not_read, not_added):
    neighbours[function.__name__] = seen(function, *inputs(50, 4))
neighbours["in_place"] = seen(in_place, torch.randn(50, 70), torch.randn(50, 70))
neighbours["row_in_place"] = seen(row_in_place, *inputs(50, 4), torch.randn(1, 4))
neighbours["embedding"] = seen(embedding, torch.randn(9, 8, requires_grad=True), inputs(6, 1)[1], backward=True)
neighbours["norm"] = seen(norm, torch.randn(50, 70, requires_grad=True), backward=True)
neighbours["rms"] = seen(rms, torch.randn(50, 70), torch.randn(70, requires_grad=True), backward=True)
neighbours["soft"] = seen(soft, torch.randn(50, 70))
neighbours["large rows"] = seen(soft, torch.randn(50, 7000))
neighbours["updates"] = seen(updates, [torch.randn(5), torch.randn(3, 3)], [torch.randn(5), torch.randn(3, 3)])
questions = Scheduler.fusable_read_and_write, Scheduler.fusable_weak_dep
state = {fix.id: fix.state for fix in torch_forwardfix.status()}["scatter-read-fusion"]
patched = [state, [hasattr(question, "__wrapped__") for question in questions]]
print(json.dumps({"patched": patched, "triggers": triggers, "neighbours": neighbours}))
"""

ON_THE_CPU = """
import torch

def read_before(x, index, total):
    shifted = x - total
    return shifted, total.index_add_(0, index, x)

torch.set_num_threads(1)
# Precompiling headers for one kernel takes longer than the kernel.
compiled = torch.compile(read_before, options={"cpp_cache_precompile_headers": False}, dynamic=False)
for columns in (4,), ():
    def inputs():
        return torch.ones(100, *columns), torch.zeros(100, dtype=torch.long), torch.ones(1, *columns)
    print(*map(torch.equal, compiled(*inputs()), read_before(*inputs())))
"""


def reads_what_it_adds_to(kernels):
    return any(
        additions and any(f"'{load[0].partition(' ')[0]}'" in mutated for load in loads)
        for loads, additions, mutated, _ in kernels
    )


def test_reads_have_a_kernel_of_their_own_and_all_other_kernels_stay_as_they_are(python):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    with_fix = json.loads(check(python(KERNELS, TORCH_FORWARDFIX_ONLY=ID, **hidden)).splitlines()[-1])
    without = json.loads(check(python(KERNELS, TORCH_FORWARDFIX="0", **hidden)).splitlines()[-1])
    state, wrapped = with_fix.pop("patched")
    assert state == ("applied" if in_range(ID) else "not-affected")
    assert any(wrapped) == in_range(ID)
    assert without.pop("patched")[1] == [False, False]
    assert with_fix["neighbours"] == without["neighbours"]
    assert any(additions for _, additions, *_ in without["neighbours"]["many_rows"])
    for trigger, kernels in with_fix["triggers"].items():
        assert any(additions for _, additions, *_ in kernels), trigger
        assert not reads_what_it_adds_to(kernels), trigger
    shown = {trigger for trigger, kernels in without["triggers"].items() if reads_what_it_adds_to(kernels)}
    if not in_range(ID):
        assert with_fix == without
    elif wrapped == [True, True]:
        assert shown == set(with_fix["triggers"])
    else:
        assert wrapped == [False, True]
        last = {"one place", "one place put", "one column"}
        assert shown in (last | {"read_before", "put_before"}, last)
        for trigger in set(with_fix["triggers"]) - shown:
            assert with_fix["triggers"][trigger] == without["triggers"][trigger]


def test_a_read_before_the_addition_is_right_on_the_cpu(python):
    assert check(python(ON_THE_CPU)).split() == ["True"] * 4
    wrong = check(python(ON_THE_CPU, TORCH_FORWARDFIX="0")).split()
    assert wrong[2:] == ["False" if in_range(ID) else "True", "True"]
