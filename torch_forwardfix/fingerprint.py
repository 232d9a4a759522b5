"""What has to be the same in every process of a job, and the check that it is.

Ranks with different fixes compile different graphs, and then wait for each other in collectives that do not match.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import cache_key, engine, gates, watcher
from ._version import __version__
from .engine import Plan

# Ranks may run different versions of this package. So check_ranks() exchanges a string for ever, and where those differ
# a dictionary with these keys, of dictionaries of strings.
_EXCHANGED = ("versions", "fixes", "reasons", "host")


@dataclass(frozen=True)
class Fingerprint:
    """What decides which graphs a process compiles, as far as it is ours to know.

    ``versions`` are those of Python, of torch and the commit that it was built from, of this package, and of every
    other distribution that a fix concerns. ``fixes`` maps the ids of the fixes in force to their revisions. A fix that
    waits for its module is in force, and so is one whose probe finds the bug repaired: that follows from the build of
    torch. So `status`, which loads no torch, has the fingerprint of a process where all goes as planned; a fix that
    fails there, or is not applied over somebody else's patch, is missing. ``digest`` stands for all of it.
    """

    digest: str
    versions: Mapping[str, str]
    fixes: Mapping[str, str]


class RanksDiffer(RuntimeError):
    """Raised by :func:`check_ranks`, on every rank; the message names the ranks that differ, and how."""


def take(plan: Plan) -> Fingerprint:
    """Make the fingerprint of this process under ``plan``."""
    fixes = {id: cache_key.revision(fix.apply) for id, fix in plan.pending.items() if _why_not(plan, id) is None}
    about = {distribution for fix in plan.fixes.values() for distribution in fix.affects}
    found = {distribution: gates.installed_version(distribution) for distribution in about}
    found |= {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "torch": gates.installed_version("torch"),
        "torch-commit": gates.torch_commit(),
        "torch-forwardfix": __version__,
    }
    versions = {name: version for name, version in sorted(found.items()) if version is not None}
    return Fingerprint(cache_key.digest([versions, fixes]), versions, fixes)


def _why_not(plan: Plan, id: str) -> str | None:
    """Say why the fix is not in force in this process, None where it is."""
    outcome = engine.outcome_of(plan, id)
    if outcome.state not in ("applied", "waiting", "already-fixed"):
        return f"{outcome.state}: {outcome.reason}"
    if watcher not in sys.meta_path and engine.current_plan() is None:
        return "the hook is not active"
    return None


def check_ranks(group: Any = None) -> None:
    """Compare the fingerprints of all ranks of ``group``, a process group of ``torch.distributed``, the default one if
    None.

    Every rank has to call it, as with any collective: after ``init_process_group`` and, with NCCL, after
    ``torch.cuda.set_device``. It exchanges a few bytes for each rank, and more only where they differ. In a process
    outside of ``group`` it does nothing.

    Raises RanksDiffer where the ranks differ, on each of them; RuntimeError where there is no process group.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "torch_forwardfix.check_ranks() compares the ranks of a process group, and there is none: call "
            "torch.distributed.init_process_group() first"
        )
    if distributed.get_rank(group) < 0:
        return

    def gather(mine: Any) -> list[Any]:
        everyone: list[Any] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(everyone, mine, group)
        return everyone

    engine.catch_up()
    plan = engine.current_plan() or engine.make_plan()
    fingerprint = take(plan)
    if len(set(gather(fingerprint.digest))) == 1:
        return
    import socket

    ids = [*plan.fixes, *plan.decided]
    reasons = {id: why for id in ids if (why := _why_not(plan, id)) is not None}
    mine = (fingerprint.versions, fingerprint.fixes, reasons, {"name": socket.gethostname()})
    seen = gather(dict(zip(_EXCHANGED, mine, strict=True)))
    ranks = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    raise RanksDiffer("\n  ".join(["the ranks would not compile the same graphs:", *differences(ranks, seen)]))


def differences(ranks: Sequence[int], seen: Sequence[Mapping[str, Mapping[str, str]]]) -> list[str]:
    """Say in one line for each version and each fix on which of ``ranks`` it is what; ``seen`` is in their order."""

    def line(name: str, values: Sequence[str]) -> list[str]:
        found = {text: [rank for rank, value in zip(ranks, values, strict=True) if value == text] for text in values}
        texts = [f"{text} on {_named(who)}" for text, who in found.items()]
        return [f"{name}: {'; '.join(texts)}"] if len(texts) > 1 else []

    versions, fixes, reasons, host = ([one.get(key, {}) for one in seen] for key in _EXCHANGED)
    lines = []
    for name in sorted({name for one in versions for name in one}):
        lines += line(name, [one.get(name, "none") for one in versions])
    for id in sorted({id for one in fixes for id in one}):
        same = len({one[id] for one in fixes if id in one}) == 1
        in_force = [f"in force{'' if same else f' as revision {one[id][:12]}'}" if id in one else "" for one in fixes]
        missing = [f"not in force ({one.get(id, 'not known there')})" for one in reasons]
        lines += line(id, [text or why for text, why in zip(in_force, missing, strict=True)])
    return lines + line("host", [one.get("name", "unknown") for one in host])


def _named(ranks: list[int]) -> str:
    """Name ranks, which are in order.

    >>> _named([0, 1, 2, 3, 5])
    'ranks 0 to 3, 5'
    """
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    texts = [", ".join(map(str, run)) if len(run) < 3 else f"{run[0]} to {run[-1]}" for run in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(texts)}"
