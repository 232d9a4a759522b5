"""Compiled scatters and ``index_add`` into a single element add too much on a GPU: padding is added as well.

A kernel works in blocks of a power of two; the lanes past the end are masked. Where the place that is written to is a
constant, inductor leaves the mask out: it does not matter to a store of one value, but ``tl.atomic_add`` then adds once
for each lane of padding. ``(x + bias).sum()`` written as a scatter, counting by ``index_add`` of ones, histograms with
one bin: the result is off by padding times the broadcast value. In kernels of two dimensions a value that is the same
for a whole block is added once for all of it.

Upstream masks atomic additions at constant places since 2.13 (pytorch#178871, #179833). The patch adds these masks to
what the original ``indexing`` returns for such a store, and gives the value the shape of the block.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_INDEXING = "TritonKernel.indexing"
_STORE = "TritonKernel.store"


def is_present(module: ModuleType) -> bool | str:
    indexing = next(code_objects(lookup(module, _INDEXING)))
    if "mask_constant_index" in indexing.co_varnames:
        return False
    if "filter_masks" not in indexing.co_names:
        return f"{_INDEXING} no longer filters masks"
    store = next(code_objects(lookup(module, _STORE)))
    return "atomic_add" in store.co_consts or f"{_STORE} no longer writes atomic additions"


def apply(module: ModuleType) -> None:
    sympy: Any = module.sympy

    def is_constant(index: Any) -> bool:
        return isinstance(index, (int, sympy.Integer))

    def add_whole_blocks(original: Any) -> Any:
        def store(self: Any, name: str, index: Any, value: Any, mode: Any = None) -> Any:
            if mode != "atomic_add":
                return original(self, name, index, value, mode)
            block = tuple(map(str, self.dense_size_list()))
            shape = getattr(value, "shape", block)
            if is_constant(index) and len(block) > 1 and shape is not None and tuple(map(str, shape)) != block:
                text = f"tl.broadcast_to({value}, {self.dense_size_str()})"
                value = self.cse.generate(self.compute, text, dtype=value.dtype, shape=block)
            self._adds_atomically = True
            try:
                return original(self, name, index, value, mode)
            finally:
                self._adds_atomically = False

        return store

    def mask_atomic_additions(original: Any) -> Any:
        def indexing(self: Any, *arguments: Any, **named: Any) -> Any:
            options = original(self, *arguments, **named)
            # Templates pass a mask or a shape of their own.
            own = named.get("override_mask") or named.get("copy_shape")
            if getattr(self, "_adds_atomically", False) and not own and is_constant(options.index):
                options.mask_vars.update(f"{tree.prefix}mask" for tree in self.active_range_trees())
                self.filter_masks(options.mask_vars)
            return options

        return indexing

    wrap(module.TritonKernel, "store", add_whole_blocks)
    wrap(module.TritonKernel, "indexing", mask_atomic_additions)


def reproduce() -> None:
    """On a GPU it compares with eager in float64; without one it reads the kernel that a GPU would get."""
    import torch

    from torch_forwardfix import generation

    def total(x: torch.Tensor, bias: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros(1, 1, device=x.device, dtype=x.dtype)
        return zero.scatter_reduce(0, index.unsqueeze(-1).expand_as(x), x + bias, "sum")

    inputs = torch.ones(5, 1), torch.ones(1), torch.zeros(5, dtype=torch.long)
    if generation.gpu():
        result = torch.compile(total)(*(tensor.cuda() for tensor in inputs)).item()
        if result != 10.0:
            raise BugPresent(f"5 values of 2 scattered to one place add up to {result}")
        return
    kernels = generation.generate(total, *inputs).kernels
    masks = [mask for kernel in kernels for _, _, mask, *_ in kernel.calls("tl.atomic_add")]
    if masks == ["None"]:
        raise BugPresent("the kernel adds to one place without a mask: tl.atomic_add(..., None)")
    if masks != ["xmask"]:
        raise RuntimeError(f"the masks of the atomic additions are {masks}")


FIX = Fix(
    id="atomic-add-mask",
    title="compiled scatter or index_add into a single element gives a wrong sum on a GPU",
    kind="wrong-result",
    upstream=("pytorch/pytorch#178871", "pytorch/pytorch#179833"),
    affects={"torch": ">=2.9.0.dev0,<2.13.0rc99"},
    fixed_in="2.13.0",
    targets=(f"torch._inductor.codegen.triton:{_STORE}", f"torch._inductor.codegen.triton:{_INDEXING}"),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
