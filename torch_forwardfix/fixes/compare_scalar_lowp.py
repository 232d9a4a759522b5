"""A bfloat16 or float16 tensor compared with a Python number: the number is not rounded, so masks differ from eager.

Eager brings the number to the dtype of the tensor before it compares: ``x > 0.1`` asks for more than 0.10009765625 if
``x`` is bfloat16. Inductor compares in float32, with 0.1 itself. Elements that lie on the threshold came out on the
other side of it: in masks, top-p and score thresholds, ``x == 0.1``, and in gradients of ``clamp``.

Upstream rounds numbers since 2.12, wherever ``promote_constants`` serves an operator that returns bool
(pytorch#173987, #175807). The patch does so where eager runs a comparison, and nowhere else. Comparisons that are part
of a decomposed operator stay as they were: on the CPU, the kernels for ``softshrink`` and for the gradient of
``threshold`` do not round, and were compiled right until upstream's change. Like upstream's, the patch does not reach
numbers that change from call to call, which dynamo makes symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_PROMOTE = "promote_constants"


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _PROMOTE)) for name in code.co_names}
    if not {"ExpandView", "Constant", "get_dtype"} <= names:
        return f"{_PROMOTE} no longer makes constants of a tensor's dtype"
    return not {"bfloat16", "float16"} <= names


def apply(module: ModuleType) -> None:
    torch = module.torch
    aten = torch.ops.aten
    comparisons = (aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge)

    def eager_compares(node: Any) -> bool:
        if node is None or getattr(node.target, "overloadpacket", None) not in comparisons:
            return False  # flex_attention and others hand the bodies they inline over under their own node
        origin = node.meta.get("original_aten")
        if origin is not None and getattr(origin, "overloadpacket", None) not in (*comparisons, aten.isin):
            return False
        # softshrink is taken apart before original_aten is noted
        called = node.meta.get("source_fn_stack") or [node.meta.get("torch_fn") or ("",)]
        return not str(called[-1][0]).startswith("softshrink")

    def round_numbers(original: Any) -> Any:
        def promote_constants(
            inputs: Sequence[Any], override_return_dtype: Any = None, *args: Any, **kwargs: Any
        ) -> Sequence[Any]:
            if override_return_dtype == torch.bool and eager_compares(getattr(module.V.graph, "current_node", None)):
                tensors = (module.TensorBox, module.ExpandView, module.ir.Constant)
                tensor = next((value for value in inputs if isinstance(value, tensors)), None)
                dtype = None if tensor is None else tensor.get_dtype()
                if dtype in (torch.bfloat16, torch.float16):
                    inputs = [_rounded(value, torch, dtype) for value in inputs]
            promoted: Sequence[Any] = original(inputs, override_return_dtype, *args, **kwargs)
            return promoted

        return promote_constants

    wrap(module, _PROMOTE, round_numbers)


def _rounded(value: Any, torch: Any, dtype: Any) -> Any:
    if not isinstance(value, (int, float)):
        return value
    rounded = torch.tensor(value, dtype=dtype, device="cpu").item()
    return value if rounded == value else rounded


def reproduce() -> None:
    import torch

    def masks(*tensors: torch.Tensor) -> list[torch.Tensor]:
        return [mask for x in tensors for mask in (x == 0.1, x > 0.1, x < 0.3, x >= 0.3)]

    tensors = [torch.tensor([0.1, 0.3, 1.0]).to(dtype) for dtype in (torch.bfloat16, torch.float16)]
    results, expected = torch.compile(masks)(*tensors), masks(*tensors)
    wrong = sum(int((result != mask).sum()) for result, mask in zip(results, expected, strict=True))
    if wrong:
        raise BugPresent(f"{wrong} of 24 comparisons with a number came out other than in eager")


FIX = Fix(
    id="compare-scalar-lowp",
    title="compiled comparisons of bfloat16 and float16 tensors with a number differ from eager",
    kind="wrong-result",
    upstream=("pytorch/pytorch#173987", "pytorch/pytorch#175807"),
    affects={"torch": ">=2.9.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    targets=(f"torch._inductor.lowering:{_PROMOTE}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
