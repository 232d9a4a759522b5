"""Gradients through ``diagonal_scatter``, ``select_scatter`` and ``slice_scatter`` become zero.

The backward of ``torch.diagonal_scatter(x, src).sum()`` scatters zeros into the gradient of the sum, which is one
number, expanded (stride 0). Eager clones such a base into real memory: ``at::native::clone_preserve_strides`` keeps no
strides that overlap. Its Python twin, which tells the compiler the layout of the result, kept them. Inductor believed
it and laid the whole gradient out in one element: ``x.grad`` was all 0, or all 1.

Upstream gave the meta kernels of ``slice_scatter`` and ``select_scatter`` the missing case in 2.12 and
``diagonal_scatter`` one in 2.13 (pytorch#182012, #180164). The kernels are held by the dispatcher, out of reach, but
they look ``clone_preserve_strides`` up when they run. The patch clones plainly there, for these callers alone: custom
operators that mutate an expanded argument, for one, rely on the strides.
"""

from __future__ import annotations

import inspect
import sys
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import lookup, wrap

if TYPE_CHECKING:
    import torch

_CLONE = "clone_preserve_strides"


def is_present(module: ModuleType) -> bool | str:
    if list(inspect.signature(lookup(module, _CLONE)).parameters) != ["x"]:
        return f"{_CLONE} no longer takes a tensor alone"
    return bool(_unguarded_kernels())


def _unguarded_kernels() -> set[CodeType]:
    import torch._meta_registrations as meta
    import torch._refs as refs

    kernels = [lookup(meta, "meta_select_scatter"), lookup(meta, "meta_slice_scatter")]
    # Where there is no meta kernel, the reference serves as one.
    kernels.append(vars(meta).get("meta_diagonal_scatter") or lookup(refs, "diagonal_scatter"))
    codes = {inspect.unwrap(kernel).__code__ for kernel in kernels}
    return {code for code in codes if _CLONE in code.co_names}


def apply(module: ModuleType) -> None:
    kernels = _unguarded_kernels()

    def materialize_overlap(original: Any) -> Any:
        def clone_preserve_strides(x: torch.Tensor) -> torch.Tensor:
            if sys._getframe(1).f_code in kernels and _overlaps(x):
                return x.clone()
            cloned: torch.Tensor = original(x)
            return cloned

        return clone_preserve_strides

    wrap(module, _CLONE, materialize_overlap)


def _overlaps(x: torch.Tensor) -> bool:
    import torch
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    # Symbolic strides are none of expand's; to ask about them could add guards. Upstream leaves out what is unbacked.
    expanded = any(isinstance(stride, int) and stride == 0 for stride in x.stride())
    return expanded and not free_unbacked_symbols(x) and torch._debug_has_internal_overlap(x) == 1


def reproduce() -> None:
    import torch

    def scatter(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        diagonal = torch.diagonal_scatter(x, source).sum()
        row = torch.select_scatter(y, source, 0, 1).sum()
        rows = torch.slice_scatter(z, source[None], 0, 2, 3).sum()
        return diagonal + row + rows

    x, y, z = (torch.arange(16.0).reshape(4, 4).requires_grad_() for _ in range(3))
    source = torch.ones(4)
    compiled = torch.autograd.grad(torch.compile(scatter)(x, y, z, source), (x, y, z))
    expected = torch.autograd.grad(scatter(x, y, z, source), (x, y, z))
    names = ("diagonal_scatter", "select_scatter", "slice_scatter")
    for name, ours, eager in zip(names, compiled, expected, strict=True):
        if not torch.equal(ours, eager):
            raise BugPresent(f"the gradient through {name} sums to {ours.sum()}, in eager to {eager.sum()}")


FIX = Fix(
    id="scatter-backward-zero",
    title="gradients through diagonal_scatter, select_scatter and slice_scatter become zero",
    kind="wrong-result",
    upstream=("pytorch/pytorch#182012", "pytorch/pytorch#180164"),
    affects={"torch": ">=2.9.0.dev0,<2.13.0rc99"},
    fixed_in="2.13.0",
    targets=(f"torch._prims_common:{_CLONE}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
