"""What ``verify`` prints at its end, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .fix import Outcome
from .status_text import ID, cell, fill
from .verify import Proof, Run

# Columns: of a verdict, of the seconds.
VERDICT, SECONDS = 9, 7


@dataclass
class Made:
    """What has been done so far: the proofs, the bugs that stay and were looked for, and why others were not run.

    ``waiting`` in ``not_run`` are fixes that wait for a hook that is not active.
    """

    proofs: list[Proof] = field(default_factory=list)
    seen: dict[str, Run] = field(default_factory=dict)
    not_run: dict[str, Outcome] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """Whether every fix that is needed here was tried and holds, and every bug that stays is there."""
        return (
            all(proof.holds for proof in self.proofs)
            and all(run.verdict == "present" for run in self.seen.values())
            and all(outcome.state not in ("failed", "waiting") for outcome in self.not_run.values())
        )

    def as_json(self) -> dict[str, object]:
        """All of it as plain dictionaries, strings and numbers."""
        return {
            "proofs": [proof.as_json() for proof in self.proofs],
            "unfixed": {
                id: {"verdict": run.verdict, "detail": run.detail, "seconds": round(run.seconds, 2)}
                for id, run in self.seen.items()
            },
            "not_run": {id: {"state": outcome.state, "reason": outcome.reason} for id, outcome in self.not_run.items()},
        }


def lines(made: Made) -> Iterator[str]:
    """Yield the table: what is proved, what is not and why, what stays, what was not run."""
    proved = [proof for proof in made.proofs if proof.holds]
    rest = [proof for proof in made.proofs if not proof.holds]
    if made.proofs or made.seen:
        yield f"  {'':<{ID}}{'without':<{VERDICT}}{'with':<{VERDICT}}{'seconds':>{SECONDS}}"
    if proved:
        yield f"proved: {len(proved)}"
    for proof in proved:
        yield _row(proof.id, proof.without, proof.with_fix)
    if rest:
        yield f"NOT PROVED: {len(rest)}"
    for proof in rest:
        yield _row(proof.id, proof.without, proof.with_fix)
        for label, run in (("without", proof.without), ("with", proof.with_fix)):
            said = f"bug {run.verdict}, fix {run.state or 'unknown'}. {run.detail}".rstrip(". ")
            yield fill(said, f"    {label + ':':<9}", " " * 13)
    if made.seen:
        yield f"known and not fixed here: {len(made.seen)}"
    for id, run in made.seen.items():
        yield _row(id, run, None)
        if run.verdict != "present":
            yield fill(f"this torch should have the bug. {run.detail}".rstrip(". "), "    ")
    if made.not_run:
        yield f"not run: {len(made.not_run)}"
        yield from _not_run(made.not_run)
    seconds = sum(run.seconds for proof in made.proofs for run in (proof.without, proof.with_fix))
    yield f"{len(proved)} of {len(made.proofs)} proved here, in {seconds:.0f} s"


def _row(id: str, without: Run, with_fix: Run | None) -> str:
    seconds = without.seconds + (with_fix.seconds if with_fix else 0)
    verdicts = f"{without.verdict:<{VERDICT}}{with_fix.verdict if with_fix else '':<{VERDICT}}"
    basis = {"cpu": "", "generated": "generated code"}.get(without.by, without.by.removeprefix("gpu "))
    return f"  {cell(id, ID)}{verdicts}{seconds:>{SECONDS}.1f}  {basis}".rstrip()


def _not_run(outcomes: Mapping[str, Outcome]) -> Iterator[str]:
    """One entry for all that the same reason holds for: most often, that this release does not have the bug."""
    ids: dict[tuple[str, str], list[str]] = {}
    for id, outcome in outcomes.items():
        ids.setdefault((outcome.state, outcome.reason), []).append(id)
    for (state, reason), same in ids.items():
        yield fill(f"{', '.join(same)}: {state}: {reason}", "  ", "    ")
