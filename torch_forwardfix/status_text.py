"""``status`` as text for people: at most 100 columns, what is wrong first, then the worst kind of bug first."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from .engine import COMPILER
from .fix import KINDS, Kind
from .report import FixStatus, Report
from .upgrade import Upgrade, best

# Columns: of a line, of an id, of the release since which upstream has the fix.
WIDTH, ID, SINCE = 100, 29, 10

# Of what is wrong the reason is told, of what goes well the symptom that is gone.
_WRONG = ("failed", "drifted", "missed", "foreign", "superseded")
_APPLY = ("applied", "waiting")
_NOT_NEEDED = ("not-affected", "already-fixed")
KIND_NAMES: dict[Kind, str] = {
    "wrong-result": "wrong results",
    "crash": "crashes",
    "cache": "caches",
    "startup": "time to compile",
    "config": "configuration",
}
assert list(KIND_NAMES) == list(KINDS)

_RESET = "\033[0m"
_STYLES = {"bold": "\033[1m", "good": "\033[32m", "bad": "\033[31m", "note": "\033[33m", "dim": "\033[2m"}


def has_colours(stream: TextIO) -> bool:
    """Whether to colour what goes to ``stream``: NO_COLOR, then FORCE_COLOR, then whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def print_status(made: Report, upgrades: Sequence[Upgrade]) -> None:
    """Print the report, and a sentence about ``upgrades`` at its end."""
    coloured = has_colours(sys.stdout)
    for style, line in _lines(made, upgrades):
        print(f"{_STYLES[style]}{line}{_RESET}" if coloured and style else line)


def print_upgrades(made: Report, upgrades: Sequence[Upgrade]) -> None:
    """Print for each newer release of torch which fixes would remain, and which would come."""
    coloured = has_colours(sys.stdout)
    for upgrade in upgrades:
        heading = f"torch {upgrade.torch}: {_fixes(len(upgrade.remain) + len(upgrade.new))} to apply"
        print(f"{_STYLES['bold']}{heading}{_RESET}" if coloured else heading)
        for label, ids in (("remain", upgrade.remain), ("new", upgrade.new), ("unnecessary", upgrade.gone)):
            if ids:
                print(fill(", ".join(ids), f"  {label:<13}", " " * 15))
        print()
    print(fill(sentence(made, upgrades)))


def fill(text: str, first: str = "", rest: str | None = None) -> str:
    """Wrap ``text`` at 100 columns; paths and ids stay in one piece."""
    rest = first if rest is None else rest
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


def cell(text: str, width: int) -> str:
    """Pad ``text`` to a column of ``width``. What fills it, as ids of plug-ins may, is still set off from the next."""
    return f"{text:<{width - 1}} "


Line = tuple[str, str]


def _lines(made: Report, upgrades: Sequence[Upgrade]) -> Iterator[Line]:
    torch = f"torch {made.torch}" if made.torch else "torch is not installed"
    active = "active" if made.active else "not active"
    yield "bold", f"torch-forwardfix {made.version}, Python {made.python}, {torch}: {active}"
    if made.reason:
        yield "bad", fill(made.reason, "  ")
    yield from _reasons("not applied though needed here", "bad", [fix for fix in made.fixes if fix.state in _WRONG])
    yield from _table("applied", "good", [fix for fix in made.fixes if fix.state == "applied"])
    waiting = [fix for fix in made.fixes if fix.state == "waiting"]
    if compiler_unloadable(made):
        yield from _reasons("not applied: torch's compiler cannot be imported", "bad", waiting)
    elif made.live and made.active:
        yield from _reasons("waiting, though torch's compiler was loaded", "note", waiting)
    elif made.active:
        yield from _table("applied when torch's compiler loads", "good", waiting)
    else:
        yield from _table("needed, but not applied: the hook is not active", "bad", waiting)
    yield from _reasons("switched off", "note", [fix for fix in made.fixes if fix.state == "disabled"])
    here = [bug for bug in made.unfixed if bug.here]
    if here:
        yield "", ""
        yield "note", f"known and not fixed here: {len(here)}"
        for bug in here:
            yield "", fill(bug.title, f"  {cell(bug.id, ID)}", " " * (2 + ID))
            yield "dim", fill(f"what to do: {bug.workaround}", " " * (2 + ID))
    rest = [fix for fix in made.fixes if fix.state in _NOT_NEEDED]
    if rest:
        yield "", ""
        yield "dim", f"not needed here: {len(rest)}"
        yield "dim", fill(", ".join(fix.id for fix in rest), "  ")
    yield "", ""
    yield "", fill(sentence(made, upgrades))


def compiler_unloadable(made: Report) -> bool:
    """Whether torch's compiler could not be imported for the report."""
    return any(name in made.unloadable for name in COMPILER)


def _table(heading: str, style: str, fixes: Sequence[FixStatus]) -> Iterator[Line]:
    if not fixes:
        return
    yield "", ""
    yield style, f"{heading}: {len(fixes)}"
    yield "dim", f"  {'':<{ID}}{'upstream':<{SINCE}}symptom"
    for kind, name in KIND_NAMES.items():
        ours = [fix for fix in fixes if fix.kind == kind]
        if ours:
            yield "bold", f"  {name}"
        for fix in ours:
            yield (
                "",
                fill(
                    fix.title + _basis(fix),
                    f"  {cell(fix.id, ID)}{fix.fixed_in or 'open':<{SINCE}}",
                    " " * (2 + ID + SINCE),
                ),
            )


def _basis(fix: FixStatus) -> str:
    """What the proof rests on, where that is not the plain case: a run on the CPU."""
    ran = [way.removeprefix("gpu ") for way in fix.proved_on if way.startswith("gpu ")]
    if ran:
        return f" (proved on {', '.join(ran)})"
    return " (proved by generated code)" if "generated" in fix.proved_on else ""


def _reasons(heading: str, style: str, fixes: Sequence[FixStatus]) -> Iterator[Line]:
    if not fixes:
        return
    yield "", ""
    yield style, f"{heading}: {len(fixes)}"
    for fix in fixes:
        yield "", fill(f"{fix.state}: {fix.reason}", f"  {cell(fix.id, ID)}", " " * (2 + ID))


def sentence(made: Report, upgrades: Iterable[Upgrade]) -> str:
    """Say in one sentence what this torch needs, and which release would need less."""
    if made.torch is None:
        return "torch is not installed here: no fix applies."
    if not made.enabled:
        return f"torch {made.torch}: all fixes are switched off."
    if compiler_unloadable(made):
        return f"torch {made.torch}: its compiler cannot be imported, so that no fix applies."
    applied = sum(fix.state in _APPLY for fix in made.fixes)
    rest = sum(fix.state in _NOT_NEEDED for fix in made.fixes)
    verb = ("applies" if applied == 1 else "apply") if made.active else "would apply"
    text = f"torch {made.torch}: {_fixes(applied)} {verb}, {rest} not needed"
    upgrade = best(list(upgrades))
    if upgrade is None or not upgrade.gone:
        return f"{text}."
    text += f"; upgrading to {upgrade.torch} would make {len(upgrade.gone)} of them unnecessary"
    return f"{text}, and need {len(upgrade.new)} others." if upgrade.new else f"{text}."


def _fixes(count: int) -> str:
    return f"{count} fix" if count == 1 else f"{count} fixes"
