"""The report as data: for each fix, what happened in this process, or what will. It never imports torch by itself."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module

from . import catalog, engine, fingerprint, settings, watcher
from ._version import __version__
from .fix import Fix, Kind, Outcome, State, Unfixed
from .gates import installed_version, why_not_affected


@dataclass(frozen=True)
class FixStatus:
    """One fix and its state here. The fields are those of :class:`Fix`; ``proved_on`` comes from the evidence: releases
    by what the proof rests on, ``cpu``, ``generated`` or ``gpu NAME``."""

    id: str
    title: str
    kind: Kind | None
    upstream: tuple[str, ...]
    affects: Mapping[str, str]
    fixed_in: str | None
    targets: tuple[str, ...]
    changes_codegen: bool
    state: State
    reason: str
    proved_on: dict[str, list[str]]


@dataclass(frozen=True)
class UnfixedStatus:
    """One bug that is known and not fixed here; the fields are those of :class:`Unfixed`. ``here`` is True where the
    installed releases have it, else ``reason`` says why they have not; ``seen_on`` is like ``proved_on``."""

    id: str
    title: str
    kind: Kind
    upstream: tuple[str, ...]
    affects: Mapping[str, str]
    fixed_in: str | None
    why: str
    workaround: str
    here: bool
    reason: str | None
    seen_on: dict[str, list[str]]


@dataclass(frozen=True)
class Report:
    """What ``status --json`` prints.

    ``reason`` says why the hook is not active and what is wrong with the settings. ``unloadable`` are the modules that
    ``--live`` could not import, and why.
    """

    version: str
    python: str
    torch: str | None
    enabled: bool
    active: bool
    reason: str | None
    live: bool
    unloadable: dict[str, str]
    fingerprint: fingerprint.Fingerprint
    fixes: list[FixStatus]
    unfixed: list[UnfixedStatus]

    def as_json(self) -> dict[str, object]:
        """The report as plain dictionaries, lists and strings."""
        return asdict(self)


def status() -> list[FixStatus]:
    """Return the state of every fix in this process.

    Before torch's compiler has loaded, the states are those that its loading will lead to, as far as versions and the
    environment settle them; the rest is ``waiting``.
    """
    return collect().fixes


def collect(*, live: bool = False) -> Report:
    """Make the report. With ``live`` the modules of every pending fix are imported first, torch among them."""
    torch_version = installed_version("torch")
    active = is_armed()
    unloadable: dict[str, str] = {}
    if live and active and torch_version is not None:
        unloadable = _load_targets()
    past_us = engine.compiler_past_us()
    active = active and not past_us
    engine.catch_up()
    plan = engine.current_plan() or engine.make_plan()
    reasons = [] if active else [_why_inactive(plan.settings, past_us)]
    rows = []
    for id in dict.fromkeys([*plan.fixes, *plan.decided]):
        outcome = engine.outcome_of(plan, id)
        # Where the compiler itself does not load, that is what each fix waits for.
        missing = next((name for name in (*engine.COMPILER, outcome.module) if name in unloadable), None)
        if outcome.state == "waiting" and missing is not None:
            outcome = Outcome("waiting", f"{missing} cannot be imported: {unloadable[missing]}", missing)
        elif outcome.state == "waiting":
            outcome = _missed(plan.fixes[id]) or outcome
        rows.append(_row(id, plan.fixes.get(id), outcome))
    return Report(
        version=__version__,
        python=platform.python_version(),
        torch=torch_version,
        enabled=plan.settings.enabled,
        active=active,
        reason="; ".join([*reasons, *plan.settings.problems]) or None,
        live=live,
        unloadable=unloadable,
        fingerprint=fingerprint.take(plan),
        fixes=rows,
        unfixed=[_unfixed_row(bug) for bug in catalog.unfixed(plan.fixes).values()],
    )


def is_armed() -> bool:
    """Whether fixes are applied in this process: the hook waits for torch's compiler, or has seen it."""
    return watcher in sys.meta_path or engine.current_plan() is not None


def _missed(fix: Fix) -> Outcome | None:
    if is_armed():
        return None
    for name in fix.modules:
        if name in sys.modules:
            reason = f"{name} was loaded while the hook was not active; torch_forwardfix.activate() patches it"
            return Outcome("missed", reason, name)
    return None


def _load_targets() -> dict[str, str]:
    errors = {}
    for name in engine.COMPILER:
        try:
            import_module(name)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    plan = engine.current_plan()
    for name in sorted(plan.modules) if plan else ():
        try:
            import_module(name)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


def _why_inactive(wishes: settings.Settings, past_us: list[str]) -> str:
    if past_us:
        return (
            f"{' and '.join(past_us)} was loaded past the hook, before it was armed or by a finder ahead of it; only "
            "this report made up for it: call torch_forwardfix.activate() after the import"
        )
    if not wishes.enabled:
        return f"{settings.SWITCH} switches everything off"
    if sys.flags.no_site:
        return "Python was started with -S, so torch_forwardfix.pth was not read; call torch_forwardfix.activate()"
    return (
        "torch_forwardfix.pth was not read when this interpreter started: install the wheel with pip into this "
        "environment (an editable or --target install does not count), or call torch_forwardfix.activate()"
    )


def _row(id: str, fix: Fix | None, outcome: Outcome) -> FixStatus:
    if fix is None:
        return FixStatus(id, "", None, (), {}, None, (), False, outcome.state, outcome.reason, {})
    return FixStatus(
        id=id,
        title=fix.title,
        kind=fix.kind,
        upstream=fix.upstream,
        affects=dict(fix.affects),
        fixed_in=fix.fixed_in,
        targets=fix.targets,
        changes_codegen=fix.changes_codegen,
        state=outcome.state,
        reason=outcome.reason,
        proved_on=catalog.proved_on(fix),
    )


def why_not_here(bug: Unfixed) -> str | None:
    """Say why the installed releases do not have ``bug``, or why that cannot be told; None where they have it."""
    try:
        return why_not_affected(bug.affects)
    except ValueError as error:
        return str(error)


def _unfixed_row(bug: Unfixed) -> UnfixedStatus:
    reason = why_not_here(bug)
    return UnfixedStatus(
        id=bug.id,
        title=bug.title,
        kind=bug.kind,
        upstream=bug.upstream,
        affects=dict(bug.affects),
        fixed_in=bug.fixed_in,
        why=bug.why,
        workaround=bug.workaround,
        here=reason is None,
        reason=reason,
        seen_on=catalog.seen_on(bug),
    )
