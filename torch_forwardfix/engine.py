"""Gate, probe, patch, outcome: what happens when torch's compiler loads. It decides, and keeps the record."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from logging import INFO, WARNING, getLogger
from time import perf_counter
from types import ModuleType

from . import cache_key, catalog, patching, settings, trace, watcher
from .fix import STATES, Drifted, Fix, Outcome, State
from .gates import installed_version, why_not_affected
from .hook import PostImportFinder

log = getLogger(__package__)

# The boot waits for these.
COMPILER = ("torch._dynamo", "torch._inductor")

# A fix with one of these on any of its modules is taken back from all of them, and stays so.
_NOT_APPLICABLE = ("failed", "drifted", "foreign", "missed")
# Of a fix with several modules, the outcome that comes first here is that of the whole.
_WORST_FIRST = (*_NOT_APPLICABLE, "applied", "waiting", "already-fixed")
assert set(_WORST_FIRST) <= set(STATES)


class FixNotApplied(RuntimeError):
    """Raised at import under ``TORCH_FORWARDFIX_STRICT=1`` for a fix that is needed and could not be applied."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done in this process.

    ``decided`` are the outcomes that the environment and the versions settle. ``pending`` are the fixes that wait for
    their modules, whose outcomes come into ``outcomes``, by fix and module, and the way back into ``undo``. ``fixes``
    are all that could be loaded. Threads that import add to both, so whoever walks along them takes a copy.
    """

    settings: settings.Settings
    decided: Mapping[str, Outcome]
    pending: Mapping[str, Fix]
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)
    undo: dict[tuple[str, str], patching.Undo] = field(default_factory=dict)
    fixes: Mapping[str, Fix] = field(default_factory=dict)

    @property
    def modules(self) -> frozenset[str]:
        """The modules that a pending fix, or the salts that it needs, want to see."""
        salted = cache_key.SALTS if any(fix.changes_codegen for fix in self.pending.values()) else ()
        return frozenset(module for fix in self.pending.values() for module in fix.modules).union(salted)

    def changing_codegen(self, *also: State) -> list[Fix]:
        """The pending fixes that change generated code, as far as nothing but ``also`` speaks against them."""
        states = ("applied", "waiting", *also)
        return [fix for id, fix in self.pending.items() if fix.changes_codegen and outcome_of(self, id).state in states]


def make_plan() -> Plan:
    """Evaluate the environment and every gate. It imports no torch and changes nothing."""
    known = catalog.load()
    wishes = settings.read(list(known.fixes))
    decided = dict(known.broken)
    pending = {}
    installed = cache(installed_version)
    for id, fix in known.fixes.items():
        if id in wishes.disabled:
            decided[id] = Outcome("disabled", wishes.disabled[id])
            continue
        try:
            reason = why_not_affected(fix.affects, installed)
        except Exception as error:
            decided[id] = Outcome("failed", str(error))
            continue
        if reason is None:
            pending[id] = fix
        else:
            decided[id] = Outcome("not-affected", reason)
    return Plan(wishes, decided, pending, fixes=known.fixes)


# One entry at most. Threads may start at the same time: setdefault lets one of them win, without a lock that could be
# held while something else is imported.
_started: dict[str, tuple[Plan, PostImportFinder]] = {}


def current_plan() -> Plan | None:
    """The plan that is in force, None before torch's compiler has been loaded."""
    return _started["plan"][0] if _started else None


def take_over() -> PostImportFinder:
    """Start, once: make the plan, replace the watcher by the finder, and patch what is loaded already.

    Raises FixNotApplied under ``TORCH_FORWARDFIX_STRICT=1``, nothing else.
    """
    if not _started:
        plan = make_plan()
        finder = PostImportFinder(plan.modules, lambda module: _module_loaded(plan, module))
        if _started.setdefault("plan", (plan, finder))[0] is plan:
            for problem in plan.settings.problems:
                _log(WARNING, problem)
            for id, outcome in plan.decided.items():
                _tell(plan, id, outcome)
            trace.announce(plan)
    plan, finder = _started["plan"]
    _install(finder, needed=bool(plan.pending))
    catch_up()
    return finder


