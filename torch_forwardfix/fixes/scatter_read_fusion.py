"""Compiled code reads a buffer in the very kernel that scatters into it, and sees sums that are not finished.

``index_add_``, ``scatter_add_`` and ``index_put(accumulate=True)`` into a dimension of size 1 (a batch that happens to
hold one graph, one segment, one expert) leave no index in the place that is written to. A read of the same place then
looks as if each element were read by the one that wrote it, and inductor writes a single kernel for both. But the sum
is made by all elements together: on a GPU a read of the result gets the zeros of before, and, on the CPU too, a read of
what was there before the addition gets what others have added already.

Upstream keeps reads of the result apart since 2.11 (pytorch#171493, #172301). Reads of what was there before are kept
apart since 2.12 (pytorch#174074, #175568) where a loop over the elements is left that the place does not depend on; not
where the place is the last dimension, as in a sum over everything: that loop is forgotten by then, in 2.15 as well. The
patch says no in the two questions that the scheduler asks before it fuses: for a store that is an atomic addition, and
for a mutation of fewer places than there are elements. It costs one more kernel there.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_AFTER = "Scheduler.fusable_read_and_write"
_BEFORE = "Scheduler.fusable_weak_dep"


def is_present(module: ModuleType) -> bool | str:
    for question in (_AFTER, _BEFORE):
        if not {"index", "free_symbol_is_type", "MemoryDep"} <= set(_names(module, question)):
            return f"{question} no longer compares the indices of memory dependencies"
    return _fuses_reads_after(module) or _fuses_reads_before(module)


def _names(module: ModuleType, question: str) -> tuple[str, ...]:
    return next(code_objects(lookup(module, question))).co_names


def _fuses_reads_after(module: ModuleType) -> bool:
    return "mode_requires_synchronization" not in _names(module, _AFTER)


def _fuses_reads_before(module: ModuleType) -> bool:
    return "get_numel" not in _names(module, _BEFORE)


def apply(module: ModuleType) -> None:
    from torch._inductor.utils import sympy_product
    from torch._inductor.virtualized import V

    memory: type = module.MemoryDep
    plain: Any = module.SchedulerNode

    def not_after_atomics(original: Any) -> Any:
        def fusable_read_and_write(self: Any, read: Any, write: Any) -> bool:
            if isinstance(read, memory) and write.mode is not None:
                return False
            fusable: bool = original(self, read, write)
            return fusable

        return fusable_read_and_write

    def not_before_many_to_one(original: Any) -> Any:
        def fusable_weak_dep(self: Any, weak_dep: Any, node1: Any, node2: Any) -> bool:
            # The original has made sure that there is one such write, and that it is a MemoryDep.
            return original(self, weak_dep, node1, node2) and all(
                V.graph.sizevars.statically_known_equals(write.get_numel(), sympy_product(node.get_ranges()[0]))
                for node in node2.get_nodes()
                if isinstance(node, plain)
                for write in node.read_writes.writes
                if write.name == weak_dep.mutating_buf
            )

        return fusable_weak_dep

    if _fuses_reads_after(module):
        wrap(module.Scheduler, "fusable_read_and_write", not_after_atomics)
    if _fuses_reads_before(module):
        wrap(module.Scheduler, "fusable_weak_dep", not_before_many_to_one)


def reproduce() -> None:
    """On a GPU it compares with eager in float64; without one it reads the kernels that a GPU would get."""
    import torch

    from torch_forwardfix import generation

    def share(x: torch.Tensor, index: torch.Tensor, total: torch.Tensor) -> Any:
        """The sum of each group, given back to its members."""
        return x - total.clone().index_add_(0, index, x)[index]

    def offset(x: torch.Tensor, index: torch.Tensor, total: torch.Tensor) -> Any:
        """What was there before, and the new sum in its place."""
        shifted = x - total
        return shifted, total.index_add_(0, index, x)

    for function, seen, columns in ((share, "after", (4,)), (offset, "before", (4,)), (offset, "before", ())):
        inputs = torch.ones(4096, *columns, dtype=torch.float64), torch.zeros(4096, dtype=torch.long)
        total = torch.ones(1, *columns, dtype=torch.float64)
        if generation.gpu():
            wanted = function(*inputs, total.clone())
            result = torch.compile(function)(*(tensor.cuda() for tensor in (*inputs, total.clone())))
            # Sums of whole numbers are exact in any order.
            if not all(map(torch.equal, map(torch.Tensor.cpu, _each(result)), _each(wanted))):
                raise BugPresent(f"a read of what was there {seen} index_add into a dimension of size 1 is wrong")
            continue
        for kernel in generation.generate(function, *inputs, total).kernels:
            # Two pointers into the same tensor where an input is changed in place.
            added = kernel.source.partition("'mutated_arg_names': [")[2].partition("]")[0]
            if any(f"'{call[0].partition(' ')[0]}'" in added for call in kernel.calls("tl.load")):
                raise BugPresent(f"the kernel that adds by tl.atomic_add reads what was there {seen} the addition")


def _each(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


FIX = Fix(
    id="scatter-read-fusion",
    title="compiled index_add or scatter_add into a dimension of size 1 is read before it is done",
    kind="wrong-result",
    upstream=(
        "pytorch/pytorch#171493",
        "pytorch/pytorch#172301",
        "pytorch/pytorch#191571",
        "pytorch/pytorch#174074",
        "pytorch/pytorch#175568",
    ),
    affects={"torch": ">=2.9.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(f"torch._inductor.scheduler:{_AFTER}", f"torch._inductor.scheduler:{_BEFORE}"),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
