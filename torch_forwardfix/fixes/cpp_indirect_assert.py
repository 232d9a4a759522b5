"""A gather under a scalar mask does not compile: "no matching function for call to VecMask<...>::VecMask(bool&)".

Inductor's C++ backend checks the index of a gather in the vectorised loop, and lets the check pass where the load is
masked off. In ``F.pad(table[index], (0, 0, 1, 0))`` the mask depends on the outer loop alone and stays one ``bool``
(an ``int`` in Qwen-VL's rotary embedding), while the index is a vector. ``CppVecKernel.indirect_assert`` wrote
``VecMask<int64_t,2>(tmp3)`` for it, a constructor that does not exist, and the whole compile ended in CppCompileError.

Upstream writes ``VecMask<int64_t,2>::from(tmp3)`` since 2.12 (pytorch#178148). The patch hands the method a mask that
reads so and says that it is a vector already, which the method then uses as it is: the text is that of 2.12. Every
other check, with a vector mask, without a mask, on a scalar index, is left to the original.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_CHECK = "CppVecKernel.indirect_assert"


class _VectorMask(str):
    """What the method asks of a mask: its text, and whether it is a vector."""

    is_vec = True


def is_present(module: ModuleType) -> bool | str:
    constants = [constant for code in code_objects(lookup(module, _CHECK)) for constant in code.co_consts]
    if ") | ~(" not in constants:
        return f"{_CHECK} no longer lets a masked check pass"
    return "::from(" not in constants


def apply(module: ModuleType) -> None:
    variable: Any = module.CppCSEVariable

    def broadcast_scalar_mask(original: Any) -> Any:
        def indirect_assert(self: Any, var: Any, lower: Any, upper: Any, mask: Any = None) -> Any:
            if isinstance(mask, variable) and not mask.is_vec and var.is_vec:
                mask = _VectorMask(f"{self._get_mask_type(var.dtype)}::from({mask})")
            return original(self, var, lower, upper, mask)

        return indirect_assert

    wrap(module.CppVecKernel, "indirect_assert", broadcast_scalar_mask)


def reproduce() -> None:
    import torch
    import torch.nn.functional as F

    def padded_gather(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return F.pad(table[index], (0, 0, 1, 0))

    table = torch.arange(8.0)
    index = torch.arange(160).reshape(4, 40) % 8
    # Without the precompiled header, which costs more than these two kernels.
    compiled = torch.compile(padded_gather, dynamic=False, options={"cpp_cache_precompile_headers": False})
    try:
        result = compiled(table, index)
    except Exception as error:
        # Without a C++ compiler torch says that it found none; that is not this bug.
        line = next((line for line in str(error).splitlines() if "no matching function for call to" in line), "")
        if "VecMask" in line:
            raise BugPresent(f"the generated C++ code does not compile: {line[line.index('no matching') :]}") from error
        raise
    if not torch.equal(result, padded_gather(table, index)):
        raise BugPresent(f"compiled {result} differs from eager {padded_gather(table, index)}")


FIX = Fix(
    id="cpp-indirect-assert",
    title="torch.compile on the CPU dies with CppCompileError (VecMask) in a gather under a scalar mask",
    kind="crash",
    upstream=("pytorch/pytorch#178148", "pytorch/pytorch#178136", "vllm-project/vllm#40972"),
    affects={"torch": ">=2.9.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    targets=(f"torch._inductor.codegen.cpp:{_CHECK}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
