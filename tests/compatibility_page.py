"""What the tests marked ``row`` showed, on every CPython: tests/trust.json, and the page that is made from it.

``python tests/compatibility_page.py`` writes docs/compatibility.md anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "trust.json"
PAGE = ROOT / "docs" / "compatibility.md"

ONE_PYTHON = "with a real torch or vLLM one Python is tested"

HEAD = """\
# Compatibility

What tests promise about the behaviour of torch-forwardfix in a Python environment, and on which Python each of them was
seen to hold. `nox --session trust`, and `nox --session neighbours` for what needs other packages or a real torch, run
the tests and write this page, and `tests/trust.json` with the same results.

✓ holds, ✗ does not hold, — was not tested there; the note says why.
"""


def merge(runs: Mapping[str, Sequence[Mapping[str, str]]], pythons: Mapping[str, str | None]) -> dict[str, Any]:
    """Merge the rows of runs by Python, and of others by name, which are of one Python.

    ``pythons`` are the full versions, None where there is none. Of several outcomes on one Python the worst counts, and
    one that was seen more than one that was skipped.
    """
    worst_first = ("failed", "passed", "skipped")
    merged: dict[tuple[str, str], dict[str, str]] = {}
    for rows in runs.values():
        for row in rows:
            outcome = f"{row['outcome']}: {row['reason']}" if row["reason"] else row["outcome"]
            seen = merged.setdefault((row["section"], row["text"]), {})
            known = seen.get(row["python"], outcome)
            seen[row["python"]] = min(known, outcome, key=lambda each: worst_first.index(each.partition(":")[0]))
    for row in (row for name, rows in runs.items() if name not in pythons for row in rows):
        for python, full in pythons.items():
            if full:
                merged[row["section"], row["text"]].setdefault(python, f"skipped: {ONE_PYTHON}")
    # Rows of a section may come from several files; sections stay in the order of their first row.
    order = list(dict.fromkeys(section for section, _ in merged))
    rows = [{"section": section, "text": text, "outcomes": merged[section, text]} for section, text in merged]
    return {"pythons": dict(pythons), "rows": sorted(rows, key=lambda row: order.index(row["section"]))}


def update(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The results of ``new``, and of ``old`` the sections that ``new`` says nothing about, where they were."""
    order = list(dict.fromkeys(row["section"] for row in [*old["rows"], *new["rows"]]))
    sections = {row["section"] for row in new["rows"]}
    rows = [row for row in old["rows"] if row["section"] not in sections] + list(new["rows"])
    return {"pythons": new["pythons"], "rows": sorted(rows, key=lambda row: order.index(row["section"]))}


def dump(results: Mapping[str, Any]) -> str:
    """One line for each row, so that a change of one is a change of one line."""
    rows = ",\n".join(f" {json.dumps(row, ensure_ascii=False)}" for row in results["rows"])
    return f'{{"pythons": {json.dumps(results["pythons"])},\n"rows": [\n{rows}\n]}}\n'


def page(results: Mapping[str, Any]) -> str:
    pythons: dict[str, str | None] = results["pythons"]
    notes: dict[str, int] = {}
    parts = [HEAD, _tested(pythons)]
    for section, rows in groupby(results["rows"], key=lambda row: row["section"]):
        table = [f"| | {' | '.join(pythons)} |", f"|---|{':-:|' * len(pythons)}"]
        table += [
            f"| {row['text']} | {' | '.join(_cell(row['outcomes'].get(python), notes) for python in pythons)} |"
            for row in rows
        ]
        parts.append(f"## {section}\n\n" + "\n".join(table) + "\n")
    if notes:
        parts.append("## Notes\n\n" + "".join(f"{number}. {note}\n" for note, number in notes.items()))
    return "\n".join(parts)


def _tested(pythons: Mapping[str, str | None]) -> str:
    tested = ", ".join(full for full in pythons.values() if full)
    missing = ", ".join(python for python, full in pythons.items() if not full)
    return f"Tested on CPython {tested}." + (
        f" Not tested, as there was none to be had: {missing}.\n" if missing else "\n"
    )


def _cell(outcome: str | None, notes: dict[str, int]) -> str:
    state, _, reason = (outcome or "").partition(": ")
    note = f" <sup>{notes.setdefault(reason, len(notes) + 1)}</sup>" if reason else ""
    return {"passed": "✓", "failed": "✗"}.get(state, "—") + note


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(RESULTS.read_text("utf-8"))), encoding="utf-8")
