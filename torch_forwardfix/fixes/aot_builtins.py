"""AOT-compiled functions that name a builtin cannot be loaded in another process.

Where a compiled function returns or keeps a builtin (``return x * 2, int``; much of transformers does), its bytecode
loads it out of a global that dynamo made up: ``__builtins_dict___0``. ``aot_compile`` did not save that global. Loading
the artifact in a fresh process then failed with "Missing required external references: ['__builtins_dict___0']", the
same for a builtin that the bytecode loads by its own name. In 2.9 there was no such check, and the first call died of a
NameError, in the process that had compiled it too.

Upstream saves what is missing since 2.12 (pytorch#177558). From 2.10 on the patch does it at the same place,
``GraphCaptureOutput.get_runtime_env``, with two differences: a builtin never stands in for a global of the user that
has its name, and only real builtins are saved, not what IPython and others add to that namespace (their module would
have to be there when the artifact is loaded). 2.9 has no such place; there the global is provided when a function is
set up, so an artifact saved under 2.9 needs this fix where it is loaded.
"""

from __future__ import annotations

import builtins
import pickle
from functools import cache
from types import ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_SAVE = "GraphCaptureOutput.get_runtime_env"
_SET_UP = "AOTCompiledFunction.__post_init__"
_PREFIX = "__builtins_dict__"
_CONSTANTS = (None, True, False, Ellipsis, NotImplemented)


def is_present(module: ModuleType) -> bool | str:
    if module.__name__ == "torch._dynamo.convert_frame":
        if not hasattr(module, "GraphCaptureOutput"):
            return False  # 2.9: see the other target
        codes = list(code_objects(lookup(module, _SAVE)))
        if any(_PREFIX in code.co_consts for code in codes):
            return False
        if not any("external_refs" in code.co_varnames + code.co_names for code in codes):
            return f"{_SAVE} no longer collects external references"
        return True
    names = {name for code in code_objects(lookup(module, _SET_UP)) for name in code.co_names}
    if "forward_callable" in names:
        return False  # 2.10 and later: see the other target
    return True if "FunctionType" in names else f"{_SET_UP} no longer makes the function"


def apply(module: ModuleType) -> None:
    if module.__name__ == "torch._dynamo.convert_frame":
        wrap(module.GraphCaptureOutput, "get_runtime_env", _save_builtins)
    else:
        wrap(module.AOTCompiledFunction, "__post_init__", _provide_builtins)


def _save_builtins(original: Any) -> Any:
    def get_runtime_env(self: Any) -> Any:
        env = original(self)
        for name in env.external_refs - env.used_globals.keys():
            if name.startswith(_PREFIX) and name in self.f_globals:
                env.used_globals[name] = _picklable_builtins()
            elif name not in self.f_globals and hasattr(builtins, name):
                env.used_globals[name] = getattr(builtins, name)
        return env

    return get_runtime_env


def _provide_builtins(original: Any) -> Any:
    def __post_init__(self: Any) -> None:
        original(self)
        for code in code_objects(self.fn):
            for name in code.co_names:
                if name.startswith(_PREFIX):
                    self.fn.__globals__.setdefault(name, vars(builtins))

    return __post_init__


@cache
def _picklable_builtins() -> dict[str, Any]:
    found = {}
    for name, value in vars(builtins).items():
        if getattr(value, "__module__", None) == "builtins" or any(value is constant for constant in _CONSTANTS):
            try:
                pickle.dumps(value)
            except Exception:
                continue
            found[name] = value
    return found


_LOAD = """
import sys, torch
torch._dynamo.config.enable_aot_compile = True
with open(sys.argv[1], "rb") as file:
    loaded = torch.compiler.load_compiled_function(file)
x = torch.arange(9.0).reshape(3, 3)
product, *kinds = loaded(x)
assert torch.equal(product, x @ x) and kinds == [int, type, isinstance], (product, kinds)
"""


def reproduce() -> None:
    import subprocess
    import sys
    import tempfile
    from pathlib import Path

    import torch
    import torch._dynamo

    torch._dynamo.config.enable_aot_compile = True

    def product_and_kinds(x: torch.Tensor) -> Any:
        return x @ x, int, type, isinstance

    x = torch.arange(9.0).reshape(3, 3)
    compiled = torch.compile(product_and_kinds, fullgraph=True).aot_compile(((x,), {}))
    try:
        product, *kinds = compiled(x)
    except NameError as error:
        if _PREFIX in str(error):
            raise BugPresent(f"the AOT-compiled function fails: {error}") from error
        raise
    if not torch.equal(product, x @ x) or kinds != [int, type, isinstance]:
        raise BugPresent(f"compiled {product}, {kinds} differs from eager")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "compiled")
        compiled.save_compiled_function(str(path))
        load = subprocess.run([sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True)
    if load.returncode:
        message = next(reversed(load.stderr.strip().splitlines()), f"exit status {load.returncode}")
        if _PREFIX in message:
            raise BugPresent(f"the saved function cannot be loaded in a fresh process: {message}")
        raise RuntimeError(f"loading the saved function failed: {load.stderr}")


FIX = Fix(
    id="aot-builtins",
    title="AOT-compiled functions that name a builtin fail when loaded in a fresh process",
    kind="crash",
    upstream=("pytorch/pytorch#177558", "vllm-project/vllm#37234", "vllm-project/vllm#38763"),
    affects={"torch": ">=2.9.0.dev0,<2.12.0rc99"},
    fixed_in="2.12.0",
    targets=(f"torch._dynamo.convert_frame:{_SAVE}", f"torch._dynamo.aot_compile:{_SET_UP}"),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
