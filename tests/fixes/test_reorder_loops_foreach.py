import json

from conftest import check, in_range

ID = "reorder-loops-foreach"

# What a GPU gets is written on any machine; it cannot be run here, so the texts are compared. For the CPU inductor does
# not come here at all.
KERNELS = """
import hashlib, json, traceback
import torch, torch_forwardfix
import torch._inductor.scheduler as scheduler
from torch._inductor import metrics
from torch_forwardfix import generation

def chained(a, b):  # the bug: a group of two fused operations, and a node that reads it in another order
    sums = torch._foreach_add(a, [y.t() for y in b])
    doubles = torch._foreach_mul(sums, 2.0)
    return sums, doubles, [x.t().contiguous() for x in doubles]
def chained_thrice(a, b):
    sums = torch._foreach_add(a, [y.t() for y in b])
    doubles = torch._foreach_mul(sums, 2.0)
    roots = torch._foreach_sqrt(doubles)
    return sums, doubles, roots, [x.t().contiguous() + 1 for x in sums]
def single(a, b):  # a group of plain nodes
    sums = torch._foreach_add(a, [y.t() for y in b])
    return sums, [x.t().contiguous() for x in sums]
def momentum(a, b):  # no other order
    torch._foreach_lerp_(a, [y.t() for y in b], 0.1)
    return torch._foreach_mul(a, 2.0)
def no_group(a, b):  # loops that are reordered, without any group
    return a[0] / 10.0, (a[0] / 10.0).t().contiguous().t(), a[0].sum(-1).sum()

def outcome(function, *shapes):
    before = metrics.num_loop_reordering
    inputs = [torch.ones(m, n) for m, n in shapes], [torch.ones(n, m) for m, n in shapes]
    options = {"loop_ordering_after_fusion": True}
    try:
        kernels = generation.generate(function, *inputs, dynamic=False, options=options).kernels
    except Exception:
        trace = traceback.format_exc()
        assert "AssertionError" in trace and "in reorder_loops_by_dep_pair" in trace, trace
        return "AssertionError"
    text = "".join(kernel.source for kernel in kernels)
    return [len(kernels), metrics.num_loop_reordering - before, hashlib.sha256(text.encode()).hexdigest()[:8]]

method = scheduler.FusedSchedulerNode.reorder_loops_by_dep_pair
state = {fix.id: fix.state for fix in torch_forwardfix.status()}["reorder-loops-foreach"]
shapes = (64, 32), (16, 8)
results = {
    "patched": [state, hasattr(method, "__wrapped__"), method.__qualname__],
    "chained": outcome(chained, *shapes),
    "square": outcome(chained, (8, 8), (8, 8), (8, 8)),
    "chained_thrice": outcome(chained_thrice, *shapes),
    "single": outcome(single, *shapes),
    "momentum": outcome(momentum, *shapes),
    "no_group": outcome(no_group, *shapes),
}
print(json.dumps(results))
"""
TRIGGERS = ("chained", "square", "chained_thrice")


def test_groups_of_fused_operations_get_a_kernel_and_all_other_kernels_stay_as_they_are(python):
    with_fix = json.loads(check(python(KERNELS, TORCH_FORWARDFIX_ONLY=ID, CUDA_VISIBLE_DEVICES="")).splitlines()[-1])
    without = json.loads(check(python(KERNELS, TORCH_FORWARDFIX="0", CUDA_VISIBLE_DEVICES="")).splitlines()[-1])
    state, wrapped, name = with_fix.pop("patched")
    assert name == without.pop("patched")[2] == "FusedSchedulerNode.reorder_loops_by_dep_pair"
    assert (state, wrapped) == (("applied", True) if in_range(ID) else ("not-affected", False))
    assert "AssertionError" not in with_fix.values()
    assert with_fix["no_group"][1] > 0  # loops are still reordered
    if in_range(ID):
        assert "AssertionError" in [without.pop(trigger) for trigger in TRIGGERS]
        for trigger in TRIGGERS:
            assert with_fix.pop(trigger)[0] > 0
    assert with_fix == without
