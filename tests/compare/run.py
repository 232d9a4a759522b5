"""Run every case in one environment, without the fixes and with them, and compare.

usage: python run.py --python INTERPRETER --out FOLDER [--jobs N] [--only PATTERN]

INTERPRETER is that of an environment with torch, this package and what requirements.txt names. Results are kept in
FOLDER/torch-RELEASE; what is there already and still holds is not run again. The exit status is 1 where the arms
differ; summarise.py says whether every difference is explained.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import comparer

HERE = Path(__file__).resolve().parent
# For one case, on a busy machine, in seconds; a process needs more until its first answer.
TIMEOUT = 600
START = 300
# A new process is started after so many cases.
CHUNK = 400
# With more differences than this, finding out which fix makes each one would take too long.
MOST_BLAMED = 60

# What decides about the result of a case.
PROGRAMS = ("measure.py", "models.py", "ops.py", "worker.py")

ARMS: dict[str, dict[str, str]] = {"off": {"TORCH_FORWARDFIX": "0"}, "on": {}}
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Worker:
    """A process that answers one line with one line. ``None`` is its answer where it died or took too long."""

    def __init__(self, python: str, folder: Path, arm: str, more: Mapping[str, str]) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
        # Both arms share the folder of compiled kernels, which are named after their source.
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
        with (folder / f"{arm}.log").open("a") as log:
            self.process = subprocess.Popen(
                [python, str(HERE / "worker.py"), str(folder / "code" / arm)],
                env={**inherited, **SETTINGS, **cache, **more},
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.answers = 0
        self.too_slow = False

    def ask(self, question: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        watchdog = threading.Timer(TIMEOUT + (START if not self.answers else 0), self._give_up)
        watchdog.start()
        try:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        self.answers += 1
        return json.loads(line) if line.endswith("\n") else None

    def _give_up(self) -> None:
        self.too_slow = True
        self.process.kill()

    def end(self) -> str:
        """End the process, and say how it ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        code = self.process.wait()
        self.process.stdout.close()
        return "took too long" if self.too_slow else f"the process ended with {code}"


class Release:
    """The results of one release of torch."""

    def __init__(self, python: str, out: Path, jobs: int, only: str) -> None:
        self.python = python
        self.jobs = jobs
        self.lock = threading.Lock()
        # Where torch cannot be imported, this fails first.
        out.mkdir(parents=True, exist_ok=True)
        told = subprocess.run(
            [python, "-c", "from importlib.metadata import version; print(version('torch').partition('+')[0])"],
            capture_output=True,
            text=True,
            check=True,
        )
        self.name = told.stdout.strip()
        self.folder = out / f"torch-{self.name}"
        self.folder.mkdir(exist_ok=True)
        self.about = self._ask_about()
        self.cases = [case for case in self.about["cases"] if fnmatchcase(case, only)]
        self.applied: set[str] = set()

    def _ask_about(self) -> dict[str, Any]:
        worker = Worker(self.python, self.folder, "about", ARMS["off"])
        about = worker.ask("list")
        ended = worker.end()
        if about is None:
            raise SystemExit(f"{self.folder / 'about.log'} says why there is no list of cases: {ended}")
        return dict(about)

    def forget_what_no_longer_holds(self) -> None:
        programs = hashlib.sha256(json.dumps(SETTINGS).encode())
        for name in PROGRAMS:
            programs.update((HERE / name).read_bytes())
        same = [programs.hexdigest(), self.about["versions"]]
        for arm, basis in (("off", same), ("on", [*same, self.about["ours"]])):
            mark = self.folder / f"{arm}.basis"
            text = json.dumps(basis)
            if not mark.exists() or mark.read_text() != text:
                for old in self.folder.glob(f"{arm}*.jsonl"):
                    old.unlink()
                # What was run again for a comparison with the other arm is of no use alone.
                for old in self.folder.glob("*again*.jsonl"):
                    old.unlink()
                mark.write_text(text)

    def run(self, arms: Mapping[str, tuple[Mapping[str, str], Iterable[str]]], suffix: str = "") -> None:
        """Run the cases of each arm, as far as there is no record of them; arms are name: (environment, cases)."""
        tasks = []
        for arm, (environment, cases) in arms.items():
            file = self.folder / f"{arm}{suffix}.jsonl"
            done = comparer.read(file)
            _end_line(file)
            kinds: dict[str, list[str]] = {}
            for case in cases:
                if case not in done or done[case]["verdict"] == "timeout":
                    kinds.setdefault(_process_of(case), []).append(case)
            for some in kinds.values():
                tasks += [(arm, environment, file, some[at : at + CHUNK]) for at in range(0, len(some), CHUNK)]
        with ThreadPoolExecutor(self.jobs) as pool:
            for future in [pool.submit(self._run_chunk, *task) for task in tasks]:
                future.result()

    def _run_chunk(self, arm: str, environment: Mapping[str, str], file: Path, cases: list[str]) -> None:
        worker: Worker | None = None
        began = time.monotonic()
        with file.open("a", encoding="utf-8") as results:
            for case in cases:
                worker = worker or Worker(self.python, self.folder, arm, environment)
                record = worker.ask(case)
                if record is None:
                    ended = worker.end()
                    record = {"case": case, "verdict": "timeout" if worker.too_slow else "error", "detail": ended}
                    worker = None
                self._write(results, record)
        if worker is not None:
            self._note_fixes(arm, worker.ask("fixes") or {})
            worker.end()
        seconds = time.monotonic() - began
        print(f"torch {self.name} {arm}: {len(cases)} cases from {cases[0]} in {seconds:.0f} s", flush=True)

    def _write(self, results: IO[str], record: Mapping[str, Any]) -> None:
        with self.lock:
            results.write(json.dumps(record) + "\n")
            results.flush()

    def _note_fixes(self, arm: str, states: Mapping[str, str]) -> None:
        applied = {id for id, state in states.items() if state == "applied"}
        if arm == "off" and applied:
            raise SystemExit(f"the arm without fixes has {', '.join(sorted(applied))}")
        if arm == "on":
            file = self.folder / "on.fixes.jsonl"
            with self.lock, file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"case": "fixes", "applied": sorted(applied)}) + "\n")

    def fixes_applied(self) -> list[str]:
        file = self.folder / "on.fixes.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return sorted({id for line in lines for id in json.loads(line)["applied"]})

    def records(self, arm: str, suffix: str = "") -> dict[str, dict[str, Any]]:
        """What was recorded of the cases that there are now."""
        return comparer.read(self.folder / f"{arm}{suffix}.jsonl")


