"""docs/performance.md, its plot, and what README.md quotes of it, from docs/performance.json.

``python benchmarks/page.py`` writes all three; the plot needs matplotlib.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"
README = ROOT / "README.md"
README_HEADING = "## What it costs\n"

NOTHING = "nothing installed"
EMPTY_PACKAGE = "an empty package"
OURS = "torch-forwardfix"
OURS_LOADED = "torch-forwardfix, torch._dynamo loaded"

# A number, its unit, and more in brackets.
NUMBER = re.compile(r"([-+]?[\d.,]+( \S+)?( \(.*\))?)?")

Figures = Mapping[str, Any]

HEAD = """\
# Performance

What torch-forwardfix costs, beside other packages that run code when Python starts, each installed by pip into an
environment of its own. Every section is one run on one machine, given under [Machine](#machine).

- Instructions are those of one process in user space, with `PYTHONHASHSEED=0` and bytecode on the disk. They hardly
  change from run to run.
- Wall times are of processes that took turns, in an order that changes every round. A ratio is the median of the ratios
  of each round to the first row in the same round, with the quartiles behind it.
- `benchmarks/` holds the programs, [performance.json](performance.json) the figures.

![Instructions and time of a start, and time of one import](performance.svg)
"""

RERUN = """\
## Run it again

On Linux with valgrind, in a clone of this repository; on a quiet machine with two cores it takes about a quarter of an
hour:

```sh
python3 -m venv .venv && .venv/bin/pip install --quiet nox uv && .venv/bin/nox --session benchmark
```

It writes this page, the plot, the figures and the section of the README that quotes them. `nox --session benchmark --
PART ...` measures only these parts again, of {parts}.
A part that fails keeps the figures that it had. Without valgrind the instructions are counted by `perf`, where the CPU
counts them.

Seconds are no test, as they depend on the machine. What does not jitter is: `tests/install/test_start_cost.py` keeps
instructions, Python's own steps, modules at start and modules of `status` within budgets, in CI.
"""


def page(results: Figures) -> str:
    sections = {
        "start": _start,
        "pythons": _pythons,
        "imports": _imports,
        "import-torch": _import_torch,
        "first-compile": _first_compile,
        "status": _status,
        "models": _models,
        "growth": _growth,
    }
    parts = [HEAD, _budgets(results)]
    parts += [section(results[part]) for part, section in sections.items() if part in results]
    parts += [_machines(results), RERUN.format(parts=", ".join(f"`{part}`" for part in sections))]
    return "\n".join(parts)


def quotes(results: Figures) -> str:
    """The section of the README."""
    start, torch, call = results["start"]["rows"], results["import-torch"]["rows"], results["first-compile"]["rows"]
    rows = (
        (
            "every start of Python",
            f"{_more(start[OURS], start[NOTHING])} instructions; an empty package costs "
            f"{_more(start[EMPTY_PACKAGE], start[NOTHING])}, setuptools {_more(start['setuptools'], start[NOTHING])}",
        ),
        ("each import of a module", f"{_percent(results['imports']['rows'][OURS]['ratio'])} of a trivial one"),
        ("`import torch`", f"{_more(torch[OURS], torch[NOTHING], 2)} instructions"),
        (
            "the first `torch.compile` call",
            f"{_ours(call['cold']) * 1e3:.0f} ms of {call['cold']['call']['seconds']:.1f} s with cold caches, "
            f"{_ours(call['warm']) * 1e3:.0f} ms of {call['warm']['call']['seconds']:.1f} s with warm ones",
        ),
        ("`python -m torch_forwardfix status`", f"{_ms(results['status']['rows']['status'])}"),
    )
    return (
        README_HEADING
        + "\n"
        + _table(("", "cost"), rows)
        + "\nCPython "
        + results["start"]["machine"]["python"]
        + f", torch {results['first-compile']['torch']}. [docs/performance.md](docs/performance.md) has the machine, "
        "other packages for\ncomparison, and how to measure it on yours.\n"
    )


def in_readme(text: str) -> str:
    """What stands in the README under the heading, with it, up to the next."""
    found = re.search(re.escape(README_HEADING) + r".*?(?=\n## )", text, re.DOTALL)
    if found is None:
        raise ValueError(f"README.md has no section {README_HEADING.strip()!r}")
    return found[0]


def budgets(results: Figures) -> list[tuple[str, str, str, bool]]:
    """What, its budget, what was measured, and whether that is within it."""
    rows: list[tuple[str, str, str, bool]] = []
    if "start" in results:
        start = results["start"]["rows"]
        base, ours = start[NOTHING], start[OURS]
        hooks = {name: row for name, row in start.items() if row["finders"] and name != OURS}
        least = min(hooks, key=lambda name: hooks[name]["instructions"])
        rows += [
            (
                "instructions of `python -c pass`",
                "+3.0 %",
                _more(ours, base),
                round(ours["instructions"] / base["instructions"], 3) <= 1.03,
            ),
            (
                "the same, beside packages that install a finder",
                f"fewer than any; {least} has {_more(hooks[least], base)}",
                _more(ours, base),
                ours["instructions"] < hooks[least]["instructions"],
            ),
            (
                "modules at start",
                "1 more",
                f"{ours['modules'] - base['modules']} more",
                ours["modules"] <= base["modules"] + 1,
            ),
        ]
    if "imports" in results:
        ratio = results["imports"]["rows"][OURS]["ratio"]
        rows.append(("import of a trivial module", "+1.2 %", _percent(ratio), ratio <= 1.012))
    if "import-torch" in results:
        torch = results["import-torch"]["rows"]
        within = torch[OURS]["instructions"] <= 1.002 * torch[NOTHING]["instructions"]
        rows.append(("`import torch`, instructions", "+0.2 %", _more(torch[OURS], torch[NOTHING], 2), within))
    for kind, row in results.get("first-compile", {}).get("rows", {}).items():
        ours, share = _ours(row), _ours(row) / row["call"]["seconds"]
        budget, measured = "20 ms, 0.5 % of the call", f"{ours * 1e3:.1f} ms, {share * 100:.2f} %"
        name = f"first `torch.compile` call, {kind} caches"
        rows.append((name, budget, measured, ours < 0.02 and share <= 0.005))
    if "status" in results:
        row = results["status"]["rows"]["status"]
        within = row["seconds"] < 0.15 and not results["status"]["imports_torch"]
        rows.append(("`python -m torch_forwardfix status`", "150 ms, torch not imported", _ms(row), within))
    return rows


def _budgets(results: Figures) -> str:
    rows = [(*row[:3], "yes" if row[3] else "**no**") for row in budgets(results)]
    return "## Budgets\n\n" + _table(("what", "at most", "measured", "within"), rows)


def _start(part: Figures) -> str:
    rows = part["rows"]
    base = rows[NOTHING]
    table = [
        (
            _named(name, row),
            f"{row['instructions']:,}",
            _more(row, base),
            str(row["modules"] - base["modules"]),
            "yes" if row["finders"] else "",
            _ms(row),
            _ratio(row),
        )
        for name, row in sorted(rows.items(), key=lambda item: item[1]["instructions"])
    ]
    heads = ("", "instructions", "more", "modules more", "a finder", "wall time", "ratio")
    return (
        "## Start of Python\n\n`python -c pass`. autowrapt and coverage do nothing unless a variable asks them to. The "
        "lines with a hook have one for\n`torch._dynamo`, which is what ours waits for, too. pip-system-certs and "
        "numba-cuda import other modules at once.\n\n" + _table(heads, table) + "\n"
        "CPython runs its garbage collector after so many new objects. Whether a start has one run more depends on "
        "everything\nthat is installed; such a run counts about 0.6 %.\n"
    )


def _named(name: str, row: Figures) -> str:
    package, comma, rest = name.partition(", ")
    return f"{package} {row['version']}{comma}{rest}" if row["version"] else name


def _pythons(part: Figures) -> str:
    names = list(next(iter(part["rows"].values())))
    table = [
        (
            python,
            f"{row[NOTHING]:,}",
            *(_percent(row[name] / row[NOTHING]) for name in names if name != NOTHING),
        )
        for python, row in part["rows"].items()
    ]
    heads = ("CPython", f"instructions, {NOTHING}", *(name for name in names if name != NOTHING))
    return (
        "## Other Pythons\n\nInstructions of `python -c pass`. From 3.13 on the first `.pth` file of an environment, "
        "whosever it is, makes Python\nimport a codec.\n\n" + _table(heads, table)
    )


def _imports(part: Figures) -> str:
    each = part["instructions"]
    table = [
        (
            name,
            ", ".join(row["finders"]),
            f"{row['instructions']:,} ({_percent(1 + row['instructions'] / each)})" if "instructions" in row else "",
            f"{row['without'] * 1e6:.1f} µs",
            _ratio(row),
        )
        for name, row in sorted(part["rows"].items(), key=lambda item: item[1]["ratio"])
    ]
    heads = ("", "finders", "instructions more", "an import without them", "ratio with them")
    return (
        f"## Imports of other modules\n\n{part['modules']} modules of one line, imported in one process with the "
        "finders that each package puts on `sys.meta_path`, and\nwithout them, in turn. An import takes "
        f"{each:,} instructions without any.\n\n" + _table(heads, table)
    )


def _import_torch(part: Figures) -> str:
    rows = part["rows"]
    table = [
        (name, f"{row['instructions']:,}", _more(row, rows[NOTHING], 2), f"{row['seconds']:.3f} s", _ratio(row))
        for name, row in rows.items()
    ]
    heads = ("", "instructions", "more", "wall time", "ratio")
    return f"## `import torch`\n\ntorch {part['torch']}.\n\n" + _table(heads, table)


def _first_compile(part: Figures) -> str:
    calls, processes = [], []
    for kind, row in part["rows"].items():
        call = row["call"]
        milliseconds = [f"{call[name] * 1e3:.1f} ms" for name in ("engine", "gates", "patches")]
        share = f"{_ours(row) / call['seconds'] * 100:.2f} %"
        calls.append((kind, f"{call['seconds']:.2f} s", *milliseconds, share, f"{call['applied']:.0f}"))
        for name, process in row["process"].items():
            processes.append((kind, name, str(process["rounds"]), f"{process['seconds']:.2f} s", _ratio(process)))
    heads = ("caches", "the call", "our modules", "gates", "probes and patches", "ours together", "fixes applied")
    return (
        f"## First `torch.compile` call\n\ntorch {part['torch']}, CPU, a small function. What is ours is timed in the "
        "process itself.\n\n"
        + _table(heads, calls)
        + "\nThe whole process, which imports torch and compiles:\n\n"
        + _table(("caches", "", "rounds", "wall time", "ratio"), processes)
    )


def _status(part: Figures) -> str:
    table = [(name, _ms(row)) for name, row in part["rows"].items()]
    imported = "imports" if part["imports_torch"] else "does not import"
    return (
        f"## `status`\n\nBeside torch {part['torch']}, which it {imported}. It loads {part['modules']} modules, "
        "those of Python's start included.\n\n" + _table(("", "wall time"), table)
    )


def _models(part: Figures) -> str:
    table = []
    for name, runs in part["rows"].items():
        for warm in (False, True):
            without, with_us = (
                next(run for run in runs if (run["with"], run["warm"]) == (with_fixes, warm))
                for with_fixes in (False, True)
            )
            kind = "warm" if warm else "cold"
            compiled = f"{without['compiled']}, {with_us['compiled']}"
            seconds = (f"{run['seconds']:.1f} s" for run in (without, with_us))
            table.append((name, kind, compiled, *seconds, f"{with_us['seconds'] / without['seconds']:.3f}"))
    heads = ("", "caches", "graphs compiled, without and with", "without", "with", "ratio")
    return (
        f"## Starts of small models\n\ntorch {part['torch']}, CPU. `python -m torch_forwardfix startup`: whole "
        "processes, without the fixes and with them, each start\nonce.\n\n" + _table(heads, table)
    )


def _growth(part: Figures) -> str:
    table = []
    for id, row in part["rows"].items():
        for size, seen in row["sizes"].items():
            counts = (str(seen[label]["count"]) for label in ("without", "with"))
            seconds = (f"{seen[label]['seconds']:.2f} s" for label in ("without", "with"))
            table.append((f"`{id}`", row["torch"], size, row["what"], *counts, *seconds))
    heads = ("fix", "torch", "size", "counted", "without", "with", "without, time", "with, time")
    return (
        "## What the fixes for time save\n\nOne compile on a CPU, once. The size is the number of custom operators in "
        "a chain, of parameters of AdamW, of lengths of a\nslice. What printing a tensor costs on a device that has to "
        "finish first does not show here.\n\n" + _table(heads, table)
    )


def _machines(results: Figures) -> str:
    heads = ("part", "date", "CPU", "cores", "system", "CPython", "counted by", "load")
    table = [
        (
            f"`{part}`",
            machine["date"],
            machine["cpu"],
            str(machine["cores"]),
            machine["system"],
            machine["python"],
            figures.get("counter", ""),
            f"{machine['load']:.1f}",
        )
        for part, figures in results.items()
        for machine in [figures["machine"]]
    ]
    return "## Machine\n\n" + _table(heads, table) + "\nThe load is the average of the minute before the part ended.\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, with columns of numbers aligned at the right."""
    columns = zip(*rows, strict=True)
    rules = ("--:" if all(NUMBER.fullmatch(cell) for cell in column) else "---" for column in columns)
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, rules, *rows))


