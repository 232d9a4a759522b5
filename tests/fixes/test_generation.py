"""Kernels for a pretended GPU: they are what they are said to be, and nothing passes for them."""

import json

from conftest import check

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}

KERNELS = """
import json, sys, torch
from torch.utils import _triton
from torch_forwardfix import generation

def show(function, *inputs, **how):
    generated = generation.generate(function, *inputs, **how)
    assert len(generated.wrappers) == 1 + how.get("backward", False)
    for kernel in generated.kernels:
        assert kernel.name in generated.wrappers[kernel.backward]
        assert f"def {kernel.name}(" in kernel.source
        for fact in ("type='cuda'", "index=0", "cc=90", "major=9", "multi_processor_count=132", "warp_size=32"):
            assert fact in kernel.source, fact
    return [
        [kernel.kind, kernel.backward, len(kernel.calls("tl.load")), len(kernel.calls("tl.store")),
         [arguments[2] for arguments in kernel.calls("tl.atomic_add")], sum(len(kernel.calls(draw)) for draw in DRAWS)]
        for kernel in generated.kernels
    ]

# 2.13 and 2.14 draw four numbers at a time.
DRAWS = "tl.rand", "triton_helpers.rand4x"

def pointwise(x):
    return (x + 1).relu()
def softmax(x):
    return torch.softmax(x, -1)
def scattered(x, index):
    return torch.zeros(7, device=x.device).index_add(0, index, x)
def noisy(x):
    return torch.nn.functional.dropout(x, 0.5)
def folded(x):
    return x * torch.full((4, 4), 2.0, device=x.device)[0, 0]
def constants(x):
    return x + torch.tensor(2.0, device=x.device) + torch.tensor([1.0, 2.0], device=x.device)[0]
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(16, 32)
    def forward(self, x):
        return torch.nn.functional.layer_norm(self.linear(x), (32,))
def update(parameters, gradients):
    return torch._foreach_add(parameters, gradients)

asked = torch.cuda.is_available, torch.cuda.get_device_properties, _triton.has_triton
x = torch.randn(24, 10)
assert generation.gpu() is None
assert generation.way() == "cpu"
found = {
    "pointwise": show(pointwise, x),
    "dynamic": show(pointwise, x, dynamic=True),
    "softmax": show(softmax, x),
    "large": show(softmax, torch.randn(4, 5000)),
    "scattered": show(scattered, torch.randn(5), torch.zeros(5, dtype=torch.long)),
    "noisy": show(noisy, x),
    "folded": show(folded, x),
    "constants": show(constants, x),
    "trained": show(Model(), torch.randn(8, 16), backward=True),
    "trained, forward": show(Model(), torch.randn(8, 16)),
    "trained, dynamic": show(Model(), torch.randn(8, 16), backward=True, dynamic=True),
    "foreach": show(update, [x, x + 1], [x, x]),
}
assert asked == (torch.cuda.is_available, torch.cuda.get_device_properties, _triton.has_triton)
assert generation.way() == "generated"
assert generation.generate(softmax, x).kernels == generation.generate(softmax, x).kernels
print(json.dumps(found))
"""


def test_kernels_have_the_structure_of_the_program(python):
    found = json.loads(check(python(KERNELS, TORCH_FORWARDFIX="0", **NO_GPU)).splitlines()[-1])
    assert found["pointwise"] == found["dynamic"] == [["pointwise", False, 1, 1, [], 0]]
    assert found["softmax"] == [["persistent_reduction", False, 1, 1, [], 0]]
    assert [kernel[0] for kernel in found["large"]] == ["reduction"]
    assert found["scattered"][-1] == ["pointwise", False, 2, 0, ["xmask"], 0]
    assert found["noisy"][-1][0] == "pointwise"
    assert found["noisy"][-1][5] == 1
    assert [kernel[0] for kernel in found["folded"]] == [kernel[0] for kernel in found["constants"]] == ["pointwise"]
    for trained in ("trained", "trained, dynamic"):
        assert [kernel[1] for kernel in found[trained]] == sorted(kernel[1] for kernel in found[trained])
        assert {kernel[1] for kernel in found[trained]} == {False, True}
        assert all("reduction" in kernel[0] for kernel in found[trained])
    assert found["trained, forward"] == [kernel for kernel in found["trained"] if not kernel[1]]
    assert [kernel[0] for kernel in found["foreach"]] == ["foreach"]