def _process_of(case: str) -> str:
    """Cases with the same answer share a process."""
    group, backend, _ = case.split("/")
    return group if group == "models" else f"{group}/{backend}"


def _end_line(file: Path) -> None:
    """A run that was stopped may have left half a line."""
    if file.exists() and not file.read_text(encoding="utf-8").endswith("\n"):
        with file.open("a", encoding="utf-8") as lines:
            lines.write("\n")


def compare_release(release: Release) -> dict[str, Any]:
    release.forget_what_no_longer_holds()
    arms = ARMS.items()
    generated = [case for case in release.cases if "/inductor-run/" not in case]
    release.run({arm: (environment, generated) for arm, environment in arms})

    # Same code, same values; other code has to be run.
    off, on = release.records("off"), release.records("on")
    other_code = [case for case in comparer.suspects(off, on) if "code" in comparer.differing(off[case], on[case])]
    to_run = [case for case in release.cases if "/inductor-run/" in case]
    to_run += [case.replace("/inductor-code/", "/inductor-run/") for case in other_code if "-code/" in case]
    to_run = list(dict.fromkeys(to_run))
    release.run({arm: (environment, to_run) for arm, environment in arms})

    wanted = {*generated, *to_run}
    off, on = ({c: r for c, r in release.records(arm).items() if c in wanted} for arm in ARMS)
    suspects = comparer.suspects(off, on)
    release.run({arm: (environment, suspects) for arm, environment in arms}, "-again")
    found = comparer.compare(off, on, release.records("off", "-again"), release.records("on", "-again"))

    fixes = release.fixes_applied()
    causes = find_causes(release, found.differences, off, fixes)
    differences = [
        {"case": difference.case, "what": str(difference), "fixes": causes.get(difference.case, [])}
        for difference in found.differences
    ]
    return {
        "torch": release.name,
        "versions": release.about["versions"],
        "package": release.about["ours"][:16],
        "fixes": fixes,
        "arms": {"off": comparer.counts(off), "on": comparer.counts(on)},
        "differences": differences,
        "flaky": found.flaky,
        "missing": found.missing,
        "open": found.open,
    }


def find_causes(
    release: Release,
    differences: list[comparer.Difference],
    off: comparer.Records,
    fixes: list[str],
) -> dict[str, list[str]]:
    """Run each case that differs with one fix alone: with that which is known to change it, else with each in turn."""
    explanations = json.loads((HERE / "explained.json").read_text(encoding="utf-8"))
    known: dict[str, list[str]] = {}
    for difference in differences:
        for fix in comparer.candidates(difference.case, fixes, explanations):
            known.setdefault(fix, []).append(difference.case)
    release.run({f"on-again-{fix}": ({"TORCH_FORWARDFIX_ONLY": fix}, cases) for fix, cases in known.items()})
    causes = {}
    for fix, cases in known.items():
        alone = release.records(f"on-again-{fix}")
        causes |= {
            difference.case: [fix]
            for difference in differences
            if difference.case in cases and comparer.is_all_of_it(difference, alone[difference.case])
        }

    rest = [difference for difference in differences if difference.case not in causes][:MOST_BLAMED]
    if rest:
        cases = [difference.case for difference in rest]
        release.run({f"on-again-{fix}": ({"TORCH_FORWARDFIX_ONLY": fix}, cases) for fix in fixes})
    tried = {fix: release.records(f"on-again-{fix}") for fix in fixes}
    for difference in rest:
        of_case = {fix: records[difference.case] for fix, records in tried.items() if difference.case in records}
        causes[difference.case] = comparer.blame(difference, off[difference.case], of_case)
    return causes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="*", help="cases with such names, ops/*/sum for example")
    wishes = parser.parse_args()
    release = Release(wishes.python, wishes.out.resolve(), wishes.jobs, wishes.only)
    summary = compare_release(release)
    (release.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({name: summary[name] for name in ("torch", "fixes", "arms", "differences", "flaky", "missing")}))
    print(f"torch {release.name}: {(used.ru_utime + used.ru_stime) / 60:.1f} minutes of CPU time")
    return 1 if any((summary["differences"], *summary["missing"].values(), summary["open"])) else 0


if __name__ == "__main__":
    sys.exit(main())
