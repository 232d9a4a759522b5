"""Which fixes another release of torch would need: what an upgrade makes unnecessary, and what it brings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

from packaging.version import InvalidVersion, Version

from . import catalog, gates
from .report import FixStatus


@dataclass(frozen=True)
class Upgrade:
    """One newer release of torch, by ids: what is needed here and there, here alone (``gone``) and there alone."""

    torch: str
    remain: tuple[str, ...]
    gone: tuple[str, ...]
    new: tuple[str, ...]


def upgrades(torch: str | None, fixes: Sequence[FixStatus]) -> list[Upgrade]:
    """Return the releases of torch newer than ``torch`` that the evidence knows, the oldest first.

    ``fixes`` are the rows of the report: those that are applied or wait are needed here, those that the user has
    switched off nowhere. Other distributions are taken as they are installed. Where ``torch`` cannot be read, the list
    is empty.
    """
    try:
        here = Version(torch or "").release
    except InvalidVersion:
        return []
    releases = {row["release"] for row in catalog.evidence() if row["release"].startswith("torch ")}
    known = sorted(Version(release.removeprefix("torch ")) for release in releases)
    installed = cache(gates.installed_version)
    wanted = [fix for fix in fixes if fix.state != "disabled" and _others_in_range(fix, installed)]
    needed = [fix.id for fix in fixes if fix.state in ("applied", "waiting")]
    found = []
    for version in (str(version) for version in known if version.release > here):
        there = [
            fix.id for fix in wanted if "torch" not in fix.affects or gates.in_range(version, fix.affects["torch"])
        ]
        found.append(
            Upgrade(
                torch=version,
                remain=tuple(id for id in there if id in needed),
                gone=tuple(id for id in needed if id not in there),
                new=tuple(id for id in there if id not in needed),
            )
        )
    return found


def _others_in_range(fix: FixStatus, installed: Callable[[str], str | None]) -> bool:
    others = {name: specifier for name, specifier in fix.affects.items() if name != "torch"}
    try:
        # Without any range there is no fix, but a plug-in that could not be loaded.
        return bool(fix.affects) and gates.why_not_affected(others, installed) is None
    except ValueError:
        return False


def best(found: Collection[Upgrade]) -> Upgrade | None:
    """The release that leaves the fewest fixes to apply, the oldest of those; None where no release is known."""
    return min(found, key=lambda upgrade: len(upgrade.remain) + len(upgrade.new), default=None)
