import json
from itertools import pairwise

from conftest import check, in_range

ID = "reduction-readback-race"

KERNELS = """
import json, torch, torch_forwardfix
from torch._inductor.codegen.triton import TritonKernel
from torch_forwardfix import generation
F = torch.nn.functional

def shares(x):
    y = x.sin() + 2
    return y, y / y.sum(-1, keepdim=True)
def joined_norm(x, y):
    z = torch.cat([x, y], 0) * 2
    return z, F.layer_norm(z, z.shape[-1:])
def soft(x, y):
    z = x + y
    return z, torch.softmax(z, -1)

def only_read(x):
    return torch.softmax(x, -1), F.layer_norm(x, x.shape[-1:])
def rms(x, weight):
    return F.rms_norm(x, x.shape[-1:], weight)
def scattered(x, index):
    return torch.zeros(7, x.shape[1], device=x.device, dtype=x.dtype).index_add_(0, index, x)
def pointwise(x):
    y = x + 1
    return y, y.t().contiguous(), y.sum()
def updates(a, b):
    return torch._foreach_add(a, b)

def seen(function, *inputs, **how):
    return [kernel.source for kernel in generation.generate(function, *inputs, **how).kernels]

x = torch.randn(4096, 4000)
triggers = {
    "shares": seen(shares, x),
    "shares, half": seen(shares, x.half()),
    "shares, dynamic": seen(shares, x, dynamic=True),
    "joined_norm": seen(joined_norm, x, x),
    "soft": seen(soft, x, x),
}
neighbours = {
    "persistent": seen(shares, torch.randn(4096, 500)),
    "split": seen(shares, torch.randn(4, 100000)),
    "only_read": seen(only_read, x),
    "rms": seen(rms, torch.randn(500, 4000, requires_grad=True), torch.randn(4000, requires_grad=True), backward=True),
    "scattered": seen(scattered, x, torch.zeros(4096, dtype=torch.long)),
    "pointwise": seen(pointwise, x),
    "updates": seen(updates, [torch.randn(5), torch.randn(3, 3)], [torch.randn(5), torch.randn(3, 3)]),
}
methods = TritonKernel.load, TritonKernel.get_load_buffer
state = {fix.id: fix.state for fix in torch_forwardfix.status()}["reduction-readback-race"]
patched = [state, [hasattr(method, "__wrapped__") for method in methods]]
print(json.dumps({"patched": patched, "triggers": triggers, "neighbours": neighbours}))
"""


def reads_back(source, barrier):
    """Whether what the kernel stores is loaded later on, and whether ``barrier`` stands right before the load."""
    lines = [line.strip() for line in source.splitlines()]
    stored = set()
    for before, line in pairwise(lines):
        if pointer(line, "tl.load(") in stored and (before == "tl.debug_barrier()") == barrier:
            return True
        stored |= {pointer(line, "tl.store(")} - {""}
    return False


def pointer(line, call):
    return line.partition(call)[2].partition(" ")[0]


def test_a_barrier_stands_before_what_is_read_back_and_all_other_kernels_stay_as_they_are(python):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    with_fix = json.loads(check(python(KERNELS, TORCH_FORWARDFIX_ONLY=ID, **hidden)).splitlines()[-1])
    without = json.loads(check(python(KERNELS, TORCH_FORWARDFIX="0", **hidden)).splitlines()[-1])
    wrapped = [True, True] if in_range(ID) else [False, False]
    assert with_fix.pop("patched") == ["applied" if in_range(ID) else "not-affected", wrapped]
    assert without.pop("patched")[1] == [False, False]
    assert with_fix["neighbours"] == without["neighbours"]
    if not in_range(ID):
        assert with_fix == without
    for trigger, kernels in with_fix["triggers"].items():
        assert any(reads_back(kernel, barrier=True) for kernel in kernels), trigger
        assert not any(reads_back(kernel, barrier=False) for kernel in kernels), trigger
        then = without["triggers"][trigger]
        assert any(reads_back(kernel, barrier=False) for kernel in then) == in_range(ID), trigger
        for kernel, before in zip(kernels, then, strict=True):
            without_barriers = [
                [line for line in text.splitlines() if line.strip() != "tl.debug_barrier()"]
                for text in (kernel, before)
            ]
            assert without_barriers[0] == without_barriers[1]