REFUSED = """
import sys, torch
from unittest import mock
import torch._dynamo.device_interface, torch._functorch._aot_autograd.schemas, torch._inductor.compile_fx
import torch._inductor.constant_folding, torch._subclasses.fake_tensor, torch.utils._triton
from torch_forwardfix import generation

x = torch.randn(8, 8)

def program(x):
    return x + 1

def refusal(function=program, *inputs, **how):
    try:
        generation.generate(function, *(inputs or (x,)), **how)
    except generation.NotGenerated as error:
        return str(error)
    raise AssertionError("it passed")

def without(owner, name, **how):
    kept = vars(owner)[name]
    delattr(owner, name)
    try:
        assert refusal(**how).endswith(f"{name} is gone"), refusal(**how)
    finally:
        setattr(owner, name, kept)

assert generation.generate(program, x).kernels  # now all modules of torch are loaded
without(torch.cuda, "get_device_properties")
without(torch.cuda, "mem_get_info")
without(torch._dynamo.device_interface, "CudaInterface")
without(torch._dynamo.device_interface, "caching_worker_device_properties")
without(torch._subclasses.fake_tensor, "init_gpu_context")
without(torch._inductor.compile_fx, "_recursive_joint_graph_passes")
without(torch._inductor.constant_folding.ConstantFolder, "run")
without(torch._inductor.codecache.PyCodeCache, "load_by_key_path")
without(torch.utils._triton, "triton_hash_with_backend")

assert refusal(lambda x: x @ x) == "no kernel was written"
assert refusal(lambda x: x.view(-1)) == "no kernel was written"
assert refusal(program, x, backward=True) == "0 backward graphs were written, not 1"
with torch._dynamo.config.patch(disable=True):
    try:
        assert refusal() == "the function was not compiled at all"
    except RuntimeError as error:  # torch's own, from 2.15 on
        assert "found no compiled frames" in str(error), error
with mock.patch.object(torch.cuda, "is_available", return_value=True):
    with mock.patch.object(torch.cuda, "get_device_name", return_value="Card"):
        assert "there is a real GPU here, Card" in refusal()
        assert generation.gpu() == "Card"
        assert generation.way() == "gpu Card"
with mock.patch.object(generation, "_move"), mock.patch.object(generation, "_move_fakes"):
    assert refusal() == "a kernel was written for async_compile.cpp_pybinding, not for triton", refusal()
from torch._inductor.runtime.hints import DeviceProperties
other = DeviceProperties(type="cuda", index=0, multi_processor_count=132, cc=80)
with mock.patch.object(DeviceProperties, "create", lambda device: other):
    assert "is not written for the pretended GPU: it says nowhere cc=90" in refusal()

def error_of(function):
    try:
        generation.generate(function, x)
    except Exception as error:
        assert not isinstance(error, generation.NotGenerated), error
        return f"{type(error).__name__}: {error}"
    raise AssertionError("it passed")

def broken(x):
    torch._dynamo.graph_break()
    return x + 1
assert error_of(broken).startswith("Unsupported")
from torch._inductor.codegen.triton import TritonKernel
with mock.patch.object(TritonKernel, "codegen_kernel", side_effect=ZeroDivisionError("of torch")):
    assert "ZeroDivisionError: of torch" in error_of(program)
assert generation.generate(program, x).kernels  # and all is well again
"""


def test_whatever_is_not_such_a_kernel_is_refused_and_errors_of_torch_are_not_hidden(python):
    check(python(REFUSED, TORCH_FORWARDFIX="0", **NO_GPU))
