"""Read what both arms recorded, and tell differences, flaky cases and missing ones apart. It needs no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]
Records = Mapping[str, Record]

FIELDS = ("verdict", "detail", "eager", "values", "graphs", "calls", "breaks", "recompiles", "code")
# A field whose value says nothing to a reader.
DIGESTS = ("eager", "values", "code")


@dataclass(frozen=True)
class Difference:
    case: str
    # What is different, as the arm without the fixes saw it and as the one with them did.
    fields: Mapping[str, tuple[Any, Any]]

    def __str__(self) -> str:
        told = []
        for name, (off, on) in self.fields.items():
            told.append(name if name in DIGESTS else f"{name} {off} -> {on}")
        return "; ".join(told)


@dataclass(frozen=True)
class Comparison:
    """``flaky`` names the fields in which two runs of the same arm differ; ``missing`` what only one arm has."""

    differences: list[Difference]
    flaky: dict[str, list[str]]
    missing: dict[str, list[str]]
    # These differ, and were not run a second time.
    open: list[str]


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The records of one file by case; the last line may have been cut off."""
    records: dict[str, dict[str, Any]] = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            records[record["case"]] = record
    return records


def differing(off: Record, on: Record) -> dict[str, tuple[Any, Any]]:
    return {name: (off.get(name), on.get(name)) for name in FIELDS if off.get(name) != on.get(name)}


def suspects(off: Records, on: Records) -> list[str]:
    """The cases that both arms have and that differ."""
    return [case for case in off if case in on and differing(off[case], on[case])]


def compare(off: Records, on: Records, again_off: Records, again_on: Records) -> Comparison:
    """Compare the arms. A field counts as different where each arm saw the same in both of its runs."""
    found = Comparison([], {}, {"off": [], "on": []}, [])
    found.missing["off"] = [case for case in on if case not in off]
    found.missing["on"] = [case for case in off if case not in on]
    for case in suspects(off, on):
        if case not in again_off or case not in again_on:
            found.open.append(case)
            continue
        unsteady = {*differing(off[case], again_off[case]), *differing(on[case], again_on[case])}
        fields = differing(off[case], on[case])
        steady = {name: pair for name, pair in fields.items() if name not in unsteady}
        if steady:
            found.differences.append(Difference(case, steady))
        if unsteady:
            found.flaky[case] = [name for name in FIELDS if name in unsteady]
    return found


def blame(difference: Difference, off: Record, alone: Mapping[str, Record]) -> list[str]:
    """Of the fixes that were run alone, those that change what is different."""
    return [
        fix for fix, record in alone.items() if any(record.get(name) != off.get(name) for name in difference.fields)
    ]


def candidates(case: str, fixes: Iterable[str], explanations: Iterable[Mapping[str, str]]) -> list[str]:
    """The fixes in force that are known to change this case."""
    known = [row["fix"] for row in explanations if fnmatchcase(case, row["cases"])]
    return [fix for fix in dict.fromkeys(known) if fix in fixes]


def is_all_of_it(difference: Difference, alone: Record) -> bool:
    """Whether the case with one fix alone is, in every field that differs, as it is with all of them."""
    return all(alone.get(name) == on for name, (_, on) in difference.fields.items())


def counts(records: Records) -> dict[str, dict[str, int]]:
    """Cases and verdicts by kind (ops/aot_eager)."""
    table: dict[str, Counter[str]] = {}
    for case, record in records.items():
        kind = case.rpartition("/")[0]
        table.setdefault(kind, Counter(cases=0, ok=0, mismatch=0, error=0)).update(["cases", record["verdict"]])
    return {kind: dict(row) for kind, row in sorted(table.items())}


def explain(case: str, fixes: Iterable[str], explanations: Iterable[Mapping[str, str]]) -> str | None:
    """The reason that explains this case, where every fix that causes the difference has one."""
    reasons = []
    for fix in fixes:
        known = [row["why"] for row in explanations if row["fix"] == fix and fnmatchcase(case, row["cases"])]
        if not known:
            return None
        reasons.append(known[0])
    return "; ".join(reasons) or None
