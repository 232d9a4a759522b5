"""The command line: status, show, verify, bisect, startup, doctor."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from inspect import getdoc, getmodule
from pathlib import Path

from . import catalog, engine, report, settings
from ._version import __version__
from .fix import Fix
from .status_text import fill, print_status, print_upgrades
from .upgrade import upgrades

_BAD_STATES = ("failed", "drifted", "missed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 all is well, 1 a check or a proof failed, a search found nothing or doctor something wrong, 2 wrong usage, 128 + N
    stopped by signal N, 141 where nobody reads the output any more.
    """
    parser = argparse.ArgumentParser(
        prog="python -m torch_forwardfix",
        description="Fixes for torch.compile bugs of the torch release you are pinned to.",
        epilog="TORCH_FORWARDFIX=0 switches everything off, TORCH_FORWARDFIX_DISABLE=ID,ID single fixes.",
    )
    parser.add_argument("--version", action="version", version=f"torch-forwardfix {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    status = commands.add_parser("status", help="what is applied, what is not, and why")
    status.add_argument("--live", action="store_true", help="import torch's compiler here and say what did happen")
    status.add_argument("--json", action="store_true", help="print the report as JSON")
    status.add_argument("--check", action="store_true", help="exit 1 if a fix failed or the hook is not active")
    status.add_argument("--upgrade", action="store_true", help="what newer releases of torch would need")
    status.set_defaults(run=_status)

    show = commands.add_parser("show", help="the story of one bug")
    show.add_argument("id", metavar="ID")
    show.set_defaults(run=_show)

    verify = commands.add_parser("verify", help="run the reproductions without and with their fixes")
    verify.add_argument("ids", metavar="ID", nargs="*", help="only these; all that apply here by default")
    verify.add_argument("--json", action="store_true", help="print the proofs as JSON")
    verify.set_defaults(run=_verify)

    bisect = commands.add_parser(
        "bisect",
        help="find the fix that changes how a command ends",
        usage="%(prog)s [-h] [--keep DIR] [--timeout SECONDS] [--shared-caches] [--json] -- COMMAND ...",
        description="Run COMMAND with some fixes and without the others until it is clear which of them change its "
        "exit status. Exit status of bisect: 0 found, 1 nothing found or the command is flaky, 2 wrong usage, 130 on "
        "Ctrl-C.",
    )
    bisect.add_argument(
        "--keep", metavar="DIR", type=Path, help="where the output of the runs goes: a new or empty folder"
    )
    bisect.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=math.inf,
        help="stop a run after so long (default: never)",
    )
    bisect.add_argument(
        "--shared-caches",
        action="store_true",
        help="use the compile caches that are there, instead of fresh ones for each run: faster, but what is in them "
        "may hide the difference",
    )
    bisect.add_argument("--json", action="store_true", help="print the result and all runs as JSON")
    bisect.add_argument("command", metavar="COMMAND", nargs="+", help="the command and its arguments, after --")
    bisect.set_defaults(run=_bisect)

    startup = commands.add_parser(
        "startup",
        help="whether a warm start compiles nothing",
        usage="%(prog)s [-h] [--keep DIR] [--json] [MODEL | SCRIPT [ARGUMENT ...] | -m MODULE [ARGUMENT ...]]",
        description="Start a script cold and warm, without the fixes and with them, each time in a fresh process, and "
        "print what was compiled and what came from torch's compile caches. MODEL is one of ours, small and built in: "
        "llama, qwen3, deepseek or glm; all of them by default. Exit status: 0 the warm start with the fixes compiles "
        "nothing, 1 it does or there is no answer, 2 wrong usage, 130 on Ctrl-C.",
    )
    startup.add_argument(
        "--keep", metavar="DIR", type=Path, help="where the output of the starts goes: a new or empty folder"
    )
    startup.add_argument("--json", action="store_true", help="print the starts as JSON")
    startup.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    startup.add_argument("target", metavar="SCRIPT", nargs="?", help="the script, or the name of a model")
    startup.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="its arguments, unchanged")
    startup.set_defaults(run=_startup)

    doctor = commands.add_parser("doctor", help="why it is not active here, and what to do")
    doctor.add_argument("--live", action="store_true", help="load torch's compiler in a fresh process, too")
    doctor.add_argument("--json", action="store_true", help="print the diagnosis as JSON")
    doctor.set_defaults(run=_doctor)

    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except BrokenPipeError:
        # Whoever read the output has seen enough, `head` say. What is left to write at exit has nowhere to go, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, which not every system has


def _status(options: argparse.Namespace) -> int:
    made = report.collect(live=options.live)
    newer = [] if options.json and not options.upgrade else upgrades(made.torch, made.fixes)
    if options.json:
        rows = {"upgrades": [asdict(upgrade) for upgrade in newer]} if options.upgrade else {}
        print(json.dumps({**made.as_json(), **rows}, indent=2))
    else:
        (print_upgrades if options.upgrade else print_status)(made, newer)
    wrong = not made.active or any(fix.state in _BAD_STATES for fix in made.fixes)
    return 1 if options.check and wrong else 0


