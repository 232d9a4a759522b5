"""A graph compiled under one autocast or default dtype is served under another one, from the compile caches.

What autocast casts to and what ``torch.ones(3)`` or ``count / 3`` give is decided while a graph is compiled. Dynamo
compiles anew when those dtypes change, but hands on the same graph, and the cache keys said no more than that autocast
is on. So a program that asks for float16 gets bfloat16 from an earlier compile, in the same process or in a later one.

2.13 put both dtypes into the keys (pytorch#181564, #184500). 2.14 began to cache graphs with a ``torch.autocast``
inside; where that names no dtype, it takes what ``torch.set_autocast_dtype`` has set outside, which is in the key since
2.15 (pytorch#191106). The patch adds what the release leaves out: autocast dtypes where the graph depends on them, the
default dtype always. So up to 2.12 all keys are new: an older entry may be of any default dtype.
"""

from __future__ import annotations

import dis
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_FX_DETAILS = "FxGraphHashDetails.__init__"
_AOT_DETAILS = "AOTAutogradCacheDetails.__init__"
_RECORDER = "_record_runtime_state"
_ENTER_AUTOCAST = "torch.amp.autocast_mode._enter_autocast"


def is_present(module: ModuleType) -> bool | str:
    if module.__name__ == "torch._inductor.codecache":
        names = {name for code in code_objects(lookup(module, _FX_DETAILS)) for name in code.co_names}
        if "get_default_dtype" in names:
            return False
        return True if "torch_version" in names else f"{_FX_DETAILS} no longer records torch_version"
    functions = [lookup(module, _AOT_DETAILS)]
    recorder = vars(module.AOTAutogradCacheDetails).get(_RECORDER)
    if recorder is not None:
        if _RECORDER not in functions[0].__code__.co_names:
            return f"{_AOT_DETAILS} no longer calls {_RECORDER}"
        functions.append(recorder)
    codes = [code for function in functions for code in code_objects(function)]
    names = {name for code in codes for name in code.co_names}
    if "autocast_state" not in names:
        return True if "disable_amp" in names else f"{_AOT_DETAILS} no longer records autocast"
    allowed = {constant for code in code_objects(module.check_node_safe) for constant in code.co_consts}
    if not any(_ENTER_AUTOCAST in (constant if isinstance(constant, tuple) else ()) for constant in allowed):
        return False  # 2.13: graphs with autocast inside are not cached
    # 2.14 enters device by device, those where autocast is on; 2.15 enters all at once.
    recording = [code for code in codes if "autocast_state" in code.co_names]
    return any(step.opname == "STORE_SUBSCR" for code in recording for step in dis.get_instructions(code))


def apply(module: ModuleType) -> None:
    if module.__name__ == "torch._inductor.codecache":
        wrap(module.FxGraphHashDetails, "__init__", _with_default_dtype)
    else:
        wrap(module.AOTAutogradCacheDetails, "__init__", _with_autocast_dtypes)


def _with_default_dtype(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        import torch

        original(self, *args, **kwargs)
        self.default_dtype = torch.get_default_dtype()

    return __init__


def _with_autocast_dtypes(original: Any) -> Any:
    def __init__(self: Any, gm: Any, *args: Any, **kwargs: Any) -> None:
        import torch

        original(self, gm, *args, **kwargs)
        # Where torch records the devices with autocast on by itself, their keys stay as they are.
        recorded = hasattr(self, "autocast_state")
        inside = _has_autocast_without_dtype(gm)
        dtypes = {
            device: torch.get_autocast_dtype(device)
            for device in torch._C._autocast_supported_devices()
            if inside or (not recorded and torch.is_autocast_enabled(device))
        }
        if dtypes:
            self.autocast_dtypes = dtypes

    return __init__


def _has_autocast_without_dtype(gm: Any) -> bool:
    import torch

    enter = torch.amp.autocast_mode._enter_autocast
    return any(
        node.target is enter and (node.args[1] if len(node.args) > 1 else node.kwargs.get("dtype")) is None
        for module in gm.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
    )


def reproduce() -> None:
    import torch
    import torch._dynamo

    def square(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    def square_inside(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu"):
            return x @ x

    def mean_count(x: torch.Tensor) -> torch.Tensor:
        return (x > 0).sum(dim=0) / 3

    x = torch.zeros(0, 0)  # with elements in it, each cast would need a compiled kernel

    def compare(function: Any, setting: str) -> None:
        # Dynamo itself overlooks what set_autocast_dtype changes; the question here is what later processes get.
        torch._dynamo.reset()
        result, expected = torch.compile(function)(x), function(x)
        if result.dtype != expected.dtype:
            raise BugPresent(f"compiled under {setting} of {expected.dtype}, the result is {result.dtype}")

    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            compare(square, "an autocast dtype")
    default, ambient = torch.get_default_dtype(), torch.get_autocast_dtype("cpu")
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            compare(mean_count, "a default dtype")
        torch.set_default_dtype(default)
        for dtype in (torch.bfloat16, torch.float16):
            torch.set_autocast_dtype("cpu", dtype)
            compare(square_inside, "an autocast dtype set outside")
    finally:
        torch.set_default_dtype(default)
        torch.set_autocast_dtype("cpu", ambient)


FIX = Fix(
    id="aot-cache-key-dtypes",
    title="a graph compiled under one autocast or default dtype is served under another one",
    kind="wrong-result",
    upstream=(
        "pytorch/pytorch#181564",
        "pytorch/pytorch#184405",
        "pytorch/pytorch#184500",
        "pytorch/pytorch#191106",
    ),
    affects={"torch": ">=2.9.0.dev0,!=2.13.0,<2.15.0rc99"},
    fixed_in="2.15.0",
    targets=(
        f"torch._inductor.codecache:{_FX_DETAILS}",
        f"torch._functorch._aot_autograd.autograd_cache:{_AOT_DETAILS}",
    ),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
