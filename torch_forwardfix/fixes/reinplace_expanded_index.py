"""Writing through an index into an expanded tensor changes all of its rows.

``row.expand(4, 5).index_add(0, index, source)`` makes a new tensor, and so do ``index_copy``, ``index_put``,
``diagonal_scatter`` and their kin. Inductor turns such an operator into its in-place form where nobody looks at the old
tensor afterwards. It did so for an expanded one (stride 0) too, whose rows are one piece of memory: what was written
to one row appeared in all of them. In a backward, which works on expanded gradients, the gradients were wrong by a
factor.

Upstream leaves operators on overlapping memory alone since 2.14 (pytorch#183986, #184488, #188084). There the check
sits inside the pass. The patch hides these operators from the pass while it runs, so they keep their functional form.
Custom operators that mutate their arguments are not meant: eager, too, lets them write into overlapping memory.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch_forwardfix.fix import BugPresent, Drifted, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

if TYPE_CHECKING:
    import torch

_PASS = "reinplace_inplaceable_ops_core"


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _PASS)) for name in code.co_names}
    if "inplaceable_ops" not in names or not isinstance(lookup(module, "inplaceable_ops"), dict):
        return f"{_PASS} no longer goes by inplaceable_ops"
    return "_debug_has_internal_overlap" not in names


class _Hidden:
    """Stands in for an operator: the pass knows those that it reinplaces by identity."""

    def __init__(self, operator: Any) -> None:
        self.operator = operator

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.operator(*args, **kwargs)


def apply(module: ModuleType) -> None:
    if not hasattr(vars(module).get("InplaceableOp"), "__dataclass_fields__"):
        raise Drifted("InplaceableOp is not what names the argument that an operator mutates")

    def hide_writes_to_overlap(original: Any) -> Any:
        def reinplace_inplaceable_ops_core(graph: Any) -> None:
            hidden = [node for node in graph.nodes if _writes_to_overlap(module, node)]
            for node in hidden:
                node.target = _Hidden(node.target)
            try:
                original(graph)
            finally:
                for node in hidden:
                    node.target = node.target.operator

        return reinplace_inplaceable_ops_core

    wrap(module, _PASS, hide_writes_to_overlap)


def _writes_to_overlap(module: ModuleType, node: Any) -> bool:
    import torch

    operator = module.inplaceable_ops.get(node.target)
    if operator is None:
        return False
    positions = operator.mutated_arg  # one before 2.11, from then on one or several
    for position in (positions,) if isinstance(positions, int) else positions:
        base = node.args[position]
        for tensor in base if isinstance(base, list | tuple) else (base,):
            value = tensor.meta.get("val")
            if isinstance(value, torch.Tensor) and _overlaps(value):
                return True
    return False


def _overlaps(tensor: torch.Tensor) -> bool:
    import torch

    # Symbolic strides are none of expand's; to ask about them could add guards.
    expanded = any(isinstance(stride, int) and stride == 0 for stride in tensor.stride())
    return expanded and torch._debug_has_internal_overlap(tensor) == 1


def reproduce() -> None:
    import torch

    def write(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            (x * 2).expand(4, 5).index_add(0, index, source),
            (x * 3).expand(4, 5).index_copy(0, index, source),
            (x * 4).expand(4, 5).index_put((index,), source),
        )

    x, index, source = torch.ones(1, 5), torch.tensor([0, 2]), torch.arange(10.0).reshape(2, 5)
    names = ("index_add", "index_copy", "index_put")
    compiled, expected = torch.compile(write)(x, index, source), write(x, index, source)
    for name, ours, eager in zip(names, compiled, expected, strict=True):
        if not torch.equal(ours, eager):
            raise BugPresent(f"compiled {name} gives {ours.tolist()}, eager {eager.tolist()}")


FIX = Fix(
    id="reinplace-expanded-index",
    title="index_add, index_copy and index_put on an expanded tensor give wrong values",
    kind="wrong-result",
    upstream=("pytorch/pytorch#184488", "pytorch/pytorch#183986", "pytorch/pytorch#188084"),
    affects={"torch": ">=2.9.0.dev0,<2.14.0rc99"},
    fixed_in="2.14.0",
    targets=(f"torch._inductor.fx_passes.reinplace:{_PASS}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