def activate() -> None:
    """Arm the hook where no ``.pth`` file is read: ``python -S``, zipapps, frozen programs, ``pip install --target``.

    Call it before torch.compile is used. Where torch's compiler is loaded already, it is patched now. It does nothing
    under ``TORCH_FORWARDFIX=0``. Raises FixNotApplied under ``TORCH_FORWARDFIX_STRICT=1``.
    """
    if not settings.read(()).enabled:
        return
    if any(name in sys.modules for name in COMPILER):
        finder = take_over()
        if finder not in sys.meta_path and _started["plan"][0].pending:
            sys.meta_path.insert(0, finder)
    elif watcher not in sys.meta_path and not _started:
        sys.meta_path.insert(0, watcher)


def _install(finder: PostImportFinder, *, needed: bool) -> None:
    if needed:
        for position, other in enumerate(sys.meta_path):
            if other is watcher:
                sys.meta_path[position] = finder
    elif watcher in sys.meta_path:
        # A new list: another thread may be walking along the old one, and would skip a finder if that shrank.
        sys.meta_path = [other for other in sys.meta_path if other is not watcher]


def compiler_past_us() -> list[str]:
    """What is loaded of torch's compiler though the armed hook never saw it: a finder ahead of it asked nobody, say."""
    if _started or watcher not in sys.meta_path:
        return []
    return [name for name in COMPILER if name in sys.modules]


def catch_up(*, wait: bool = False) -> None:
    """Patch what was loaded before us or past us. With ``wait``, what is still loading is left for the next time."""
    if compiler_past_us():
        take_over()
        return
    if not _started:
        return
    plan, finder = _started["plan"]
    for name in plan.modules:
        module = sys.modules.get(name)
        if module is None:
            continue
        half_way = getattr(getattr(module, "__spec__", None), "_initializing", False)
        if name in cache_key.SALTS and not half_way:
            _salt(plan, module)
        elif name in cache_key.SALTS and not finder.has_hooked(name) and not wait:
            _do_without_salt(plan, Outcome("missed", f"{name} had begun to load before the hook was there", name))
        for id, fix in plan.pending.items():
            if name not in fix.modules or (id, name) in plan.outcomes:
                continue
            if not half_way:
                _treat(plan, fix, module, remark=", which was loaded already")
            elif not finder.has_hooked(name) and not wait:
                outcome = Outcome("missed", f"{name} had begun to load before the hook was there", name)
                _take_back(plan, fix, outcome)
                _record(plan, fix, outcome)


def _module_loaded(plan: Plan, module: ModuleType) -> None:
    if module.__name__ in cache_key.SALTS:
        _salt(plan, module)
    for fix in plan.pending.values():
        if module.__name__ in fix.modules:
            _treat(plan, fix, module)
    settled = {name for _, name in list(plan.outcomes)}
    if any(not settled.issuperset(finder.loaded_past()) for _, finder in _started.values()):
        catch_up(wait=True)


def _salt(plan: Plan, module: ModuleType) -> None:
    if not any(fix.changes_codegen for fix in plan.pending.values()):
        return
    # An artifact is saved when every probe has decided, and may be loaded before any has: for both to say the same,
    # a bug that a probe found fixed counts there like one that waits for its probe.
    also: tuple[State, ...] = ("already-fixed",) if module.__name__ == cache_key.PACKAGE else ()
    try:
        with patching.journal():
            cache_key.SALTS[module.__name__](module, lambda: plan.changing_codegen(*also))
    except Exception as error:
        state: State = "drifted" if isinstance(error, Drifted) else "failed"
        reason = f"compile caches cannot be told apart: {type(error).__name__}: {error}"
        _do_without_salt(plan, Outcome(state, reason, module.__name__))


def _do_without_salt(plan: Plan, outcome: Outcome) -> None:
    # Without the salt torch would load what was compiled without the fix, and leave the reverse behind.
    for fix in plan.changing_codegen():
        for name in fix.modules:
            plan.outcomes[fix.id, name] = outcome
        _take_back(plan, fix, outcome)
        _tell(plan, fix.id, outcome)


