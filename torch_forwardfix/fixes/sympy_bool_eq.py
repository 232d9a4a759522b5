"""Comparing two conditions for equality kills the compile.

``(i > 2) == (i < n)``, where both sides follow from positions or constants alone, ended with "TypeError: A Boolean
argument can only be used in Eq and Ne; all other relationals expect real expressions". Masks written that way hit it,
``isclose`` of constant booleans does, and ``!=`` as well.

Before inductor generates code it works out the range of each value. A condition has the range "false to true", and
``SymPyValueRangeAnalysis.eq`` asked whether two ranges are disjoint with ``<`` and ``>``, which sympy has not for
booleans. Upstream counts booleans as 0 and 1 there since 2.14 (pytorch#191886; #188249 was another attempt, that took
a boolean and a number for unequal without looking). The patch does the same before it calls the original.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_EQ = "SymPyValueRangeAnalysis.eq"
_TO_INT = "_bool_to_int"


def is_present(module: ModuleType) -> bool | str:
    method = lookup(module, _EQ)
    names = {name for code in code_objects(method) for name in code.co_names}
    if _TO_INT in names or "is_bool" in names:
        return False
    if not isinstance(method, staticmethod) or not {"lower", "upper"} <= names:
        return f"{_EQ} no longer compares the bounds"
    lookup(module, f"SymPyValueRangeAnalysis.{_TO_INT}")
    return True


def apply(module: ModuleType) -> None:
    analysis, ranges = module.SymPyValueRangeAnalysis, module.ValueRanges

    def compare_as_numbers(original: Any) -> Any:
        to_int = getattr(analysis, _TO_INT)

        def eq(a: Any, b: Any) -> Any:
            a, b = ranges.wrap(a), ranges.wrap(b)
            return original(to_int(a) if a.is_bool else a, to_int(b) if b.is_bool else b)

        return eq

    wrap(analysis, "eq", compare_as_numbers)


def reproduce() -> None:
    import torch

    def positions(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        i = torch.arange(x.shape[0])
        return (i > 2) == (i < 5), (i > 2) != (i < 5)

    def constants(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        flag = torch.full_like(torch.empty(4, 4), 0.9).any(1)
        return (torch.isclose(torch.where(flag, flag, flag), flag),)

    for function in positions, constants:
        x = torch.zeros(8)
        # A precompiled header would cost more than these small kernels.
        compiled = torch.compile(function, dynamic=True, options={"cpp_cache_precompile_headers": False})
        try:
            results = compiled(x)
        except Exception as error:
            if "A Boolean argument can only be used in Eq and Ne" in str(error):
                raise BugPresent(f"torch.compile of {function.__name__} died of a comparison of conditions") from error
            raise
        if not all(map(torch.equal, results, function(x))):
            raise BugPresent(f"compiled {results} differs from eager {function(x)}")


FIX = Fix(
    id="sympy-bool-eq",
    title="torch.compile dies with TypeError where two conditions are compared for equality",
    kind="crash",
    upstream=("pytorch/pytorch#188231", "pytorch/pytorch#191886"),
    affects={"torch": ">=2.9.0.dev0,<2.14.0rc99"},
    fixed_in="2.14.0",
    targets=(f"torch.utils._sympy.value_ranges:{_EQ}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
