"""``torch.compile`` refuses a ``functools.wraps`` copy of a compiled function.

A decorator around a compiled function copies the function's ``__dict__`` with ``functools.wraps``, torch's own marks
included, among them ``get_compiler_config``. Up to 2.10 torch took such a copy for the compiled function itself and
went round the decorator (pytorch#172732). 2.11 tells copies apart by an id (pytorch#174335) and compiles them as they
are. But its own wrapper is made with ``functools.wraps`` too, and so has ``get_compiler_config`` before torch sets it:
an AssertionError, without a message up to 2.12. The bound method of a compiled method ends there as well.

The assertion keeps torch from writing over a ``get_compiler_config`` that is not torch's, and stays for that. The patch
hands torch the same function without torch's marks: same code, globals and closure. The marks must not be there later
either: dynamo follows one of them, ``_torchdynamo_inline``, round the decorator wherever it traces a call of a copy. So
what would lead to that inside (a copy of a copy, a ``functools.partial`` with marks) is refused as before.
"""

from __future__ import annotations

import functools
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch_forwardfix.fix import BugPresent, Fix
from torch_forwardfix.patching import code_objects, lookup, wrap

_CALL = "_TorchDynamoContext.__call__"
_CONFIG = "get_compiler_config"
_ID = "_torchdynamo_wrapper_id"
_MARKS = (
    _CONFIG,
    _ID,
    "_torchdynamo_orig_callable",
    "_torchdynamo_inline",
    "_isolate_recompiles_id",
    "_is_torch_compile",
    "aot_compile",
)


def is_present(module: ModuleType) -> bool | str:
    codes = list(code_objects(lookup(module, _CALL)))
    if not any(_ID in (*code.co_names, *code.co_consts) for code in code_objects(lookup(module, "innermost_fn"))):
        return False  # copies are followed to the compiled function and never get as far as the assertion
    if "wraps" not in codes[0].co_names or not any(code.co_name == _CONFIG for code in codes):
        return f"{_CALL} no longer makes its wrapper with functools.wraps and {_CONFIG}"
    return _CONFIG in codes[0].co_consts and "hasattr" in codes[0].co_names


def apply(module: ModuleType) -> None:
    def accept_copies(original: Any) -> Any:
        def __call__(self: Any, fn: Any) -> Any:
            return original(self, _without_marks(module, fn))

        # torch.compile may be called where dynamo is at work: it skips the frames of its own files.
        module.skip_code(__call__.__code__)
        return __call__

    wrap(module._TorchDynamoContext, "__call__", accept_copies)


def _without_marks(module: ModuleType, fn: Any) -> Any:
    """A copy as torch.compile takes it; anything else, and what is refused, as it is."""
    if isinstance(fn, MethodType) and isinstance(fn.__func__, FunctionType) and _has_marks(module, fn.__func__):
        # innermost_fn does not look through a bound method, whose id is its own.
        function = _without_marks(module, module.innermost_fn(fn.__func__))
        return fn if _has_marks(module, function) else MethodType(function, fn.__self__)
    if not isinstance(fn, FunctionType) or not _has_marks(module, fn):
        return fn
    copy = module.innermost_fn(fn)
    if not isinstance(copy, FunctionType) or not _has_marks(module, copy) or _wraps_a_copy(module, copy):
        return fn
    twin = FunctionType(copy.__code__, copy.__globals__, copy.__name__, copy.__defaults__, copy.__closure__)
    twin.__kwdefaults__ = copy.__kwdefaults__
    functools.update_wrapper(twin, copy, updated=())
    del vars(twin)["__wrapped__"]
    vars(twin).update((name, value) for name, value in vars(copy).items() if name not in _MARKS)
    return twin


def _has_marks(module: ModuleType, fn: Any) -> bool:
    # torch's own get_compiler_config is defined in its module.
    return getattr(getattr(fn, "__dict__", {}).get(_CONFIG), "__globals__", None) is vars(module)


def _wraps_a_copy(module: ModuleType, fn: Any) -> bool:
    while isinstance(fn := vars(fn).get("__wrapped__"), FunctionType) and vars(fn).get(_ID) != id(fn):
        if _has_marks(module, fn):
            return True
    return False


def reproduce() -> None:
    import torch

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.sin() @ x

    compiled = torch.compile(function, backend="aot_eager")

    @functools.wraps(compiled)
    def checked(x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 2:
            raise ValueError("a matrix is needed")
        return compiled(x)

    x = torch.arange(9.0, dtype=torch.float64).reshape(3, 3)
    try:
        again = torch.compile(checked, backend="aot_eager", fullgraph=True)
    except AssertionError as error:
        if str(error) in ("", f"compile_wrapper already has a {_CONFIG} attribute"):
            raise BugPresent("torch.compile refuses a functools.wraps copy of a compiled function") from error
        raise
    if not torch.equal(again(x), function(x)):
        raise BugPresent(f"compiled {again(x)} differs from eager {function(x)}")


FIX = Fix(
    id="rewrap-compiled",
    title="AssertionError when torch.compile meets a functools.wraps copy of a compiled function",
    kind="crash",
    upstream=(
        "pytorch/pytorch#172732",
        "pytorch/pytorch#174335",
        "unslothai/unsloth-zoo#1025",
        "unslothai/unsloth-zoo#1034",
    ),
    affects={"torch": ">=2.11.0.dev0,<2.16.0rc99"},
    fixed_in=None,
    targets=(f"torch._dynamo.eval_frame:{_CALL}",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=reproduce,
)
