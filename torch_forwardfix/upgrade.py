"""Which fixes another release of torch would need: what an upgrade makes unnecessary, and what it brings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from . import catalog, gates
from .fix import Fix


@dataclass(frozen=True)
class Upgrade:
    """One newer release of torch, by ids: what is needed here and there, here alone (``gone``) and there alone."""

    torch: str
    remain: tuple[str, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]


def upgrades(torch: str | None, needed: Collection[str], disabled: Collection[str] = ()) -> list[Upgrade]:
    """Return the releases of torch newer than ``torch`` that the evidence knows, the oldest first.

    ``needed`` are the ids of the fixes that apply here, ``disabled`` those that the user does not want. Other
    distributions are taken as they are installed. Where ``torch`` cannot be read, the list is empty.
    """
    try:
        here = Version(torch or "").release
    except InvalidVersion:
        return []
    names = (row["release"].partition(" ") for row in catalog.evidence())
    known = {Version(release) for name, _, release in names if name == "torch"}
    fixes = [fix for fix in catalog.load().fixes.values() if fix.id not in disabled]
    found = []
    for version in sorted(version for version in known if version.release > here):
        there = [fix.id for fix in fixes if _in_range(fix, str(version))]
        found.append(
            Upgrade(
                torch=str(version),
                remain=tuple(id for id in there if id in needed),
                gone=tuple(id for id in needed if id not in there),
                new=tuple(id for id in there if id not in needed),
            )
        )
    return found


def _in_range(fix: Fix, torch: str) -> bool:
    others = {name: specifier for name, specifier in fix.affects.items() if name != "torch"}
    try:
        if gates.why_not_affected(others) is not None:
            return False
    except ValueError:
        return False
    return "torch" not in fix.affects or gates.in_range(torch, fix.affects["torch"])


def best(found: Collection[Upgrade]) -> Upgrade | None:
    """The release that leaves the fewest fixes to apply, the oldest of those; None where no release is known."""
    return min(found, key=lambda upgrade: len(upgrade.remain) + len(upgrade.new), default=None)
