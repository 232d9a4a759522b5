"""vLLM ignores ``TORCH_COMPILE_DISABLE=1``.

Up to 0.19 vLLM plans its compilation without looking at the variable. ``torch.compile`` then is a no-op underneath, or
not even that: with AOT compilation 0.19.0 compiles all the same. And where the model does run eagerly, vLLM still
leaves its custom ops off, because it counts on the compiler to replace them.

Since 0.20 ``VllmConfig.__post_init__`` reads the variable, exactly ``1``, and chooses mode NONE (vllm#40715). The patch
makes the same choice before the original method runs: everything that it derives from the mode (custom ops, CUDA
graphs, splitting) then follows, in the engine's own process too, which builds its configuration anew. 0.11.0 keeps the
class in ``vllm.config`` and calls the mode a level.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from logging import getLogger
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_VARIABLE = "TORCH_COMPILE_DISABLE"
_POST_INIT = "VllmConfig.__post_init__"


def is_present(module: ModuleType) -> bool | str:
    if module.__name__ == "vllm.config" and getattr(vars(module).get("VllmConfig"), "__module__", "") != "vllm.config":
        return False  # 0.11.1 and later: see the other target
    codes = list(code_objects(lookup(module, _POST_INIT)))
    if any(_VARIABLE in code.co_consts for code in codes):
        return False
    if not any("compilation_config" in code.co_names for code in codes):
        return f"{_POST_INIT} no longer looks at compilation_config"
    return True


def apply(module: ModuleType) -> None:
    field, none = _no_compilation()

    def disable(original: Any) -> Any:
        def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if os.environ.get(_VARIABLE) == "1":
                _say()
                setattr(self.compilation_config, field, none)
            original(self, *args, **kwargs)

        return __post_init__

    wrap(module.VllmConfig, "__post_init__", disable)


def _no_compilation() -> tuple[str, Any]:
    """The name of the field that holds the mode, and its value for no compilation."""
    names = vars(import_module("vllm.config.compilation"))
    if "CompilationMode" in names:
        return "mode", names["CompilationMode"].NONE
    return "level", names["CompilationLevel"].NO_COMPILATION


@cache
def _say() -> None:
    getLogger("torch_forwardfix").warning(f"{_VARIABLE}=1: vLLM runs without compilation (mode NONE); unset to compile")


def reproduce() -> None:
    os.environ[_VARIABLE] = "1"
    from vllm.config import CompilationConfig, DeviceConfig, VllmConfig

    field, none = _no_compilation()
    wanted: Any = {field: 3}
    config = VllmConfig(
        device_config=DeviceConfig(device="cpu"), compilation_config=CompilationConfig(**wanted)
    ).compilation_config
    chosen = getattr(config, field)
    if chosen != none:
        raise BugPresent(f"{_VARIABLE}=1 is ignored: {field} is {chosen!r}, custom_ops {config.custom_ops}")


FIX = Fix(
    id="vllm-compile-disable",
    title="vLLM ignores TORCH_COMPILE_DISABLE=1: it compiles, or runs eagerly without its custom ops",
    kind="config",
    upstream=("vllm-project/vllm#40715",),
    affects={"vllm": ">=0.11.0.dev0,<0.20.0rc99"},
    fixed_in="0.20.0",
    targets=(f"vllm.config.vllm:{_POST_INIT}", f"vllm.config:{_POST_INIT}"),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
