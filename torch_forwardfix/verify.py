"""Proof: the reproduction of a fix, run in fresh processes without the fix and with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from typing import Literal

from . import catalog, engine, generation, settings
from .fix import Bug, BugPresent, Fix

Verdict = Literal["present", "absent", "error"]

TIMEOUT_SECONDS = 900.0

_MARKER = "torch_forwardfix.verify: "


@dataclass(frozen=True)
class Run:
    """One run of a reproduction: whether the bug was there, what was seen, and the state of the fix afterwards.

    The state is ``no fix`` where there is none. ``by`` says what the verdict rests on: ``cpu``, ``generated`` for
    kernels that were written for a GPU and not run, or ``gpu`` and the name of the GPU that ran them. ``seconds`` is
    what the whole process took.
    """

    verdict: Verdict
    detail: str
    state: str
    by: str = "cpu"
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        """The run as plain strings and numbers."""
        return {**vars(self), "seconds": round(self.seconds, 2)}


@dataclass(frozen=True)
class Proof:
    """Both runs of one fix. ``holds`` where the bug is there without it and gone with it, and the fix was applied."""

    id: str
    without: Run
    with_fix: Run

    @property
    def holds(self) -> bool:
        return (
            self.without.verdict == "present" and self.with_fix.verdict == "absent" and self.with_fix.state == "applied"
        )

    def as_json(self) -> dict[str, object]:
        """The proof as plain dictionaries, strings and numbers."""
        return {
            "id": self.id,
            "holds": self.holds,
            "without": self.without.as_json(),
            "with": self.with_fix.as_json(),
        }


def prove(fix: Fix, tell: Callable[[str, Run], None] = lambda step, run: None) -> Proof:
    """Run the reproduction of ``fix`` twice, each time in a fresh process with compile caches of its own.

    ``tell`` is called after each run, with ``without`` or ``with`` and the run.
    """
    without = _run(fix, settings.disabling([fix.id]))
    tell("without", without)
    with_fix = _run(fix, {})
    tell("with", with_fix)
    return Proof(fix.id, without, with_fix)


@contextmanager
def own_caches() -> Iterator[dict[str, str]]:
    """The environment variables that give a process compile caches of its own; they are removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="torch-forwardfix-", ignore_cleanup_errors=True) as folder:
        yield {
            "TORCHINDUCTOR_CACHE_DIR": folder,
            # torch puts Triton's cache beside its own, but not where the user has named another folder.
            "TRITON_CACHE_DIR": os.path.join(folder, "triton"),
            "VLLM_CACHE_ROOT": os.path.join(folder, "vllm"),
        }


def observe(bug: Bug) -> Run:
    """Run the reproduction once, in a fresh process with compile caches of its own."""
    return _run(bug, {})


def _run(bug: Bug, environment: dict[str, str]) -> Run:
    start = monotonic()
    run = _answer(bug, environment)
    return replace(run, seconds=monotonic() - start)


def _answer(bug: Bug, environment: dict[str, str]) -> Run:
    command = [
        sys.executable,
        "-c",
        "import sys; from torch_forwardfix.verify import child; child(sys.argv[1])",
        bug.id,
    ]
    with own_caches() as caches:
        try:
            process = subprocess.run(
                command,
                env={**os.environ, **caches, **environment},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return Run("error", f"no answer within {TIMEOUT_SECONDS:.0f} s", "")
    for line in process.stdout.splitlines():
        if line.startswith(_MARKER):
            return Run(**json.loads(line.removeprefix(_MARKER)))
    last = next(reversed(process.stderr.strip().splitlines()), "")
    return Run("error", f"exit status {process.returncode} without an answer: {last}", "")


def child(id: str) -> None:
    """Run one reproduction in this process and print its verdict for :func:`prove`."""
    verdict: Verdict = "absent"
    detail = ""
    try:
        known: Mapping[str, Bug] = {**catalog.unfixed(), **catalog.load().fixes}
        known[id].reproduce()
    except BugPresent as bug:
        verdict, detail = "present", str(bug)
    except Exception as error:
        verdict, detail = "error", f"{type(error).__name__}: {error}"
    plan = engine.current_plan() or engine.make_plan()
    state = engine.outcome_of(plan, id).state if id in plan.fixes else "no fix"
    answer = {"verdict": verdict, "detail": detail, "state": state, "by": generation.way()}
    print(f"\n{_MARKER}{json.dumps(answer)}", flush=True)
