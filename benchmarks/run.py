"""Measure what torch-forwardfix costs, beside other packages, and write docs/performance.json.

usage: python benchmarks/run.py --wheel WHEEL [PART ...]

The parts are independent; without PART all are measured. A part that fails leaves the figures that are known and makes
the exit status 1. Environments are made where those of the other sessions are.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

import gauges
from gauges import Command, Figures

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "docs" / "performance.json"
sys.path.insert(0, str(HERE.parent / "tests"))
import environments  # noqa: E402

TORCH = "2.10.0"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")

NOTHING = "nothing installed"
EMPTY_PACKAGE = "an empty package"
OURS = "torch-forwardfix"
OURS_LOADED = "torch-forwardfix, torch._dynamo loaded"
# A post-import hook as wrapt's documentation shows it, and as autowrapt finds it.
WRAPT_LINE = {"hook.pth": "import wrapt; wrapt.register_post_import_hook(print, 'torch._dynamo')\n"}
ENTRY_POINT = {
    "hook-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: hook\nVersion: 1.0\n",
    "hook-1.0.dist-info/entry_points.txt": "[hook]\ntorch._dynamo = builtins:print\n",
}
EMPTY_LINE = {"empty/__init__.py": "", "empty.pth": "import empty\n"}
# What is installed by pip, what is added, and what is set.
PEERS: dict[str, tuple[str, Mapping[str, str], Mapping[str, str]]] = {
    "autowrapt, idle": ("autowrapt", {}, {}),
    "autowrapt, with a hook": ("autowrapt", ENTRY_POINT, {"AUTOWRAPT_BOOTSTRAP": "hook"}),
    "coverage": ("coverage", {}, {}),
    "setuptools": ("setuptools", {}, {}),
    "importpatch": ("importpatch", {}, {}),
    "wrapt, with a hook": ("wrapt", WRAPT_LINE, {}),
    "numba-cuda": ("numba-cuda", {}, {}),
    "pip-system-certs": ("pip-system-certs", {}, {}),
}
# As many as child_imports.py imports.
MODULES = 500
NEEDS = ("packaging", "importlib-metadata")

ASK = (
    "import sys; modules = len(sys.modules); import json, importlib.metadata as m; "
    "from importlib.machinery import *; own = (BuiltinImporter, FrozenImporter, PathFinder); "
    "print(json.dumps({'modules': modules, 'finders': sum(f not in own for f in sys.meta_path), "
    "'version': m.version(sys.argv[1]) if sys.argv[1:] else None}))"
)


def name_of(variant: str) -> str:
    return "benchmark-" + "".join(letter if letter.isalnum() else "-" for letter in variant)


def small_environments(wheel: str) -> dict[str, tuple[Path, Mapping[str, str]]]:
    """Interpreters without torch and what to set for them, the first without any package. Peers are made once."""
    found: dict[str, tuple[Path, Mapping[str, str]]] = {
        NOTHING: (environments.alone(name_of(NOTHING)), {}),
        EMPTY_PACKAGE: (environments.alone(name_of(EMPTY_PACKAGE), files=EMPTY_LINE), {}),
        OURS: (environments.alone(name_of(OURS), wheel, *NEEDS), {}),
    }
    for variant, (package, files, variables) in PEERS.items():
        python = environments.ROOT / name_of(variant) / "bin" / "python"
        done = python.parents[1] / ".done"
        if not done.exists():
            environments.alone(name_of(variant), package, files=files)
            done.touch()
        found[variant] = python, variables
    return found


def torch_environments(wheel: str) -> dict[str, Path]:
    base = environments.torch(TORCH)
    return {
        # Names of one length: a longer path costs instructions wherever it is handled.
        NOTHING: environments.over(base, "benchmark-torch-without", *NEEDS),
        OURS: environments.over(base, "benchmark-torch-with-us", wheel, *NEEDS),
    }


def start(wheel: str) -> Figures:
    """`python -c pass`: instructions, modules, wall time."""
    found = small_environments(wheel)
    commands = {name: Command([python, "-c", "pass"], variables) for name, (python, variables) in found.items()}
    rows: dict[str, Figures] = {}
    for name, (python, variables) in found.items():
        packages = {OURS: [OURS], **{peer: [PEERS[peer][0]] for peer in PEERS}}.get(name, [])
        rows[name] = json.loads(Command([python, "-c", ASK, *packages], variables).run().splitlines()[-1])
        rows[name]["instructions"] = gauges.instructions(commands[name])
    for name, wall in gauges.take_turns(commands, 100).items():
        rows[name] |= wall
    return {"counter": gauges.counter(), "rows": rows}


def pythons(wheel: str) -> Figures:
    """Instructions of `python -c pass` on every CPython that is here."""
    rows = {}
    for version in PYTHONS:
        interpreter = environments.interpreter(version)
        if interpreter is None:
            continue
        variants = {
            NOTHING: environments.alone(name_of(f"{version} {NOTHING}"), python=interpreter),
            "an empty .pth file": environments.alone(
                name_of(f"{version} pth"), python=interpreter, files={"empty.pth": "# nothing\n"}
            ),
            EMPTY_PACKAGE: environments.alone(
                name_of(f"{version} {EMPTY_PACKAGE}"), python=interpreter, files=EMPTY_LINE
            ),
            OURS: environments.alone(name_of(f"{version} {OURS}"), wheel, *NEEDS, python=interpreter),
        }
        ask = "import platform; print(platform.python_version())"
        full = Command([interpreter, "-c", ask]).run().strip()
        rows[full] = {name: gauges.instructions(Command([python, "-c", "pass"])) for name, python in variants.items()}
    return {"counter": gauges.counter(), "rows": rows}


def imports(wheel: str) -> Figures:
    """One import of a trivial module, with the finders of each environment and without them."""
    child, trivial = HERE / "child_imports.py", Path("trivial").resolve()
    trivial.mkdir()
    for number in range(MODULES):
        (trivial / f"trivial_{number}.py").write_text("x = 1\n")

    def command(python: Path, variables: Mapping[str, str], which: str, rounds: int, *first: str) -> Command:
        return Command([python, child, trivial, which, str(rounds), *first], variables)

    found = small_environments(wheel)
    both = {name: command(*place, "both", 40) for name, place in found.items()}
    both[OURS_LOADED] = command(torch_environments(wheel)[OURS], {}, "both", 40, "torch._dynamo", "torch._inductor")
    rows = {}
    for name, measured in both.items():
        figures = json.loads(measured.run(quiet=True).splitlines()[-1])
        finders = figures.pop("finders")
        if not finders:
            continue
        rows[name] = {"finders": finders, **gauges.compare(figures)["with"]}
        rows[name]["without"] = gauges.significant(statistics.median(figures["without"]))
        if name in found:
            counted = {which: gauges.instructions(command(*found[name], which, 1)) for which in ("with", "without")}
            rows[name]["instructions"] = round((counted["with"] - counted["without"]) / MODULES)
    plain = [gauges.instructions(command(*found[NOTHING], "without", rounds)) for rounds in (1, 2)]
    each = round((plain[1] - plain[0]) / MODULES)
    return {"counter": gauges.counter(), "modules": MODULES, "instructions": each, "rows": rows}


def import_torch(wheel: str) -> Figures:
    """`import torch`."""
    commands = {name: Command([python, "-c", "import torch"]) for name, python in torch_environments(wheel).items()}
    rows = gauges.take_turns(commands, 12)
    for name, command in commands.items():
        rows[name]["instructions"] = gauges.instructions(command)
    return {"torch": TORCH, "counter": gauges.counter(), "rows": rows}


def first_compile(wheel: str) -> Figures:
    """The first torch.compile call of a process: what of it is ours; and the whole process, without us and with us."""
    found = torch_environments(wheel)
    calls: dict[str, list[Figures]] = {"cold": [], "warm": []}
    seconds: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in found} for kind in calls}
    for turn in range(3):
        for name in list(found)[:: -1 if turn % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                variables = {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
                for kind in ("cold", "warm", "warm"):
                    begin = time.perf_counter()
                    printed = Command([found[name], HERE / "child_compile.py"], variables).run(quiet=True)
                    seconds[kind][name].append(time.perf_counter() - begin)
                    if name == OURS:
                        calls[kind].append(json.loads(printed.splitlines()[-1]))
    rows: dict[str, Figures] = {}
    for kind, made in calls.items():
        median = {key: gauges.significant(statistics.median(call[key] for call in made)) for key in made[0]}
        rows[kind] = {"call": median, "process": gauges.compare(seconds[kind])}
    return {"torch": TORCH, "rows": rows}


def status(wheel: str) -> Figures:
    """`python -m torch_forwardfix status`, beside `python -c pass`."""
    python = torch_environments(wheel)[OURS]
    command = Command([python, "-m", "torch_forwardfix", "status"])
    rows = gauges.take_turns({"python -c pass": Command([python, "-c", "pass"]), "status": command}, 30)
    ask = (
        "import sys; from torch_forwardfix.cli import main; main(['status', '--json']); "
        "print(len(sys.modules), 'torch' in sys.modules)"
    )
    modules, imported = Command([python, "-c", ask]).run().splitlines()[-1].split()
    return {"torch": TORCH, "rows": rows, "modules": int(modules), "imports_torch": imported == "True"}


def models(wheel: str) -> Figures:
    """Cold and warm starts of small models, without the fixes and with them."""
    command = Command(
        [torch_environments(wheel)[OURS], "-m", "torch_forwardfix", "startup", "--json", "--keep=startup"]
    )
    # 1 says that a warm start compiled something; the figures say so, too.
    measured = json.loads(command.run(quiet=True, well=(0, 1)))
    rows = {}
    for name, model in measured.items():
        rows[name] = [{key: run[key] for key in ("with", "warm", "seconds")} for run in model["runs"]]
        for row, run in zip(rows[name], model["runs"], strict=True):
            if run["status"] != 0 or run["counts"] is None:
                raise RuntimeError(f"{name}: a start ended with {run['status']}")
            row["compiled"] = run["counts"]["compiled"]
    return {"torch": TORCH, "rows": rows}


# The newest release that needs the fix, and the sizes of the program.
GROWTH = {
    "implicit-fallback-stringify": ("2.12.1", (4, 6, 8, 10)),
    "guard-tensor-repr": ("2.12.1", (8, 16, 32)),
    "slice-recompile": ("2.15.0", (8, 16, 32)),
}


def growth(wheel: str) -> Figures:
    """What the fixes for time save: counts and seconds of one compile, without them and with them, by size."""
    rows: dict[str, Figures] = {}
    for id, (release, sizes) in GROWTH.items():
        python = environments.over(environments.torch(release), f"benchmark-growth-{release}", wheel, *NEEDS)
        rows[id] = {"torch": release, "sizes": {}}
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                variables = {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}
                for label, switch in ("without", "0"), ("with", ""):
                    command = Command(
                        [python, HERE / "child_growth.py", id, str(size)], {**variables, "TORCH_FORWARDFIX": switch}
                    )
                    seen = json.loads(command.run(quiet=True).splitlines()[-1])
                    rows[id]["what"] = seen.pop("what")
                    seen["seconds"] = gauges.significant(seen["seconds"])
                    rows[id]["sizes"].setdefault(str(size), {})[label] = seen
    return {"rows": rows}


PARTS: dict[str, Callable[[str], Figures]] = {
    "start": start,
    "pythons": pythons,
    "imports": imports,
    "import-torch": import_torch,
    "first-compile": first_compile,
    "status": status,
    "models": models,
    "growth": growth,
}


def keep(part: str, figures: Figures) -> None:
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    results[part] = figures
    ordered = {name: results[name] for name in PARTS if name in results}
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what torch-forwardfix costs; writes docs/performance.json.")
    parser.add_argument("--wheel", required=True, help="the wheel of torch-forwardfix to measure")
    parser.add_argument("parts", metavar="PART", nargs="*", help=f"only these: {', '.join(PARTS)}")
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"no part is called {part!r}: {', '.join(PARTS)}")
    wheel = str(Path(options.wheel).resolve())
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for part in options.parts or PARTS:
            begin = time.perf_counter()
            try:
                figures = PARTS[part](wheel)
            except Exception:
                traceback.print_exc()
                failed.append(part)
            else:
                keep(part, {"machine": gauges.machine(), **figures})
                print(f"{part}: measured in {time.perf_counter() - begin:.0f} s", flush=True)
        os.chdir(HERE)
    if failed:
        print(f"not measured: {', '.join(failed)}; what was known of them is kept", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
