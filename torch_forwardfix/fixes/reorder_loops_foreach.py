"""Compiling ``torch._foreach_*`` code for a GPU (optimizers) dies with an AssertionError in reorder_loops_by_dep_pair.

After fusion inductor tries once more, with the loops of one node in the order of another. It asks every fused node, the
groups of foreach kernels among them, and ``FusedSchedulerNode.reorder_loops_by_dep_pair`` asserts that what is in there
are plain nodes. In a group they are fused nodes themselves as soon as two foreach operations were fused, and a plain
``x.t().contiguous()`` of such a result, as Muon and other matrix optimizers have it, ends the compile.

Upstream does not reorder such groups since 2.12 (pytorch#176849). The patch says the same before the original is asked.
2.9 has the bug where ``loop_ordering_after_fusion`` is switched on, which is the default from 2.10 on.
"""

from __future__ import annotations

import dis
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_REORDER = "FusedSchedulerNode.reorder_loops_by_dep_pair"
_SHAPES = ((64, 32), (16, 8)), ((32, 64), (8, 16))


def is_present(module: ModuleType) -> bool | str:
    code = next(code_objects(lookup(module, _REORDER)))
    if not {"snodes", "SchedulerNode", "apply_new_loop_order"} <= set(code.co_names):
        return f"{_REORDER} no longer reorders node by node"
    # 2.9 to 2.11 assert in both of their loops over the nodes and in between; upstream's repair took the first away.
    assertions = _assertions(code)
    if assertions not in (2, 3):
        return f"{_REORDER} makes {assertions} assertions"
    return assertions == 3


def _assertions(code: Any) -> int:
    # LOAD_COMMON_CONSTANT from Python 3.14 on, and the plain name where the code raises by itself.
    return sum(
        instruction.opname == "LOAD_ASSERTION_ERROR" or instruction.argval in ("AssertionError", AssertionError)
        for instruction in dis.get_instructions(code)
    )


def apply(module: ModuleType) -> None:
    plain: type = module.SchedulerNode

    def leave_groups_of_fused_nodes(original: Any) -> Any:
        def reorder_loops_by_dep_pair(self: Any, self_dep: Any, other_dep: Any) -> bool:
            if not all(isinstance(node, plain) for node in self.snodes):
                return False
            reordered: bool = original(self, self_dep, other_dep)
            return reordered

        return reorder_loops_by_dep_pair

    wrap(module.FusedSchedulerNode, "reorder_loops_by_dep_pair", leave_groups_of_fused_nodes)


def reproduce() -> None:
    """On a GPU it compares with eager; without one, the kernel that a GPU would get is written and not run."""
    import traceback

    import torch

    from torch_forwardfix import generation

    def updates(momenta: list[torch.Tensor], gradients: list[torch.Tensor]) -> Any:
        sums = torch._foreach_add(momenta, [gradient.t() for gradient in gradients])
        doubles = torch._foreach_mul(sums, 2.0)
        return sums, doubles, [double.t().contiguous() for double in doubles]

    device = "cuda" if generation.gpu() else "cpu"
    inputs = [[torch.ones(shape, device=device) for shape in shapes] for shapes in _SHAPES]
    options = {"loop_ordering_after_fusion": True}
    try:
        if generation.gpu():
            compiled = torch.compile(updates, dynamic=False, options=options)(*inputs)
            torch.testing.assert_close(compiled, updates(*inputs))
        else:
            generation.generate(updates, *inputs, dynamic=False, options=options)
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        if "in reorder_loops_by_dep_pair" in trace and "AssertionError" in trace:
            raise BugPresent("no code is generated: AssertionError in reorder_loops_by_dep_pair") from error
        raise


FIX = Fix(
    id="reorder-loops-foreach",
    title="torch.compile for a GPU dies with an AssertionError when torch._foreach_* results are transposed",
    kind="crash",
    upstream=("pytorch/pytorch#176591", "pytorch/pytorch#176849"),
    affects={"torch": ">=2.9.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    targets=(f"torch._inductor.scheduler:{_REORDER}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
