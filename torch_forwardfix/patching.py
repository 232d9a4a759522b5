"""Replacing attributes so that the replacement can be taken back and recognised. Fixes patch through this alone."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType, ModuleType
from typing import Any

from .fix import Drifted

_MISSING = object()
_MARK = "__torch_forwardfix__"

Undo = list[tuple[Any, str, Any]]
_journal: ContextVar[Undo] = ContextVar("torch_forwardfix_journal")


class NotTakenBack(RuntimeError):
    """Something refused to be what it was before a patch."""


def lookup(module: ModuleType, qualname: str) -> Any:
    """Return what ``qualname`` names in ``module``, unbound. Raises :class:`Drifted` where it is gone."""
    found: Any = module
    for name in qualname.split("."):
        found = vars(found).get(name, _MISSING)
        if found is _MISSING:
            raise Drifted(f"{module.__name__}:{qualname} is gone")
    return found


def wrap(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Replace the function ``owner.name`` by ``make(original)``, which is made to look like the original.

    Static and class methods stay what they are; ``make`` is given the plain function and returns one.
    Raises :class:`Drifted` where there is no such function.
    """
    found = vars(owner).get(name, _MISSING)
    original = _plain(found)
    if not callable(original):
        raise Drifted(f"{getattr(owner, '__name__', owner)}.{name} is not a function")
    wrapper = functools.wraps(original)(make(original))
    setattr(wrapper, _MARK, True)
    replace(owner, name, wrapper if original is found else type(found)(wrapper))


def replace(owner: Any, name: str, value: Any) -> None:
    """Set ``owner.name``, noting what was there for :func:`roll_back`."""
    _journal.get().append((owner, name, vars(owner).get(name, _MISSING)))
    setattr(owner, name, value)


def replace_copies(package: str, name: str, before: Any, after: Any) -> None:
    """Replace ``before`` in every loaded module of ``package`` that has imported it by value, under its own name."""
    prefix = f"{package}."
    # Names alone, without a pair for each: so many new objects would start the garbage collector.
    for module in list(sys.modules):
        if module.startswith(prefix):
            holder = sys.modules.get(module)
            if getattr(holder, "__dict__", {}).get(name) is before:
                replace(holder, name, after)


@contextmanager
def journal() -> Iterator[Undo]:
    """Collect what is replaced within, and take it back where the block raises."""
    undo: Undo = []
    token = _journal.set(undo)
    try:
        yield undo
    except BaseException as error:
        try:
            roll_back(undo)
        except NotTakenBack as worse:
            raise NotTakenBack(f"{type(error).__name__}: {error}; then {worse}") from error
        raise
    finally:
        _journal.reset(token)


def roll_back(undo: Undo) -> None:
    """Put back what a journal noted, the newest first. Raises :class:`NotTakenBack`, after the rest, for what stays."""
    stays = []
    while undo:
        owner, name, value = undo.pop()
        try:
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        except Exception as error:
            stays.append(f"{name} could not be put back: {type(error).__name__}: {error}")
    if stays:
        raise NotTakenBack("; ".join(stays))


def _plain(function: Any) -> Any:
    """The function of a static or class method."""
    return function.__func__ if isinstance(function, staticmethod | classmethod) else function


def is_ours(function: Any) -> bool:
    """Whether ``function`` was put in place by :func:`wrap`."""
    return _MARK in getattr(_plain(function), "__dict__", ())


def foreign_owner(function: Any, package: str) -> str | None:
    """Name the module whose code stands where code of ``package`` is expected, or None where all is as expected.

    It asks for the globals that the function runs with: ``__module__`` and ``__name__`` are copied by functools.wraps.
    Proxies have those of the function that they stand for: wrapt's name their own one, of others the type tells.
    Wrappers of the standard library (``contextlib``, ``functools``) are put there by the package itself.
    """
    found = getattr(_plain(function), "_self_wrapper", _plain(function))
    for home in (type(found).__module__, getattr(found, "__globals__", {}).get("__name__")):
        top = (home or "").partition(".")[0]
        if home and top not in (package, __package__) and top not in sys.stdlib_module_names:
            return str(home)
    return None


def code_objects(function: Any) -> Iterator[CodeType]:
    """Yield the code of ``function`` and of all that is defined inside it; probes read names and constants there."""
    pending = [_plain(function).__code__]
    while pending:
        code = pending.pop()
        yield code
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
