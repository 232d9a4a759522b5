"""All fixes: one from each file in ``fixes/``, and those that other distributions register. And what stays unfixed."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from . import fixes
from . import unfixed as unfixed_bugs
from .fix import Bug, Fix, Outcome, Unfixed
from .gates import metadata

ENTRY_POINTS = "torch_forwardfix.fixes"


@dataclass(frozen=True, eq=False)
class Catalog:
    """``fixes`` by id, built-in ones first; ``broken`` says what became of those that could not be had, by name."""

    fixes: Mapping[str, Fix]
    broken: Mapping[str, Outcome]


def load() -> Catalog:
    """Load every fix. A file or plug-in that fails is one row of ``broken`` and costs no other fix.

    Files that are all gone are one row as well: freezers leave out what no import names.
    """
    found: dict[str, Fix] = {}
    broken: dict[str, Outcome] = {}
    files = sorted(pkgutil.iter_modules(fixes.__path__), key=lambda file: file.name)
    if not files:
        reason = "not one is there: PyInstaller needs --collect-all torch_forwardfix; elsewhere, reinstall"
        broken["built-in fixes"] = Outcome("failed", reason)
    for file in files:
        name = file.name.replace("_", "-")
        try:
            fix = import_module(f"{fixes.__name__}.{file.name}").FIX
            if fix.id != name:
                raise ValueError(f"fixes/{file.name}.py holds {fix.id!r}")
            found[name] = fix
        except (Exception, SystemExit) as error:
            broken[name] = Outcome("failed", f"cannot be loaded: {type(error).__name__}: {error}")
    try:
        plugins = _plugins()
    except Exception as error:
        plugins = []
        broken["plug-ins"] = Outcome("failed", f"cannot be listed: {type(error).__name__}: {error}")
    for source, name, load_plugin in plugins:
        try:
            plugged = load_plugin()
            for fix in (plugged,) if isinstance(plugged, Fix) else plugged:
                if not isinstance(fix, Fix):
                    raise TypeError(f"{fix!r} is not a torch_forwardfix.Fix")
                if fix.id in found:
                    broken[f"{source}:{fix.id}"] = Outcome(
                        "superseded", f"the id {fix.id!r} of plug-in {source} is taken"
                    )
                else:
                    found[fix.id] = fix
        except (Exception, SystemExit) as error:
            reason = f"plug-in {source} cannot be loaded: {type(error).__name__}: {error}"
            broken[f"{source}:{name}"] = Outcome("failed", reason)
    return Catalog(found, broken)


def _plugins() -> list[tuple[str, str, Callable[[], Any]]]:
    return [(_source(point), point.name, point.load) for point in metadata().entry_points(group=ENTRY_POINTS)]


def _source(point: Any) -> str:
    try:
        return str(point.dist.name)
    except Exception:  # where the metadata of the plug-in, or the attribute in itself, is missing
        return str(point.value)


def unfixed(fixed: Container[str] = ()) -> dict[str, Unfixed]:
    """Load the bugs that are known and stay, by id: one from each file in ``unfixed/``, less those in ``fixed``."""
    files = sorted(file.name for file in pkgutil.iter_modules(unfixed_bugs.__path__))
    bugs = [import_module(f"{unfixed_bugs.__name__}.{name}").BUG for name in files]
    return {bug.id: bug for bug in bugs if bug.id not in fixed}


@cache
def evidence() -> tuple[Mapping[str, str], ...]:
    """The rows of ``evidence.json``: what each reproduction showed on each release, without and with its fix."""
    # importlib.resources does the same and takes a fifth of the time of `status` to import.
    return tuple(json.loads(pkgutil.get_data(__package__, "evidence.json") or b"")["rows"])


def seen_on(bug: Bug) -> dict[str, list[str]]:
    """The releases on which the reproduction of ``bug`` showed it, by what that rests on (see ``verify.Run.by``)."""
    return _releases(row for row in evidence() if row["fix"] == bug.id and row["without"] == "present")


def proved_on(fix: Fix) -> dict[str, list[str]]:
    """The releases on which the reproduction of ``fix`` failed without it and passed with it, like :func:`seen_on`."""
    return _releases(
        row for row in evidence() if row["fix"] == fix.id and row["without"] == "present" and row["with"] == "absent"
    )


def told(releases: Mapping[str, list[str]]) -> str:
    """What :func:`seen_on` and :func:`proved_on` return, for people.

    >>> told({"cpu": ["torch 2.9.0", "torch 2.9.1"], "generated": ["torch 2.9.0"], "gpu NVIDIA H100": ["torch 2.9.1"]})
    'torch 2.9.0, torch 2.9.1; torch 2.9.0 (generated code); torch 2.9.1 (NVIDIA H100)'
    """
    ways = {way: f" ({way.removeprefix('gpu ')})" for way in releases} | {"cpu": "", "generated": " (generated code)"}
    return "; ".join(", ".join(names) + ways[way] for way, names in releases.items())


def _releases(rows: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["by"], []).append(row["release"])
    return found
