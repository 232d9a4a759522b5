"""``key is None`` on a slice compiles once more for each length, and fails under ``mark_dynamic``.

Many a ``__getitem__`` asks ``key is None`` or ``key is ...`` before it indexes a tensor. Which slice it is does not
matter then: up to 2.12 dynamo answered without looking into it. Since 2.13 it compares what both sides have as Python
constants, and to make a constant of a slice it fixes its bounds, with a guard on each. Every other length is another
compilation, and at the limit of eight the function runs eagerly; with a bound that was marked dynamic the first
compilation ends with ConstraintViolationError.

The comparison by constants is that of pytorch#177720; no report of what it does to slices was found, and 2.15 has it
still. A slice and something that is no slice are never the same object, whatever the bounds: the patch says so without
asking for them. Whatever else is compared, two slices among it, goes to torch.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_PROTOCOL = "torch._dynamo.variables.object_protocol"
_BUILTIN = "torch._dynamo.variables.builtin"
_COMPARE = "vt_identity_compare"
_VALUE = "get_real_python_backed_value"


def is_present(module: ModuleType) -> bool | str:
    if _VALUE not in lookup(module, _COMPARE).__code__.co_names:
        return f"{_COMPARE} no longer compares values"
    value = lookup(module, f"VariableTracker.{_VALUE}")
    return any("as_python_constant" in code.co_names for code in code_objects(value))


def apply(module: ModuleType) -> None:
    wrap(module, _COMPARE, _without_bounds)


def _without_bounds(original: Any) -> Any:
    def vt_identity_compare(left: Any, right: Any) -> Any:
        from torch._dynamo.variables import ConstantVariable

        if left is not right:
            for one, other in ((left, right), (right, left)):
                if _is_dynamic_slice(one) and not _is_slice(other):
                    other.get_real_python_backed_value()  # for the guards that it sets
                    return ConstantVariable.create(False)
        return original(left, right)

    return vt_identity_compare


def _is_slice(variable: Any) -> bool:
    from torch._dynamo.variables import SliceVariable

    return isinstance(variable.realize(), SliceVariable)


def _is_dynamic_slice(variable: Any) -> bool:
    from torch._dynamo.variables import ConstantVariable

    return _is_slice(variable) and not all(
        item.is_realized() and isinstance(item.realize(), ConstantVariable) for item in variable.realize().items
    )


def reproduce() -> None:
    import torch
    import torch._dynamo

    def first(x: torch.Tensor, length: int) -> torch.Tensor:
        key = slice(length)
        return x if key is None else x[key] * 2

    def graphs_for(lengths: int) -> int:
        torch._dynamo.reset()
        graphs = []

        def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(first, backend=count)
        x = torch.arange(20.0)
        for length in range(5, 5 + lengths):
            result = compiled(x, length)
            if not torch.equal(result, first(x, length)):
                raise BugPresent(f"the first {length} are {result}, in eager {first(x, length)}")
        return len(graphs)

    few, many = graphs_for(3), graphs_for(6)
    if few > 2 or many > 2:
        raise BugPresent(f"slices of 3 lengths were compiled {few} times, of 6 lengths {many} times")


FIX = Fix(
    id="slice-recompile",
    title="one compilation for each length of a slice that is compared with None or ...",
    kind="startup",
    upstream=("pytorch/pytorch#177720",),
    affects={"torch": ">=2.13.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(f"{_PROTOCOL}:{_COMPARE}", f"{_BUILTIN}:{_COMPARE}"),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
