"""A compile that starts while another one builds its guards ends the outer one: "No toplevel event active".

torch keeps a stack, one per thread, of what the compiler is at, for its logs and profiles. The end of each compile
empties it, so that nothing is left over. But a compile can run inside another: a guard of a tensor subclass, a guard
filter or a back end may call a compiled function, and on some devices every operator is one. The outer compile then
finds no event to book its guards' latency on, a RuntimeError. Elsewhere only warnings are seen, "Start event not in
stack", and a profile that lacks the outer events.

Upstream goes back to what was on the stack at the start (pytorch#171148, #184973). When a compile empties the stack,
its own event has been taken off already, and what is still there belongs to those around it: the patch leaves that.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_TIMED = "chromium_event_timed"
_RESET = "ChromiumEventLogger.reset"


def is_present(module: ModuleType) -> bool | str:
    timed = lookup(module, _TIMED)
    names = {name for code in code_objects(getattr(timed, "__wrapped__", timed)) for name in code.co_names}
    if "log_event_end" not in names:
        return f"{_TIMED} no longer ends its event"
    if "reset" not in names:
        return False
    if not {"get_stack", "get_event_data"}.issubset(lookup(module, _RESET).__code__.co_names):
        return f"{_RESET} no longer empties the stack and the events' data"
    return True


def apply(module: ModuleType) -> None:
    wrap(module.ChromiumEventLogger, "reset", functools.partial(_keep_running_events, lookup(module, _TIMED)))


def _keep_running_events(timed: Any, original: Any) -> Any:
    at_the_end_of_a_compile = timed.__wrapped__.__code__

    def reset(self: Any) -> None:
        running = self.get_stack()
        if not running or sys._getframe(1).f_code is not at_the_end_of_a_compile:
            return original(self)  # type: ignore[no-any-return]
        data = self.get_event_data()
        ranges = self.get_record_functions() if hasattr(self, "get_record_functions") else {}  # since 2.11
        for name in data.keys() - set(running):
            del data[name]
        for name in ranges.keys() - set(running):
            ranges.pop(name).__exit__(None, None, None)
        return None

    return reset


def reproduce() -> None:
    import torch
    import torch._dynamo

    inner = torch.compile(torch.Tensor.cos, backend="eager")
    outer = torch.Tensor.sin

    def keep_all(guards: Any) -> list[bool]:
        inner(torch.ones(2))
        return [True for _ in guards]

    x = torch.arange(3.0)
    try:
        result = torch.compile(outer, backend="eager", options={"guard_filter_fn": keep_all})(x)
    except Exception as error:
        if "No toplevel event active" in str(error):
            raise BugPresent(f"a compile inside another one's guards: {str(error).splitlines()[0]}") from error
        raise
    if not torch.equal(result, outer(x)):
        raise BugPresent(f"compiled {result} differs from eager {outer(x)}")


FIX = Fix(
    id="nested-compile-events",
    title='"No toplevel event active" when something compiles while guards are built',
    kind="crash",
    upstream=("pytorch/pytorch#171148", "pytorch/pytorch#184973", "RBLN-SW/torch-rbln#65"),
    affects={"torch": ">=2.9.0.dev0,<2.13.0rc99"},
    fixed_in="2.13.0",
    targets=(f"torch._dynamo.utils:{_RESET}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
