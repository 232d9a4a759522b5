"""A constant viewed as a dtype of another size is taken for uniform: 1+0j becomes 1+1j.

Inductor folds constants that hold one value everywhere: it computes with a single element and fills the result with
what comes out. A view as a dtype of another size makes two elements of one or one of two, which are not uniform any
more, or do not fit into a view at all. Inductor adds complex tensors through such a view, so ``x + torch.ones(n,
dtype=torch.complex64)`` added 1+1j; ``torch.full((4,), 5).view(torch.int32)`` was 5 everywhere instead of 5, 0, 5, 0;
and ``torch.ones(4).view(torch.float64)`` did not compile.

Upstream gave up folding such views, first for those of 0-d tensors (pytorch#172181, in 2.11), then for all
(pytorch#174891, #177389, in 2.12). The patch does the latter from outside.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_DEDUCE = "UniformValueConstantFolder._deduce_value"


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _DEDUCE)) for name in code.co_names}
    if not {"view", "dtype", "run_node", "unknown_value"} <= names:
        return f"{_DEDUCE} no longer runs views as another dtype"
    return "element_size" not in names or "ndim" in names  # 2.11 gives up 0-d tensors alone


def apply(module: ModuleType) -> None:
    view_as_dtype = module.torch.ops.aten.view.dtype

    def give_up_other_sizes(original: Any) -> Any:
        def _deduce_value(self: Any, node: Any) -> Any:
            if node.target is view_as_dtype:
                args, kwargs = self.fetch_args_kwargs_from_env(node)
                tensor, dtype = list(args) + list(kwargs.values())
                if tensor.element_size() != dtype.itemsize:
                    return self.unknown_value
            return original(self, node)

        return _deduce_value

    wrap(module.UniformValueConstantFolder, "_deduce_value", give_up_other_sizes)


def reproduce() -> None:
    import torch

    def sum_and_views(x: torch.Tensor) -> list[torch.Tensor]:
        ones = torch.ones(2, 1, dtype=torch.complex64)
        fives = torch.full((3,), 5, dtype=torch.int64)
        return [x + ones, fives.view(torch.int32)]

    x = torch.full((2, 2), 1 + 2j, dtype=torch.complex64)
    for result, expected in zip(torch.compile(sum_and_views)(x), sum_and_views(x), strict=True):
        if not torch.equal(result, expected):
            raise BugPresent(f"compiled {result.tolist()}, eager {expected.tolist()}")


FIX = Fix(
    id="view-dtype-fold",
    title="torch.compile adds 1+1j where a complex constant says 1+0j",
    kind="wrong-result",
    upstream=("pytorch/pytorch#174891", "pytorch/pytorch#177389", "pytorch/pytorch#172073", "pytorch/pytorch#172181"),
    affects={"torch": ">=2.9.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    targets=(f"torch._inductor.fx_passes.joint_graph:{_DEDUCE}",),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
