"""A result shows what the function wrote into its argument later.

``y = x.index_put((index,), source); x.zero_(); return y`` returned zeros: ``y`` was built in the memory of ``x``, where
the zeros went afterwards. Inductor turns an operator into its in-place form on a graph input where that input receives
new contents at the end of the graph. Those need not be the operator's result, and then the result must not be looked at
any more. Nobody checked. The same happened to ``slice_scatter`` and its kin, and to a copy that was taken between two
mutations (``x.index_fill_(...); y = x.clone(); x.clamp_(...)``, or a custom operator in place of the first), since the
copy is removed first.

It is open upstream (pytorch#198094, proposed repair pytorch#198096). The patch acts after the pass has chosen: where a
result lives in a graph input that is overwritten before the last use of the result, the operator gets its functional
form back, and the argument of a custom operator its copy. Triton kernels that the user writes are beyond it: the pass
replaces their results at once.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

if TYPE_CHECKING:
    import torch

_PASS = "reinplace_inplaceable_ops_core"
_NEXT = "decompose_generalized_scatter"
_CLONED = "only_clone_these_tensors"


def is_present(module: ModuleType) -> bool | str:
    order = lookup(module, "reinplace_inplaceable_ops").__code__.co_names
    if _PASS not in order or order[-1] != _NEXT or not isinstance(lookup(module, "inplaceable_ops"), dict):
        return f"{_NEXT} no longer follows {_PASS}"
    if list(inspect.signature(lookup(module, _NEXT)).parameters) != ["graph"]:
        return f"{_NEXT} no longer takes a graph alone"
    # Another fix may have wrapped it.
    parts = {code.co_name for code in code_objects(inspect.unwrap(lookup(module, _PASS)))}
    # An upstream repair cannot be told from here; where there is one, the patch finds nothing to undo.
    return {"can_inplace", "any_use_of_views_after_node"} <= parts or f"{_PASS} chooses in another way"


def apply(module: ModuleType) -> None:
    def undo_overwritten(original: Any) -> Any:
        def decompose_generalized_scatter(graph: torch.fx.Graph) -> None:
            _Choices(module, graph).undo_overwritten()
            original(graph)

        return decompose_generalized_scatter

    wrap(module, _NEXT, undo_overwritten)


class _Choices:
    """What the pass made of a graph."""

    def __init__(self, module: ModuleType, graph: torch.fx.Graph) -> None:
        import torch

        self.storage_of = module.get_node_storage
        self.meta_only = module.META_ONLY_OPS
        self.functionalized = torch.ops.higher_order.auto_functionalized_v2
        # In-place operator to its functional form and the position of the argument that it writes to.
        self.undo = {
            entry.inplace_op: (functional, entry.mutated_arg)
            for functional, entry in module.inplaceable_ops.items()
            if isinstance(entry.mutated_arg, int)
        }
        self.nodes = list(graph.nodes)
        self.order = {node: place for place, node in enumerate(self.nodes)}
        self.overwrites: dict[torch.fx.Node, list[torch.fx.Node]] = {}
        for node in self.nodes:
            if node.target is torch.ops.aten.copy_.default and node.args[0].op in ("placeholder", "get_attr"):
                self.overwrites.setdefault(node.args[0], []).append(node)

    def undo_overwritten(self) -> None:
        for node in self.nodes if self.overwrites else ():
            if node.target in self.undo:
                functional, position = self.undo[node.target]
                if self.is_overwritten(node, node.args[position]):
                    node.target = functional
            elif node.target is self.functionalized:
                for index, base, result in list(self.reinplaced_bases(node)):
                    if self.is_overwritten(result, base):
                        node.meta[_CLONED] = sorted({*node.meta[_CLONED], index})

    def reinplaced_bases(self, node: torch.fx.Node) -> Iterator[tuple[int, torch.fx.Node, torch.fx.Node]]:
        """Yield number, base and result for what a custom operator mutates in place."""
        bases: Any = node.kwargs["_all_bases"]
        results = {user.args[1]: user for user in node.users if user.target is operator.getitem}
        for index, base in enumerate(bases):
            result = results.get(len(node.meta.get("val", ())) - len(bases) + index)
            if result is not None and index not in node.meta.get(_CLONED, range(len(bases))):
                yield index, base, result

    def is_overwritten(self, result: torch.fx.Node, base: Any) -> bool:
        """Whether ``result``, which lives in ``base``, is used after ``base`` got other contents."""
        last_use = None
        for overwrite in () if isinstance(base, list | tuple) else self.overwrites.get(base, ()):
            if self.order[overwrite] < self.order[result] or self.is_same(overwrite.args[1], result):
                continue
            if last_use is None:
                last_use = self.last_use(result)
            if self.order[overwrite] < last_use:
                return True
        return False

    def is_same(self, node: Any, result: torch.fx.Node) -> bool:
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        if node is result:
            return True
        if not self.is_view(node, result):
            return False
        ours, theirs = node.meta["val"], result.meta["val"]
        layouts = zip(
            (*ours.size(), *ours.stride(), ours.storage_offset()),
            (*theirs.size(), *theirs.stride(), theirs.storage_offset()),
            strict=False,
        )
        return ours.dim() == theirs.dim() and all(statically_known_true(one == other) for one, other in layouts)

    def last_use(self, result: torch.fx.Node) -> int:
        """The place of the last node that reads the memory of ``result``, through a view or what was put into it."""
        last, seen, pending = -1, {result}, [result]
        while pending:
            node = pending.pop()
            for user in node.users:
                found = [user] if self.is_view(user, node) else []
                if not found and user.target not in self.meta_only:
                    last = max(last, self.order[user])
                    if user.target in self.undo and user.args[self.undo[user.target][1]] is node:
                        found = [user]
                    elif user.target is self.functionalized:
                        found = [other for _, base, other in self.reinplaced_bases(user) if base is node]
                pending += [other for other in found if other not in seen]
                seen.update(found)
        return last

    def is_view(self, one: torch.fx.Node, node: torch.fx.Node) -> bool:
        storage = self.storage_of(one)
        return storage is not None and bool(storage == self.storage_of(node))


def reproduce() -> None:
    import torch

    def update(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        put = x.index_put((index,), z)
        x.zero_()
        scattered = torch.slice_scatter(y, z, 0, 1, 3)
        y.fill_(2)
        return put, scattered

    def arguments() -> list[torch.Tensor]:
        return [torch.ones(4, 4), torch.ones(4, 4), torch.full((2, 4), 5.0), torch.tensor([0, 2])]

    compiled, expected = torch.compile(update)(*arguments()), update(*arguments())
    for name, ours, eager in zip(("index_put", "slice_scatter"), compiled, expected, strict=True):
        if not torch.equal(ours, eager):
            raise BugPresent(f"compiled {name} gives {ours.tolist()}, eager {eager.tolist()}")


FIX = Fix(
    id="reinplace-overwrite",
    title="the result of an index_put or scatter shows what is written into its argument afterwards",
    kind="wrong-result",
    upstream=("pytorch/pytorch#198094", "pytorch/pytorch#198096"),
    affects={"torch": ">=2.9.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(f"torch._inductor.fx_passes.reinplace:{_NEXT}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
