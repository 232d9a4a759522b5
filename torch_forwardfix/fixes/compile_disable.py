"""``TORCH_COMPILE_DISABLE=1`` and ``fullgraph=True`` do not go together.

The variable sets ``torch._dynamo.config.disable``, and dynamo then skips every frame. Since 2.12 ``fullgraph=True``
counts the frames that it compiled and complains when there were none, after the body has run: a warning in 2.12, an
error since 2.13 (pytorch#177809, #181247, #181940). Who disables the compiler has asked for exactly that.

Two patches, for two ways to ask:

* ``TORCH_COMPILE_DISABLE=1``, exactly ``1``, read when dynamo loads, as torch reads it: ``torch._dynamo.optimize``,
  where ``torch.compile``, the decorator and ``Module.compile`` all end, is told ``disable=True``. It hands back the
  callable itself, eager and unwrapped, as it does under ``TORCHDYNAMO_DISABLE=1``. So there is no ``_orig_mod`` and no
  ``aot_compile`` on it.
* ``torch._dynamo.config.disable = True`` can be set and unset while the program runs, on callables that are wrapped
  already. There the count of frames reads as one where it would be none and the compiler is disabled at that moment.

A count of zero for any other reason (a skipped function, an active dispatch mode) is still an error.
"""

from __future__ import annotations

import os
from functools import cache
from inspect import isbuiltin
from logging import getLogger
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_COUNT = "set_fullgraph_compiled_frame_count"
_COMPLAINT = "found no compiled frames"


def is_present(module: ModuleType) -> bool | str:
    optimize = {name for code in code_objects(lookup(module, "_optimize")) for name in code.co_names}
    codes = list(code_objects(lookup(module, "_TorchDynamoContext.__call__")))
    checks = [code for code in codes if any(_COMPLAINT in const for const in code.co_consts if isinstance(const, str))]
    if not checks:
        return False
    if any("disable" in code.co_names for code in checks):
        return False
    if "_optimize_catch_errors" not in optimize:
        return "_optimize no longer makes the callable that compiles"
    if not isbuiltin(vars(module).get(_COUNT)) or not all(_COUNT in code.co_names for code in checks):
        return f"the check for compiled frames no longer asks {_COUNT} of torch's core"
    return True


def apply(module: ModuleType) -> None:
    def forgive(original: Any) -> Any:
        def set_fullgraph_compiled_frame_count(count: int) -> int:
            # Setting -1 ends the count and returns it.
            frames: int = original(count)
            if frames == 0 and count == -1 and module.config.disable:
                _say("torch._dynamo.config.disable is set: functions compiled with fullgraph=True run eagerly")
                return 1
            return frames

        return set_fullgraph_compiled_frame_count

    def disable(original: Any) -> Any:
        def _optimize(*args: Any, **kwargs: Any) -> Any:
            _say("TORCH_COMPILE_DISABLE=1: torch.compile returns every callable as it is, uncompiled; unset to compile")
            return original(*args, **{**kwargs, "disable": True})

        return _optimize

    wrap(module, _COUNT, forgive)
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        wrap(module, "_optimize", disable)


@cache
def _say(message: str) -> None:
    getLogger("torch_forwardfix").warning(message)


def reproduce() -> None:
    import sys
    import warnings

    if "torch._dynamo" in sys.modules:
        raise RuntimeError("torch has read TORCH_COMPILE_DISABLE already: run this in a fresh process")
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    import torch

    def double(x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2

    x = torch.arange(4.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = torch.compile(double, fullgraph=True)(x)
        except RuntimeError as error:
            if _COMPLAINT in str(error):
                raise BugPresent(f"a disabled torch.compile raises: {str(error).splitlines()[0]}") from error
            raise
    complaints = [str(warning.message) for warning in caught if _COMPLAINT in str(warning.message)]
    if complaints:
        raise BugPresent(f"a disabled torch.compile warns: {complaints[0].splitlines()[0]}")
    if not torch.equal(result, double(x)):
        raise BugPresent(f"disabled {result} differs from eager {double(x)}")


FIX = Fix(
    id="compile-disable",
    title="TORCH_COMPILE_DISABLE=1 with fullgraph=True raises instead of running eagerly",
    kind="config",
    upstream=(
        "pytorch/pytorch#177809",
        "pytorch/pytorch#181247",
        "pytorch/pytorch#181940",
        "unslothai/unsloth-zoo#1183",
    ),
    affects={"torch": ">=2.12.0.dev0"},
    fixed_in=None,
    targets=("torch._dynamo.eval_frame:_optimize", f"torch._dynamo.eval_frame:{_COUNT}"),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
