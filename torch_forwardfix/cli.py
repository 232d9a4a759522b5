"""The command line: status, show, verify, bisect, startup, doctor."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from inspect import getdoc, getmodule
from pathlib import Path

from . import catalog, engine, report, settings
from ._version import __version__
from .fix import Fix, Outcome
from .status_text import compiler_unloadable, fill, print_status, print_upgrades
from .upgrade import upgrades

_BAD_STATES = ("failed", "drifted", "missed")
_NOT_ACTIVE = "the hook is not active in this interpreter: python -m torch_forwardfix doctor says why"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 all is well, 1 a check or a proof failed, a search found nothing or doctor something wrong, 2 wrong usage, 128 + N
    stopped by signal N, 141 where nobody reads the output any more.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what others have written need not fit the terminal
    try:
        try:
            options = parser().parse_args(arguments)
            return int(options.run(options))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough, `head` say. What is left to write at exit has nowhere to go, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, which not every system has


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; each command's ``--help`` has its exit statuses and an example."""
    made = argparse.ArgumentParser(
        prog="python -m torch_forwardfix",
        description="Fixes for torch.compile bugs of the torch release you are pinned to.",
        epilog="TORCH_FORWARDFIX=0 switches everything off, TORCH_FORWARDFIX_DISABLE=ID,ID single fixes.",
    )
    made.add_argument("--version", action="version", version=f"torch-forwardfix {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(
        run: Callable[[argparse.Namespace], int],
        help: str,
        description: str,
        statuses: Mapping[int, str],
        example: str,
        usage: str | None = None,
    ) -> argparse.ArgumentParser:
        ordered = sorted({**statuses, 2: "wrong usage"}.items())
        rows = "\n".join(f"  {status:<4} {meaning}" for status, meaning in ordered)
        name = run.__name__.removeprefix("_")
        added = commands.add_parser(
            name,
            help=help,
            usage=usage,
            description=fill(description),
            epilog=f"exit status:\n{rows}\n\nexample:\n  {made.prog} {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    status = command(
        _status,
        "what is applied, what is not, and why",
        "Say what will happen in a process that is started here, without importing torch: what is wrong first, then "
        "the fixes by the kind of their bug, each with the release since which upstream has it.",
        {
            0: "the report was printed",
            1: "with --check: a fix failed, drifted or was missed, nothing is active, or torch does not load",
        },
        "--live --check",
    )
    status.add_argument("--live", action="store_true", help="import torch's compiler here and say what did happen")
    status.add_argument("--json", action="store_true", help="print the report as JSON")
    status.add_argument("--check", action="store_true", help="exit 1 if something is wrong")
    status.add_argument("--upgrade", action="store_true", help="what newer releases of torch would need")

    show = command(
        _show,
        "the story of one bug",
        "Tell what goes wrong, why, since when, what upstream says, and what the fix does about it.",
        {0: "the story was printed", 1: "the fix cannot be loaded"},
        "fxgraph-cache-valueerror",
    )
    show.add_argument("id", metavar="ID", help="the id of a fix, or of a bug that is known and not fixed here")

    verify = command(
        _verify,
        "run the reproductions without and with their fixes",
        "Run the reproduction of each bug twice in fresh processes: it has to fail without the fix and to pass with "
        "it. Each run is a line on stderr, the table comes at the end.",
        {0: "all that was run holds", 1: "a proof does not hold, or a gate failed", 130: "stopped by Ctrl-C"},
        "fxgraph-cache-valueerror",
    )
    verify.add_argument("ids", metavar="ID", nargs="*", help="only these; all that apply here by default")
    verify.add_argument("--json", action="store_true", help="print the proofs as JSON")

    bisect = command(
        _bisect,
        "find the fix that changes how a command ends",
        "Run COMMAND with some fixes and without the others until it is clear which of them change its exit status.",
        {0: "found", 1: "nothing found, or the command is flaky", 130: "stopped by Ctrl-C"},
        "-- python train.py --steps 1",
        usage="%(prog)s [-h] [--keep DIR] [--timeout SECONDS]\n       [--shared-caches] [--json] -- COMMAND ...",
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

    startup = command(
        _startup,
        "whether a warm start compiles nothing",
        "Start a script cold and warm, without the fixes and with them, each time in a fresh process, and print what "
        "was compiled and what came from torch's compile caches. MODEL is one of ours, small and built in: llama, "
        "qwen3, deepseek or glm; all of them by default.",
        {
            0: "the warm start with the fixes compiles nothing",
            1: "it does, or there is no answer",
            130: "stopped by Ctrl-C",
        },
        "train.py --steps 1",
        usage="%(prog)s [-h] [--keep DIR] [--json]\n       [MODEL | SCRIPT [ARGUMENT ...] | -m MODULE [ARGUMENT ...]]",
    )
    startup.add_argument(
        "--keep", metavar="DIR", type=Path, help="where the output of the starts goes: a new or empty folder"
    )
    startup.add_argument("--json", action="store_true", help="print the starts as JSON")
    startup.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    startup.add_argument("target", metavar="SCRIPT", nargs="?", help="the script, or the name of a model")
    startup.add_argument("arguments", metavar="ARGUMENT", nargs=argparse.REMAINDER, help="its arguments, unchanged")

    doctor = command(
        _doctor,
        "why it is not active here, and what to do",
        "Start a fresh interpreter, look at what it loads, and say for everything that is wrong what mends it. It "
        "changes nothing.",
        {0: "nothing is wrong", 1: "something is wrong"},
        "--live",
    )
    doctor.add_argument("--live", action="store_true", help="load torch's compiler in a fresh process, too")
    doctor.add_argument("--json", action="store_true", help="print the diagnosis as JSON")
    return made


def _status(options: argparse.Namespace) -> int:
    made = report.collect(live=options.live)
    newer = [] if options.json and not options.upgrade else upgrades(made.torch, made.fixes)
    if options.json:
        rows = {"upgrades": [asdict(upgrade) for upgrade in newer]} if options.upgrade else {}
        print(json.dumps({**made.as_json(), **rows}, indent=2))
    else:
        (print_upgrades if options.upgrade else print_status)(made, newer)
    wrong = not made.active or compiler_unloadable(made) or any(fix.state in _BAD_STATES for fix in made.fixes)
    return 1 if options.check and wrong else 0


def _show(options: argparse.Namespace) -> int:
    known = catalog.load()
    unfixed = catalog.unfixed(known.fixes)
    bug = known.fixes.get(options.id) or unfixed.get(options.id)
    if bug is None and options.id in known.broken:
        print(fill("{0}: {1.state}: {1.reason}".format(options.id, known.broken[options.id])))
        return 1
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
        outcome = engine.outcome_of(engine.make_plan(), bug.id)
        inactive = outcome.state == "waiting" and not report.is_armed()
        rows |= {
            "patches": ", ".join(bug.targets),
            "generated code": "changed" if bug.changes_codegen else "not changed",
            "proved on": catalog.told(catalog.proved_on(bug)) or "no release yet",
            "here": _NOT_ACTIVE if inactive else f"{outcome.state}: {outcome.reason}",
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
        for paragraph in story.split("\n\n"):
            print()
            for part in re.split(r"\n(?=[*-] )", paragraph):
                rest = "  " if part[0] in "*-" else ""
                print(part if part.startswith(" ") else fill(" ".join(part.split()), "", rest))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from .verify import Run, observe, prove
    from .verify_text import Made, lines

    known = catalog.load()
    unfixed = catalog.unfixed(known.fixes)
    for id in options.ids:
        if not any(id in those for those in (known.fixes, known.broken, unfixed)):
            return _unknown(id, [*known.fixes, *unfixed])
    plan = engine.make_plan()
    made = Made()
    steps = []
    for id in dict.fromkeys(options.ids or [*known.fixes, *known.broken, *unfixed]):
        if id in plan.decided:
            made.not_run[id] = plan.decided[id]
        elif id in plan.pending and not report.is_armed():
            made.not_run[id] = Outcome("waiting", _NOT_ACTIVE)
        elif id in unfixed and (reason := report.why_not_here(unfixed[id])) is not None:
            if id in options.ids:
                made.not_run[id] = Outcome("not-affected", reason)
        else:
            steps.append(id)
    total = sum(1 if id in unfixed else 2 for id in steps)
    done = 0

    def tell(id: str, step: str, run: Run) -> None:
        nonlocal done
        done += 1
        what = f"{id} {step} its fix" if step else id
        print(f"[{done}/{total}] {what}: bug {run.verdict} ({run.seconds:.1f} s)", file=sys.stderr, flush=True)

    try:
        for id in steps:
            if id in unfixed:
                made.seen[id] = observe(unfixed[id])
                tell(id, "", made.seen[id])
            else:
                made.proofs.append(prove(known.fixes[id], partial(tell, id)))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _unusable("verify", error)
    finally:
        if options.json:
            print(json.dumps(made.as_json(), indent=2))
        else:
            for line in lines(made):
                print(line)
    return 0 if made.well else 1


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
        return _unusable("startup", error)
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
        return _unusable("startup", error)
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
        return _unusable("bisect", error)
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
        return _unusable("bisect", error)
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


def _unusable(command: str, problem: Exception | str) -> int:
    filename = getattr(problem, "filename", None)
    message = f"{filename}: {problem.strerror}" if isinstance(problem, OSError) and filename else str(problem)
    print(f"python -m torch_forwardfix {command}: {message}", file=sys.stderr)
    return 2


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import examine

    found = examine(live=options.live)
    if options.json:
        print(json.dumps(found.as_json(), indent=2))
        return 0 if found.well else 1
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


def _unknown(id: str, known: list[str]) -> int:
    print(f"python -m torch_forwardfix: {settings.unknown_id(id, known)}", file=sys.stderr)
    return 2
