"""A graph of custom ops takes minutes to hours to compile, in a log line that nobody reads.

For the first call of each operator that inductor has no lowering for it logs "Creating implicit fallback", at INFO,
with the arguments. The text was made whether or not that level is on. An argument prints the operators that it comes
from, down to the inputs of the graph: with each operator in a chain the text grows by a line or more, and it doubles
where an operator takes a result twice, as a residual connection does. vLLM puts its own operators on inductor's list of
known fallbacks to be rid of it (vllm#42129).

Since 2.13 the text is made when the line is written (pytorch#185937, #185951). The patch gives the two errors that
describe the operator a description which is rendered when it is formatted: in that log line, or in their own message.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, replace

_CALL = "GraphLowering.call_function"
_ERRORS = "MissingOperatorWithDecomp", "MissingOperatorWithoutDecomp"
_TEXT = "operator_str"


def is_present(module: ModuleType) -> bool | str:
    names = {name for code in code_objects(lookup(module, _CALL)) for name in code.co_names}
    if not names.issuperset((_TEXT, *_ERRORS)):
        return f"{_CALL} no longer describes what it falls back for"
    for name in _ERRORS:
        if not callable(getattr(lookup(module, name), _TEXT, None)):
            return f"{name}.{_TEXT} is gone"
    return "LazyString" not in names and "isEnabledFor" not in names


def apply(module: ModuleType) -> None:
    for name in _ERRORS:
        error = lookup(module, name)
        original = getattr(error, _TEXT)
        # The errors live in a module of their own, and survive a reload of this one.
        if original.__module__ != __name__:
            replace(error, _TEXT, staticmethod(_lazily(original)))


def _lazily(original: Any) -> Any:
    @functools.wraps(original, assigned=("__name__", "__qualname__", "__doc__"))
    def operator_str(*arguments: Any, **options: Any) -> Any:
        from torch._logging import LazyString

        return LazyString(original, *arguments, **options)

    return operator_str


def reproduce() -> None:
    import sys
    import uuid

    import torch
    import torch._dynamo

    # Each operator is described once in a process, and never where its graph is found in a cache.
    library = torch.library.Library(f"torch_forwardfix_{uuid.uuid4().hex}", "FRAGMENT")

    def rendered(depth: int) -> int:
        names = [f"add_{depth}_{number}" for number in range(depth)]
        for name in names:
            library.define(f"{name}(Tensor x, Tensor y) -> Tensor")
            library.impl(name, torch.Tensor.add, "CompositeExplicitAutograd")
        ops = [getattr(getattr(torch.ops, library.ns), name) for name in names]

        def chain(x: torch.Tensor) -> torch.Tensor:
            for op in ops:
                x = op(x, x)
            return x

        rendered = []

        def count(frame: Any, event: str, argument: Any) -> None:
            code = frame.f_code
            if event == "call" and code.co_name == "__str__" and code.co_filename.endswith("ir.py"):
                rendered.append(code)

        x = torch.arange(3.0)
        before = sys.getprofile()
        sys.setprofile(count)
        try:
            result = torch.compile(chain, fullgraph=True)(x)
        finally:
            sys.setprofile(before)
        if not torch.equal(result, chain(x)):
            raise BugPresent(f"compiled {result} differs from eager {chain(x)}")
        return len(rendered)

    short, long = rendered(3), rendered(6)
    if short or long:
        raise BugPresent(f"3 custom ops in a row were rendered to text {short} times, 6 in a row {long} times")


FIX = Fix(
    id="implicit-fallback-stringify",
    title="inductor takes minutes to hours for graphs of custom ops, in a log line that nobody reads",
    kind="startup",
    upstream=("pytorch/pytorch#185937", "pytorch/pytorch#185951", "vllm-project/vllm#42129"),
    affects={"torch": ">=2.9.0.dev0,<2.13.0rc99"},
    fixed_in="2.13.0",
    targets=(f"torch._inductor.graph:{_CALL}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
