"""Dropout masks on a GPU are wrong: the backward of a checkpoint has another one, or channels share one.

Since 2.13 inductor draws four random numbers at once in kernels of one dimension, by ``triton_helpers.rand4x``, and one
at a time, by ``tl.rand``, in all other kernels (pytorch#184377). For the same seed and the same element the two give
different numbers. But an element of a mask has to be the same number in the forward and where checkpointing computes
it again, and these are different kernels: ``dropout(gelu(x + bias))`` is a pointwise kernel in the forward, and part of
the reduction for the gradient of ``bias`` in the backward. Besides, ``rand4x`` takes the elements of a block to be
neighbours. Where they are not (dropout of a transposed tensor), four channels share one mask (pytorch#198333).

Neither graph knows what kernel will compute the mask again, so no narrower condition is right: forwards under
``no_grad`` are computed again too. Upstream draws one at a time since 2.15, unless asked by TORCHINDUCTOR_USE_RAND4X.
The patch does so as well: numbers are those of 2.12 and 2.15, kernels with random numbers take the time of 2.12, all
others stay as they are.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

if TYPE_CHECKING:
    from torch_forwardfix import generation

_FOUR_TIMES = "_can_use_4x_random"
DRAWS = ("tl.rand", "tl.randn", "triton_helpers.rand4x", "triton_helpers.randn4x")


def is_present(module: ModuleType) -> bool | str:
    if not any(_FOUR_TIMES in code.co_names for code in code_objects(lookup(module, "TritonOverrides.rand"))):
        return False
    condition = lookup(module, f"TritonOverrides.{_FOUR_TIMES}")
    names = {name for code in code_objects(condition) for name in code.co_names}
    if "use_rand4x" in names:
        return False
    return "triton_tensor_ndim" in names or f"{_FOUR_TIMES} no longer asks for the dimensions of the kernel"


def apply(module: ModuleType) -> None:
    wrap(module.TritonOverrides, _FOUR_TIMES, lambda original: lambda: False)


def draws(kernels: Iterable[generation.Kernel]) -> dict[str, list[list[str]]]:
    """How ``kernels`` draw random numbers, and with which arguments."""
    kernels = tuple(kernels)
    found = {function: [call for kernel in kernels for call in kernel.calls(function)] for function in DRAWS}
    return {function: calls for function, calls in found.items() if calls}


def offsets(kernel: generation.Kernel, text: str, elements: range) -> list[int]:
    """The value of the expression ``text`` in a kernel of one dimension, for each of ``elements``."""

    class WithoutCasts(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.AST:
            self.generic_visit(node)
            return node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "to" else node

    program = WithoutCasts().visit(ast.parse(f"{kernel.source}\noffset = {text}"))
    lines = [line for line in ast.walk(program) if isinstance(line, ast.Assign)]
    values = {ast.unparse(line.targets[0]): ast.unparse(line.value) for line in lines}

    def value(name: str, element: int) -> int:
        if name == "xindex":
            return element
        code = compile(values[name], kernel.name, "eval")
        return int(eval(code, {}, {used: value(used, element) for used in code.co_names}))

    return [value("offset", element) for element in elements]


def reproduce() -> None:
    import torch
    from torch.nn.functional import dropout
    from torch.utils.checkpoint import checkpoint

    from torch_forwardfix import generation

    def transposed(x: torch.Tensor) -> torch.Tensor:
        return dropout(x.transpose(1, 2).contiguous(), 0.5).transpose(1, 2).contiguous()

    def biased(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return dropout((x + bias).relu(), 0.5)

    def checkpointed(x: torch.Tensor, bias: torch.Tensor) -> Any:
        return checkpoint(biased, x, bias, use_reentrant=False)

    device = "cuda" if generation.gpu() else "cpu"
    channels = torch.ones(8, 64, 4096, device=device)
    x, bias = (torch.ones(*shape, device=device, requires_grad=True) for shape in ((64, 256), (256,)))
    seen = []
    if generation.gpu():
        mask = torch.compile(transposed)(channels) != 0
        same = (mask[:, 0::4] == mask[:, 1::4]).double().mean().item()
        if same > 0.75:
            seen.append(f"neighbouring channels share {same:.0%} of their mask, not 50%")
        result = torch.compile(checkpointed)(x, bias)
        result.sum().backward()
        differ = ((result != 0) != (x.grad != 0)).double().mean().item()
        if differ:
            seen.append(f"the mask of the backward differs from that of the forward in {differ:.0%} of the elements")
    else:
        for kernel in generation.generate(transposed, channels).kernels:
            for call in kernel.calls("triton_helpers.rand4x"):
                elements = offsets(kernel, call[1], range(4))
                if elements != [0, 1, 2, 3]:
                    seen.append(f"rand4x draws for neighbours, but these are the elements {elements} of the mask")
        kernels = generation.generate(checkpointed, x, bias, backward=True).kernels
        forward, backward = (draws(kernel for kernel in kernels if kernel.backward is side) for side in (False, True))
        if not forward or not backward:
            raise RuntimeError("no mask is drawn, or it is not computed again")
        if forward.keys() != backward.keys():
            seen.append(f"{list(forward)} draws a mask and {list(backward)} other numbers where it is computed again")
    if seen:
        raise BugPresent("; ".join(seen))


FIX = Fix(
    id="rand4x-dropout",
    title="dropout on a GPU: channels share their mask, and activation checkpointing gives the backward another one",
    kind="wrong-result",
    upstream=("pytorch/pytorch#198333", "pytorch/pytorch#184377"),
    affects={"torch": ">=2.13.0.dev0,<2.15.0rc99"},
    fixed_in="2.15.0",
    targets=(f"torch._inductor.codegen.triton:TritonOverrides.{_FOUR_TIMES}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
