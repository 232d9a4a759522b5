import json

from conftest import check, in_range

ID = "atomic-add-mask"

KERNELS = """
import json, torch, torch_forwardfix
from torch._inductor.codegen.triton import TritonKernel
from torch_forwardfix import generation

def place(source, index, places=1):
    return torch.zeros(places, device=source.device, dtype=source.dtype).index_put((index,), source, accumulate=True)

def issue(x, bias, index):
    zero = torch.zeros(1, 1, device=x.device)
    return zero.scatter_reduce(0, index.unsqueeze(-1).expand_as(x), x + bias, "sum")
def counted(index):
    return place(torch.ones(index.shape, device=index.device), index)
def counted_in_rows(x, index):  # the loops can be a block of two dimensions, the value is the same in all of it
    return place(torch.ones(x.shape, device=x.device), index.unsqueeze(1).expand(x.shape))
def spread_over_rows(x, index):  # the value is the same along one dimension of a block
    return place(x[:, 0].unsqueeze(1).expand(x.shape), index.unsqueeze(1).expand(x.shape))
def transposed(x, y, index):
    z = x.t() + y
    return place(z, index.unsqueeze(1).expand(z.shape)), z
def rows_summed(x, index):
    sums = x.sum(-1)
    return place(sums, index), sums
def trained(x, index):
    return torch.nn.functional.embedding(index, x).sum()

def many_places(x, index):
    return place(x, index, 7)
def one_place_no_scatter(x):
    return (x + 1).sum()
def normal(x):
    return torch.nn.functional.layer_norm(x, x.shape[-1:]), (x * 2).t().contiguous()
def updates(a, b):
    return torch._foreach_add(a, b)

def seen(function, *inputs, **how):
    return [
        [kernel.kind, kernel.calls("tl.atomic_add"), kernel.calls("tl.broadcast_to"), kernel.source]
        for kernel in generation.generate(function, *inputs, **how).kernels
    ]

def index(n):
    return torch.zeros(n, dtype=torch.long)

x, y = torch.randn(5, 7), torch.randn(50, 70)
weight = torch.randn(1, 8, requires_grad=True)
triggers = {
    "issue": seen(issue, torch.randn(5, 1), torch.randn(1), index(5)),
    "issue, 48": seen(issue, torch.randn(48, 1), torch.randn(1), index(48)),
    "issue, dynamic": seen(issue, torch.randn(5, 1), torch.randn(1), index(5), dynamic=True),
    "counted": seen(counted, index(5)),
    "counted_in_rows": seen(counted_in_rows, x, index(5)),
    "spread_over_rows": seen(spread_over_rows, x, index(5)),
    "transposed": seen(transposed, y, torch.randn(70, 50), index(70)),
    "rows_summed": seen(rows_summed, x, index(5)),
}
neighbours = {
    "many_places": seen(many_places, torch.randn(5), index(5)),
    "many_places, dynamic": seen(many_places, torch.randn(5), index(5), dynamic=True),
    "full blocks": seen(counted, index(8192)),
    "embedding": seen(trained, torch.randn(9, 8, requires_grad=True), index(6), backward=True),
    "one_place_no_scatter": seen(one_place_no_scatter, x),
    "large": seen(one_place_no_scatter, torch.randn(300, 1000)),
    "normal": seen(normal, y),
    "updates": seen(updates, [x, y], [x, y]),
}
methods = TritonKernel.store, TritonKernel.indexing
state = {fix.id: fix.state for fix in torch_forwardfix.status()}["atomic-add-mask"]
patched = [state, [hasattr(method, "__wrapped__") for method in methods], [method.__name__ for method in methods]]
print(json.dumps({"patched": patched, "triggers": triggers, "neighbours": neighbours}))
"""


def additions(kernels):
    return [call for _, calls, _, _ in kernels for call in calls]


def test_lanes_of_padding_are_masked_and_all_other_kernels_stay_as_they_are(python):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    with_fix = json.loads(check(python(KERNELS, TORCH_FORWARDFIX_ONLY=ID, **hidden)).splitlines()[-1])
    without = json.loads(check(python(KERNELS, TORCH_FORWARDFIX="0", **hidden)).splitlines()[-1])
    state, wrapped, names = with_fix.pop("patched")
    assert names == without.pop("patched")[2] == ["store", "indexing"]
    assert (state, wrapped) == (("applied", [True, True]) if in_range(ID) else ("not-affected", [False, False]))
    assert with_fix["neighbours"] == without["neighbours"]
    assert [mask for _, _, mask, _ in additions(without["neighbours"]["full blocks"])] == ["None"]
    assert additions(without["neighbours"]["many_places"])[0][2] == "xmask"
    for trigger, kernels in with_fix["triggers"].items():
        (call,) = additions(kernels)
        pointer, _, mask, _ = call
        assert ("YBLOCK, XBLOCK" if "ymask" in mask else "[XBLOCK]") in pointer, (trigger, call)
        assert mask in ("xmask", "xmask & ymask"), (trigger, call)
        if in_range(ID):
            (before,) = additions(without["triggers"][trigger])
            assert before[2] == "None", (trigger, before)
            for (*_, now), (*_, then) in zip(kernels, without["triggers"][trigger], strict=True):
                changed = set(now.splitlines()) ^ set(then.splitlines())
                assert all("tl.atomic_add" in line or "tl.broadcast_to" in line for line in changed), changed
    if not in_range(ID):
        assert with_fix == without
