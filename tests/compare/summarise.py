"""Merge the summaries of all releases into one file, and name the fix and the reason of every difference.

usage: python summarise.py FOLDER EVIDENCE

FOLDER is where run.py put its results. The reasons are in explained.json: rows of a fix, a pattern of cases, and why.
The exit status is 1 where a difference has no reason, or cases are missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comparer

HERE = Path(__file__).resolve().parent

ABOUT = (
    "Each case was run without the fixes (off) and with them (on), in processes of their own, and compared with eager. "
    "Compared between the arms: verdict, error, eager's values, values bit by bit, graphs, calls captured, graph "
    "breaks, recompilations, generated code. aot_eager: every case run. inductor-code: graphs lowered and code "
    "generated for forward and backward, no C++ compiler; the lowered graphs were run operation by operation. "
    "inductor-run: compiled and run; a fixed sample, and every case whose code differs. Flaky: two runs of one arm "
    "differ in these fields."
)


def merge(summaries: Sequence[Mapping[str, Any]], explanations: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    def order(summary: Mapping[str, Any]) -> list[int]:
        return [int(part) for part in summary["torch"].split(".") if part.isdigit()]

    releases = [_release(summary, explanations) for summary in sorted(summaries, key=order)]
    return {"about": ABOUT, "releases": releases}


def _release(summary: Mapping[str, Any], explanations: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    # Many cases may be different in the same way, for the same reason.
    groups: dict[tuple[str, str, str | None], list[str]] = {}
    for difference in summary["differences"]:
        why = comparer.explain(difference["case"], difference["fixes"], explanations)
        key = (difference["what"], ", ".join(difference["fixes"]), why)
        groups.setdefault(key, []).append(difference["case"])
    told = [{"what": what, "fixes": fixes, "why": why, "cases": cases} for (what, fixes, why), cases in groups.items()]
    return {**summary, "differences": told}


def faults(evidence: Mapping[str, Any]) -> list[str]:
    """What stands against "no new fault"."""
    found = []
    if len({release["package"] for release in evidence["releases"]}) > 1:
        found.append("the releases were run with different states of this package")
    for release in evidence["releases"]:
        name = f"torch {release['torch']}"
        for row in release["differences"]:
            if row["why"] is None:
                cause = row["fixes"] or "no single fix"
                found += [f"{name}: {case}: {row['what']} ({cause}, not explained)" for case in row["cases"]]
        for arm, cases in release["missing"].items():
            found += [f"{name}: {case}: missing in the arm {arm}" for case in cases]
        found += [f"{name}: {case}: differs and was not run again" for case in release["open"]]
        for arm, kinds in release["arms"].items():
            # It may be the machine: who runs it again gets these cases run again.
            found += [
                f"{name}: {row['timeout']} of {kind} took too long ({arm})"
                for kind, row in kinds.items()
                if "timeout" in row
            ]
        if release["arms"]["off"].keys() != release["arms"]["on"].keys() or not release["arms"]["on"]:
            found.append(f"{name}: the arms have not the same kinds of cases")
    return found


def main() -> int:
    folder, target = map(Path, sys.argv[1:])
    files = sorted(folder.glob("torch-*/summary.json"))
    if not files:
        raise SystemExit(f"no torch-*/summary.json in {folder}")
    summaries = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    evidence = merge(summaries, json.loads((HERE / "explained.json").read_text(encoding="utf-8")))
    target.write_text(as_text(evidence), encoding="utf-8")
    for release in evidence["releases"]:
        differences = sum(len(row["cases"]) for row in release["differences"])
        cases = sum(row["cases"] for row in release["arms"]["on"].values())
        print(f"torch {release['torch']}: {cases} cases, {differences} differ, {len(release['flaky'])} flaky")
    found = faults(evidence)
    print("\n".join(found) or "every difference is explained")
    return 1 if found else 0


def as_text(evidence: Mapping[str, Any]) -> str:
    """JSON with a line for each thing that is looked up, and no more."""
    releases = []
    for release in evidence["releases"]:
        rows = ",\n".join(f"   {json.dumps(row)}" for row in release["differences"])
        shown = f"[\n{rows}\n  ]" if rows else "[]"
        lines = [f'  "{name}": {shown if name == "differences" else json.dumps(release[name])}' for name in release]
        releases.append(" {\n" + ",\n".join(lines) + "\n }")
    return f'{{"about": {json.dumps(evidence["about"])},\n"releases": [\n' + ",\n".join(releases) + "\n]}\n"


if __name__ == "__main__":
    sys.exit(main())
