"""Ordinary compiled code takes the branch that was written for torch.export.

``torch.compiler.is_exporting()`` is meant to be True under torch.export only. Where dynamo meets the call it does not
run it but looks the answer up in ``tracing_state_functions()``, a cached table that says True. So ``torch.compile`` and
``aot_compile`` took the branch for export: another dtype, another mask, another operator, without a word.

Upstream asks for the flag behind the function since 2.12 (pytorch#176347, #176499). The patch puts that flag into the
table. Dynamo's own entry points for export set it as well, but for one in each of 2.9, 2.10 and 2.11 (those of later
releases do): there ``is_exporting()`` was True, rightly, because of the bug alone. They are remembered while they run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from inspect import unwrap
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_TABLE = "tracing_state_functions"
_HANDLERS = "TorchInGraphFunctionVariable._get_handlers"
_CAPTURES = ("dynamo_graph_capture_for_export", "_dynamo_graph_capture_for_export")

_capturing: ContextVar[bool] = ContextVar("torch_forwardfix_capturing_for_export", default=False)


def is_present(module: ModuleType) -> bool | str:
    if module.__name__ == "torch._dynamo.functional_export":
        return bool(_captures_without_flag(module))
    if "is_exporting" not in unwrap(lookup(module, _TABLE)).__code__.co_names:
        return f"{_TABLE} does not know is_exporting"
    for code in code_objects(unwrap(lookup(module, _HANDLERS))):
        if _TABLE in code.co_names and code.co_name == "handle_tracing_state_functions":
            return "_is_exporting_flag" not in code.co_names
    return f"{_HANDLERS} no longer asks {_TABLE}"


def apply(module: ModuleType) -> None:
    if module.__name__ == "torch._dynamo.functional_export":
        for name in _captures_without_flag(module):
            wrap(module, name, _remember_capture)
        return
    compiler = module.torch.compiler

    def ask_for_the_flag(original: Any) -> Any:
        def tracing_state_functions() -> dict[Callable[[], Any], bool | None]:
            exporting = compiler._is_exporting_flag or _capturing.get()
            return {**original(), compiler.is_exporting: exporting}

        return tracing_state_functions

    wrap(module, _TABLE, ask_for_the_flag)


def _captures_without_flag(module: ModuleType) -> list[str]:
    return [
        name
        for name in _CAPTURES
        if hasattr(module, name)
        and not any("_compiling_state_context" in code.co_names for code in code_objects(lookup(module, name)))
    ]


def _remember_capture(original: Any) -> Any:
    def capture_for_export(*args: Any, **kwargs: Any) -> Any:
        capture = original(*args, **kwargs)

        @functools.wraps(capture)
        def inner(*args: Any, **kwargs: Any) -> Any:
            token = _capturing.set(True)
            try:
                return capture(*args, **kwargs)
            finally:
                _capturing.reset(token)

        return inner

    return capture_for_export


def reproduce() -> None:
    import torch

    def plus_or_minus(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if torch.compiler.is_exporting() else x - 1

    x = torch.arange(3.0)
    result = torch.compile(plus_or_minus, backend="eager")(x)
    if not torch.equal(result, plus_or_minus(x)):
        raise BugPresent(f"torch.compile took the branch for torch.export: {result}, eager {plus_or_minus(x)}")


FIX = Fix(
    id="is-exporting-folded",
    title="torch.compiler.is_exporting() is True in code compiled by torch.compile",
    kind="wrong-result",
    upstream=("pytorch/pytorch#176347", "pytorch/pytorch#176499"),
    affects={"torch": ">=2.9.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    targets=(
        f"torch._dynamo.variables.torch:{_TABLE}",
        *(f"torch._dynamo.functional_export:{name}" for name in _CAPTURES),
    ),
    changes_codegen=True,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