def _take_back(plan: Plan, fix: Fix, outcome: Outcome) -> None:
    for other, steps in list(plan.undo.items()):
        if other[0] == fix.id:
            taken_back = replace(outcome, module=other[1], duration=0.0)
            try:
                patching.roll_back(steps)
            except Exception as error:
                taken_back = replace(taken_back, state="failed", reason=f"{outcome.reason}; then {error}")
            plan.outcomes[other] = taken_back


def _treat(plan: Plan, fix: Fix, module: ModuleType, *, remark: str = "") -> None:
    """Probe and patch one module for one fix: all of its modules, or none. ``remark`` ends the reason of success."""
    start = perf_counter()
    state: State
    key = (fix.id, module.__name__)
    for (id, _), earlier in list(plan.outcomes.items()):
        if id == fix.id and earlier.state in _NOT_APPLICABLE:
            plan.outcomes[key] = replace(earlier, module=module.__name__, duration=0.0)
            return
    try:
        with patching.journal() as undo:
            state, reason = _probe_and_apply(plan, fix, module)
    except Drifted as drift:
        state, reason = "drifted", str(drift)
    except Exception as error:
        state, reason = "failed", f"{type(error).__name__}: {error}"
    else:
        # The second time, after a reload say, there may be nothing to do, and still something to take back.
        if undo:
            plan.undo[key] = undo
        reason += remark if state == "applied" else ""
    outcome = Outcome(state, reason, module.__name__, perf_counter() - start)
    if state in _NOT_APPLICABLE:
        _take_back(plan, fix, outcome)
    _record(plan, fix, outcome)


def _probe_and_apply(plan: Plan, fix: Fix, module: ModuleType) -> tuple[State, str]:
    for target in fix.targets:
        home, _, qualname = target.partition(":")
        if home != module.__name__:
            continue
        try:
            found = patching.lookup(module, qualname)
        except Drifted:
            continue  # a target of other releases, or drift: the probe knows
        if patching.is_ours(found):
            for (id, _), steps in list(plan.undo.items()):
                if id != fix.id and any(vars(owner).get(name) is found for owner, name, _ in steps):
                    return "foreign", f"{qualname} was replaced by the fix {id}"
            return "applied", "was applied before"
        owner = patching.foreign_owner(found, module.__name__.partition(".")[0])
        if owner is not None:
            return "foreign", f"{qualname} was replaced by {owner}"
    verdict = fix.is_present(module)
    if isinstance(verdict, str):
        return "drifted", verdict
    if not verdict:
        return "already-fixed", f"{module.__name__} does not have the bug"
    fix.apply(module)
    return "applied", f"patched {module.__name__}"


def _record(plan: Plan, fix: Fix, outcome: Outcome) -> None:
    assert outcome.module is not None
    plan.outcomes[fix.id, outcome.module] = outcome
    _tell(plan, fix.id, outcome)


def _tell(plan: Plan, id: str, outcome: Outcome) -> None:
    if outcome.state == "applied":
        _log(INFO, f"{id}: applied to {outcome.module}")
    elif outcome.state in ("failed", "drifted", "missed"):
        _log(WARNING, f"{id}: {outcome.state}: {outcome.reason}")
        if plan.settings.strict and outcome.state != "missed":
            raise FixNotApplied(f"{id}: {outcome.state}: {outcome.reason} ({settings.STRICT} is set)")


def _log(level: int, message: str) -> None:
    # A handler of the user's that raises must not fail the user's import.
    with suppress(Exception):
        log.log(level, "%s", message)


def outcome_of(plan: Plan, id: str) -> Outcome:
    """The outcome of one fix as a whole, so far."""
    if id in plan.decided:
        return plan.decided[id]
    fix = plan.pending[id]
    parts = [
        plan.outcomes.get((id, module)) or Outcome("waiting", f"{module} is not loaded yet", module)
        for module in fix.modules
    ]
    worst = min(parts, key=lambda part: _WORST_FIRST.index(part.state))
    if worst.state == "applied":
        reasons = "; ".join(part.reason for part in parts if part.state == "applied")
        return Outcome("applied", reasons, worst.module, sum(part.duration for part in parts))
    if worst.state == "waiting":
        names = " or ".join(part.module or "" for part in parts if part.state == "waiting")
        return Outcome("waiting", f"for {names} to load; its probe decides", worst.module)
    return worst
