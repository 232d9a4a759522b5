import json
import re

from conftest import check, in_range

ID = "rand4x-dropout"

KERNELS = """
import json
import torch, torch_forwardfix
import torch._inductor.codegen.triton as triton
from torch.nn.functional import dropout, gelu, layer_norm, linear
from torch.utils.checkpoint import checkpoint
from torch_forwardfix import generation
from torch_forwardfix.fixes.rand4x_dropout import draws, offsets

def checkpointed(function):
    return lambda *inputs: checkpoint(function, *inputs, use_reentrant=False)

def ones(*shape, dtype=torch.float32):
    return torch.ones(*shape, dtype=dtype, requires_grad=True)

def transposed(x):
    return dropout(x.transpose(1, 2).contiguous(), 0.5).transpose(1, 2).contiguous()
def feed_forward(x, weight, bias):
    return dropout(linear(x, weight, bias).relu(), 0.1)
def biased(x, bias):
    return dropout(gelu(x + bias), 0.25)
def noisy(x, bias):
    return x * bias * torch.randn_like(x)

def rand(x):
    return torch.rand(6, 7, device=x.device), torch.randn(3, 5, dtype=torch.float64, device=x.device)

RANDOM = {
    "transposed": (transposed, torch.ones(8, 64, 4096)),
    "odd": (transposed, torch.ones(2, 3, 5)),
    "dropout": (lambda x: dropout(x, 0.1), ones(64, 256)),
    "dynamic": (transposed, torch.ones(4, 16, 32)),
    "bfloat16": (lambda x: dropout(x, 0.1), ones(7, 5, 3, dtype=torch.bfloat16)),
    "channels_last": (lambda x: dropout(x, 0.1), torch.ones(2, 8, 16, 16).to(memory_format=torch.channels_last)),
    "rand": (rand, torch.ones(1)),
    "softmax": (lambda x: dropout(x.softmax(-1), 0.1), ones(64, 256)),
    "residual": (lambda x, y: layer_norm(dropout(x, 0.1) + y, (256,)), ones(64, 256), ones(64, 256)),
    "tiled": (lambda x: dropout(x.transpose(1, 2).contiguous(), 0.5), torch.ones(8, 64, 4096)),
}
RECOMPUTED = {
    "again_transposed": (transposed, ones(8, 64, 4096)),
    "again_feed_forward": (feed_forward, ones(64, 128), ones(256, 128), ones(256)),
    "again_biased": (biased, ones(64, 256), ones(256)),
    "again_half": (biased, ones(64, 256, dtype=torch.float16), ones(256, dtype=torch.float16)),
    "again_randn": (noisy, ones(64, 256), ones(256)),
}
WITHOUT = {
    "pointwise": (lambda x: (x + 1).relu(), ones(64, 256)),
    "reduction": (lambda x: x.var(-1), torch.ones(64, 70000)),
    "randint": (lambda x: torch.randint_like(x, 0, 9), torch.ones(64, 256)),
    "foreach": (lambda x: torch._foreach_add([x, x[1:]], 1), torch.ones(64, 256)),
    "transposing": (lambda x: x.t().contiguous() * 2, torch.ones(64, 256)),
}

def generated(name, function, *inputs):
    again = name in RECOMPUTED
    dynamic = name == "dynamic" or None
    function = checkpointed(function) if again else function
    kernels = generation.generate(function, *inputs, dynamic=dynamic, backward=again).kernels
    fours = [(kernel, call) for kernel in kernels for call in draws([kernel]).get("triton_helpers.rand4x", ())]
    return {
        "sources": [kernel.source for kernel in kernels],
        "forward": list(draws(kernel for kernel in kernels if not kernel.backward)),
        "backward": list(draws(kernel for kernel in kernels if kernel.backward)),
        "elements": [offsets(kernel, call[1], range(4)) for kernel, call in fours],
    }

method = getattr(triton.TritonOverrides, "_can_use_4x_random", None)
state = {fix.id: fix.state for fix in torch_forwardfix.status()}["rand4x-dropout"]
results = {"state": state, "wrapped": hasattr(method, "__wrapped__")}
for name, program in {**RANDOM, **RECOMPUTED, **WITHOUT}.items():
    results[name] = generated(name, *program)
print(json.dumps(results))
"""
RECOMPUTED = ("transposed", "feed_forward", "biased", "half", "randn")
WITHOUT = ("pointwise", "reduction", "randint", "foreach", "transposing")


def drawn_one_at_a_time(source):
    return re.sub(r"triton_helpers\.(randn?)4x\((.*), XBLOCK\)", r"tl.\1(\2)", source)


def test_a_mask_is_drawn_alike_in_the_forward_and_where_it_is_computed_again(python):
    fixed = json.loads(check(python(KERNELS, CUDA_VISIBLE_DEVICES="", TORCH_FORWARDFIX_ONLY=ID)).splitlines()[-1])
    plain = json.loads(check(python(KERNELS, CUDA_VISIBLE_DEVICES="", TORCH_FORWARDFIX="0")).splitlines()[-1])
    assert (fixed.pop("state"), fixed.pop("wrapped")) == (
        ("applied", True) if in_range(ID) else ("not-affected", False)
    )
    assert (plain.pop("state"), plain.pop("wrapped")) == ("disabled", False)

    for name in RECOMPUTED:
        kernels = fixed[f"again_{name}"]
        assert kernels["forward"] == kernels["backward"] == ["tl.randn" if name == "randn" else "tl.rand"]
    assert not any(kernels["elements"] for kernels in fixed.values())
    for name in WITHOUT:
        assert not fixed[name]["forward"]
        assert fixed[name] == plain[name]

    if in_range(ID):
        for name in RECOMPUTED:
            kernels = plain[f"again_{name}"]
            assert kernels["forward"] != kernels["backward"]
        assert plain["transposed"]["elements"] == [[0, 64, 128, 192]]
        assert plain["odd"]["elements"] == [[0, 3, 6, 9]]
        for name in ("softmax", "residual", "tiled"):  # are drawn one at a time in any case
            assert fixed[name] == plain[name]
        # Nothing but the call is another one.
        for name, kernels in plain.items():
            assert [drawn_one_at_a_time(source) for source in kernels["sources"]] == fixed[name]["sources"]
    else:
        assert fixed == plain