def _show(options: argparse.Namespace) -> int:
    known = catalog.load()
    unfixed = catalog.unfixed(known.fixes)
    bug = known.fixes.get(options.id) or unfixed.get(options.id)
    if bug is None:
        return _unknown(options.id, [*known.fixes, *unfixed])
    rows = {
        "id": bug.id,
        "title": bug.title,
        "kind": bug.kind,
        "upstream": ", ".join(bug.upstream),
        "affects": ", ".join(f"{name} {specifier}" for name, specifier in bug.affects.items()),
        "fixed in": bug.fixed_in or "no release yet",
    }
    if isinstance(bug, Fix):
        rows |= {
            "patches": ", ".join(bug.targets),
            "generated code": "changed" if bug.changes_codegen else "not changed",
            "proved on": catalog.told(catalog.proved_on(bug)) or "no release yet",
            "here": "{0.state}: {0.reason}".format(engine.outcome_of(engine.make_plan(), bug.id)),
        }
    else:
        rows |= {
            "not fixed": bug.why,
            "what to do": bug.workaround,
            "seen on": catalog.told(catalog.seen_on(bug)) or "no release yet",
            "here": report.why_not_here(bug) or "this release has it",
        }
    if any(row["fix"] == bug.id for row in catalog.evidence()):
        rows["evidence"] = f"docs/evidence.md#{bug.id}"
    for name, value in rows.items():
        print(fill(f"{name + ':':<16}{value}", "", " " * 16))
    story = getdoc(getmodule(bug.reproduce))
    if story:
        print(f"\n{story}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from .verify import observe, prove

    known = catalog.load()
    unfixed = catalog.unfixed(known.fixes)
    for id in options.ids:
        if id not in known.fixes and id not in unfixed:
            return _unknown(id, [*known.fixes, *unfixed])
    plan = engine.make_plan()
    proofs, seen, skipped = [], {}, {}
    for id in dict.fromkeys(options.ids or [*known.fixes, *unfixed]):
        if id in unfixed:
            reason = report.why_not_here(unfixed[id])
            if reason is None:
                seen[id] = observe(unfixed[id])
                _note(options, f"{id}: known and not fixed here\n  bug {seen[id].verdict}. {seen[id].detail}")
            elif id in options.ids:
                _note(options, f"{id}: not run: {reason}")
        elif id not in plan.pending:
            skipped[id] = plan.decided[id]
            _note(options, f"{id}: {plan.decided[id].state}, not run: {plan.decided[id].reason}")
        else:
            proof = prove(known.fixes[id])
            proofs.append(proof)
            _note(options, f"{id}: {'proved' if proof.holds else 'NOT PROVED'}")
            for label, run in (("without", proof.without), ("with", proof.with_fix)):
                line = f"  {label:<8} bug {run.verdict}, fix {run.state or 'unknown'}. {run.detail}"
                _note(options, line.rstrip(". "))
    failed = [proof.id for proof in proofs if not proof.holds]
    failed += [id for id, outcome in skipped.items() if outcome.state == "failed"]
    failed += [id for id, run in seen.items() if run.verdict != "present"]
    if options.json:
        rows = {id: {"state": outcome.state, "reason": outcome.reason} for id, outcome in skipped.items()}
        made = {
            "proofs": [proof.as_json() for proof in proofs],
            "unfixed": {id: {"verdict": run.verdict, "detail": run.detail} for id, run in seen.items()},
            "not_run": rows,
        }
        print(json.dumps(made, indent=2))
    _note(options, f"{len(proofs) - sum(not proof.holds for proof in proofs)} of {len(proofs)} proved here")
    return 1 if failed else 0


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _startup(options: argparse.Namespace) -> int:
    from . import startup
    from .bisect import CannotStart, Stopped, collected_signals, describe, output_folder

    arguments = tuple(options.arguments)
    names = (options.target,) if options.target else startup.MODELS
    targets = [startup.Target(name, arguments, options.module) for name in names]
    if options.module and not options.target:
        return _unusable("startup", "-m takes the name of a module")
    if not (options.module or targets[0].model or Path(names[0]).is_file()):
        return _unusable("startup", f"{names[0]}: no such file, and no model ({', '.join(startup.MODELS)})")
    try:
        folder = output_folder(options.keep, "startup")
    except OSError as error:
        return _unusable("startup", f"{error.filename}: {error.strerror}")
    print(f"output of the starts: {folder}", file=sys.stderr)
    made, problems = {}, {}
    try:
        with collected_signals() as arrived:
            for target in targets:

                def tell(run: startup.Run, name: str = target.name) -> None:
                    what = f"{run.counts.compiled} graphs compiled" if run.counts is not None else "no counts"
                    ending = what if run.status == 0 else describe(run.status, math.inf)
                    print(f"{name}: {run.label}: {ending} ({run.seconds:.1f} s)", file=sys.stderr, flush=True)

                made[target.name] = startup.measure(target, folder, arrived, tell)
                problems[target.name] = startup.problem(made[target.name])
    except (CannotStart, OSError) as error:
        return _unusable("startup", str(error))
    except Stopped as stop:
        print(f"{stop}; output of the starts: {folder}", file=sys.stderr)
        return 128 + stop.number
    if options.json:
        rows = {
            name: {"warm": problems[name] is None, "problem": problems[name], "runs": [run.as_json() for run in runs]}
            for name, runs in made.items()
        }
        print(json.dumps(rows, indent=2))
    else:
        for name, runs in made.items():
            print(f"\n{name}")
            for line in startup.table(runs):
                print(f"  {line}")
            if runs[-1].status != 0:
                print(f"  the end of {runs[-1].output}:")
                for line in startup.last_lines(runs[-1].output):
                    print(f"    {line}")
            print(fill(problems[name] or "the warm start compiles nothing", "  "))
    return 1 if any(problems.values()) else 0


def _bisect(options: argparse.Namespace) -> int:
    from . import bisect

    plan = engine.make_plan()
    for problem in plan.settings.problems:
        print(problem, file=sys.stderr)
    candidates = tuple(plan.pending)
    if not candidates:
        reason = "no fix would be applied here; python -m torch_forwardfix status says why"
        print(json.dumps({"verdict": "no candidates", "reason": reason}, indent=2) if options.json else reason)
        return 1
    try:
        folder = bisect.output_folder(options.keep, "bisect")
    except OSError as error:
        return _unusable("bisect", f"{error.filename}: {error.strerror}")
    print(f"fixes to choose from: {len(candidates)}; output of the runs: {folder}", file=sys.stderr)

    def tell(number: int, run: bisect.Run) -> None:
        ending = bisect.describe(run.status, options.timeout)
        line = f"run {number}: {len(run.ids)} of {len(candidates)} fixes: {ending} ({run.seconds:.1f} s)"
        print(line, file=sys.stderr, flush=True)

    runs: list[bisect.Run] = []
    try:
        with bisect.collected_signals() as arrived:
            bench = bisect.Bench(
                options.command, candidates, folder, options.timeout, options.shared_caches, arrived, tell, runs
            )
            finding = bisect.search(candidates, bench.run)
    except (bisect.CannotStart, OSError) as error:
        if not runs and not options.keep:
            folder.rmdir()
        return _unusable("bisect", str(error))
    except bisect.Stopped as stop:
        known = bisect.known_so_far(runs, options.timeout)
        print(f"{stop} after {len(runs)} runs: {known}; output of the runs: {folder}", file=sys.stderr)
        return 128 + stop.number
    if options.json:
        made = bisect.as_json(finding, runs, options.timeout)
        print(json.dumps({**made, "candidates": candidates, "folder": str(folder)}, indent=2))
    else:
        for line in bisect.sentences(finding, candidates, options.timeout):
            print(line)
        for id in finding.ids if isinstance(finding, bisect.Found) else ():
            print(f"{id}: {plan.pending[id].title}")
        if isinstance(finding, bisect.NoDifference) and not (here := report.collect()).active:
            print(f"the hook is not active in this interpreter: {here.reason}")
        print(f"runs: {len(runs)}, output of the runs: {folder}")
    return 0 if isinstance(finding, bisect.Found) else 1


def _unusable(command: str, message: str) -> int:
    print(f"python -m torch_forwardfix {command}: {message}", file=sys.stderr)
    return 2


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine

    found = examine(live=options.live)
    if options.json:
        print(json.dumps(found.as_json(), indent=2))
        return 0 if found.well else 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths need not be text
    print(f"Python {found.python}, {found.executable or 'embedded'}")
    print(f"torch-forwardfix {found.version}, {found.file}")
    print(f"beside it: {found.pth or 'no torch_forwardfix.pth'}")
    print(f"torch {found.torch}" if found.torch else "torch is not installed")
    if found.child is not None and found.child.answered:
        print(
            f"a fresh interpreter: hook {'' if found.child.armed else 'NOT '}armed, {found.child.file or 'no package'}"
        )
    for finding in found.findings:
        print(f"\n{finding.severity:<6} {finding.code}")
        print(fill(f"{finding.what}.", " " * 7))
        print(fill(f"{finding.advice}{':' if finding.command else '.'}", " " * 7))
        if finding.command:
            print(f"{' ' * 9}{finding.command}")
    print("\nNothing is wrong." if found.well else "\nSomething is wrong.")
    return 0 if found.well else 1


def _note(options: argparse.Namespace, line: str) -> None:
    if not options.json:
        print(line, flush=True)


def _unknown(id: str, known: list[str]) -> int:
    print(f"python -m torch_forwardfix: {settings.unknown_id(id, known)}", file=sys.stderr)
    return 2
