"""Compiling for a GPU with dynamic shapes dies with "CantSplit: 8*s97 + 8 not divisible by s97 + 1".

Inductor fuses a reduction with the pointwise code around it into one kernel, and splits the flat range of the one along
the other. That needs ``SizeVarAllocator.statically_known_multiple_of(8*s + 8, s + 1)``, which any dimension brings with
it that is a sum: a class token put before the patches, a padded or concatenated batch. Since 2.12 the function asks
torch's own ``Mod`` (pytorch#175755, #177214), which finds no common factor in a sum. It says False, and where the
fusion was decided before the loops were merged, code generation ends in CantSplit.

Upstream looks for the common factor again since 2.14 (pytorch#184566). The patch does it where the original says False:
a greatest common divisor that is the divisor itself is proof for every value of the symbols. Constant divisors and
expressions in more than 20 symbols keep the answer of the original, as they do upstream.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_MULTIPLE = "SizeVarAllocator.statically_known_multiple_of"
_MOST_SYMBOLS = 20


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _MULTIPLE)) for name in code.co_names}
    if any(name.endswith("gcd") for name in names):
        return False
    if "statically_known_true" not in names:
        return f"{_MULTIPLE} no longer asks statically_known_true"
    return "Mod" in names  # up to 2.11 it is the % of sympy, which finds common factors


def apply(module: ModuleType) -> None:
    from torch.utils._sympy.functions import simple_floordiv_gcd

    sympy: Any = module.sympy

    def is_fraction(part: Any) -> bool:
        # A factor that (s + 1)/2 and s + 1 have in common proves nothing.
        return (part.is_Number and not part.is_Integer) or (part.is_Pow and not part.exp.is_positive)

    def look_for_a_common_factor(original: Any) -> Any:
        def statically_known_multiple_of(self: Any, numerator: Any, denominator: Any) -> bool:
            if original(self, numerator, denominator):
                return True
            if isinstance(denominator, (int, sympy.Integer)) or isinstance(numerator, (int, sympy.Integer)):
                return False
            if len(numerator.free_symbols | denominator.free_symbols) > _MOST_SYMBOLS:
                return False
            if any(is_fraction(part) for side in (numerator, denominator) for part in sympy.preorder_traversal(side)):
                return False
            try:
                # The first is cheap and sees into no sum but the numerator.
                for common_factor in (simple_floordiv_gcd, sympy.gcd):
                    rest = common_factor(numerator, denominator) - denominator
                    if rest == 0 or self.simplify(rest) == 0:
                        return True
            except sympy.PolynomialError:
                pass
            return False

        return statically_known_multiple_of

    wrap(module.SizeVarAllocator, "statically_known_multiple_of", look_for_a_common_factor)


def reproduce() -> None:
    """On a GPU it compares with eager; without one, the kernel that a GPU would get is written and not run."""
    import torch

    from torch_forwardfix import generation

    def with_class_token(patches: torch.Tensor, weight: torch.Tensor) -> Any:
        sequence = torch.cat([patches.new_ones(1, 8), patches]) @ weight
        return (sequence + 1).sum(-1), sequence * 3

    device = "cuda" if generation.gpu() else "cpu"
    inputs = torch.ones(24, 8, device=device), torch.ones(8, 8, device=device)
    try:
        if generation.gpu():
            compiled = torch.compile(with_class_token, dynamic=True)(*inputs)
            torch.testing.assert_close(compiled, with_class_token(*inputs))
        else:
            generation.generate(with_class_token, *inputs, dynamic=True)
    except Exception as error:
        if "CantSplit" in str(error):
            raise BugPresent(f"no code is generated: {str(error).splitlines()[0]}") from error
        raise


FIX = Fix(
    id="cantsplit-divisibility",
    title="torch.compile for a GPU dies with CantSplit when a dynamic dimension is a sum",
    kind="crash",
    upstream=("pytorch/pytorch#184566", "pytorch/pytorch#183696", "pytorch/pytorch#186426", "pytorch/pytorch#177214"),
    affects={"torch": ">=2.12.0.dev0,<2.14.0rc99"},
    fixed_in="2.14.0",
    targets=(f"torch._inductor.sizevars:{_MULTIPLE}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