def _percent(ratio: float, digits: int = 1) -> str:
    return f"{(ratio - 1) * 100:+.{digits}f} %"


def _more(row: Figures, base: Figures, digits: int = 1) -> str:
    return _percent(row["instructions"] / base["instructions"], digits)


def _ms(row: Figures) -> str:
    return f"{row['seconds'] * 1e3:.1f} ms"


def _ratio(row: Figures) -> str:
    low, high = row["quartiles"]
    return f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"


def _ours(row: Figures) -> float:
    """Seconds of the first call that are ours."""
    return float(sum(row["call"][name] for name in ("engine", "gates", "patches")))


def plot(results: Figures, file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "torch-forwardfix", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    start, imports = results["start"]["rows"], results["imports"]["rows"]
    panels = (
        (
            "start of Python, instructions",
            {name: row["instructions"] / start[NOTHING]["instructions"] for name, row in start.items()},
        ),
        ("start of Python, wall time", {name: row["ratio"] for name, row in start.items()}),
        ("import of a trivial module, time", {name: row["ratio"] for name, row in imports.items()}),
    )
    figure, all_axes = pyplot.subplots(len(panels), 1, figsize=(8, 9), height_ratios=[len(p[1]) + 2 for p in panels])
    for axes, (title, ratios) in zip(all_axes, panels, strict=True):
        more = {name: (ratio - 1) * 100 for name, ratio in ratios.items() if name != NOTHING}
        names = sorted(more, key=more.__getitem__, reverse=True)
        colours = ["#d1495b" if name.startswith(OURS) else "#8d99ae" for name in names]
        bars = axes.barh(names, [more[name] for name in names], color=colours)
        axes.bar_label(bars, [f"{more[name]:+.1f} %" for name in names], padding=3)
        axes.set_xscale("symlog", linthresh=1)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(min(0, *more.values()) * 3, max(more.values()) * 6)
        axes.set_title(f"{title}: % more than without", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    results = json.loads(RESULTS.read_text("utf-8"))
    PAGE.write_text(page(results), encoding="utf-8")
    plot(results, PLOT)
    readme = README.read_text("utf-8")
    README.write_text(readme.replace(in_readme(readme), quotes(results)), encoding="utf-8")
    for what, budget, measured, within in budgets(results):
        print(f"{'' if within else 'NOT '}within the budget: {what}: {measured}, at most {budget}")


if __name__ == "__main__":
    main()
