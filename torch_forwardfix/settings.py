"""The user's environment variables, read and checked."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

SWITCH = "TORCH_FORWARDFIX"
DISABLE = "TORCH_FORWARDFIX_DISABLE"
ONLY = "TORCH_FORWARDFIX_ONLY"
STRICT = "TORCH_FORWARDFIX_STRICT"

_OFF = ("0", "off", "false", "no")
_ON = ("", "1", "on", "true", "yes")


@dataclass(frozen=True)
class Settings:
    """``disabled`` maps a fix id to the reason why the user does not get it; ``problems`` names what is ignored."""

    enabled: bool
    strict: bool
    disabled: Mapping[str, str]
    problems: tuple[str, ...]


def read(ids: Collection[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the variables. Unknown ids and values are reported in ``problems`` and change nothing."""
    problems: list[str] = []
    switch = _word(environ, SWITCH)
    strict = _word(environ, STRICT)
    for name, value in ((SWITCH, switch), (STRICT, strict)):
        if value not in _OFF + _ON:
            problems.append(f"{name}={_in_one_line(environ[name])} is ignored: it takes 0 or 1")
    disabled = {id: f"{DISABLE} names it" for id in _known_ids(environ, DISABLE, ids, problems)}
    only = _known_ids(environ, ONLY, ids, problems)
    if only:
        disabled.update({id: f"{ONLY} does not name it" for id in ids if id not in only})
    if switch in _OFF:
        disabled = {id: f"{SWITCH}={_in_one_line(environ[SWITCH])}" for id in ids}
    return Settings(switch not in _OFF, strict in _ON[1:], disabled, tuple(problems))


def _word(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name, "").strip().lower()


def _in_one_line(value: str) -> str:
    return value if value.isprintable() else repr(value)


def _known_ids(environ: Mapping[str, str], name: str, ids: Collection[str], problems: list[str]) -> list[str]:
    named = dict.fromkeys(id.strip() for id in environ.get(name, "").split(",") if id.strip())
    problems += [f"{name} names {unknown_id(id, ids)}; it is ignored" for id in named if id not in ids]
    return [id for id in named if id in ids]


def disabling(ids: Iterable[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variable that switches off the fixes ``ids``, besides those that the user has switched off.

    >>> disabling(["aot-builtins"], {"TORCH_FORWARDFIX_DISABLE": "mul-zero-nan"})
    {'TORCH_FORWARDFIX_DISABLE': 'aot-builtins,mul-zero-nan'}
    """
    named = {id.strip() for id in environ.get(DISABLE, "").split(",") if id.strip()}
    return {DISABLE: ",".join(sorted(named.union(ids)))}


def unknown_id(id: str, ids: Collection[str]) -> str:
    """Describe an id that there is no fix of, with the nearest one that there is.

    >>> unknown_id("aot-builtin", ["aot-builtins", "compile-disable"])
    "the unknown fix 'aot-builtin' (did you mean 'aot-builtins'?)"
    """
    import difflib

    near = difflib.get_close_matches(id, ids, n=1)
    return f"the unknown fix {id!r} " + (f"(did you mean {near[0]!r}?)" if near else f"(known: {', '.join(ids)})")
