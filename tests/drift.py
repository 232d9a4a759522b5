"""What a new release of torch means for the fixes: targets that changed, bugs that are still there, what can retire.

usage: python drift.py look            prints, as JSON, the targets, probes and ranges of this environment's torch
       python drift.py reproduce ID..  prints, as JSON, whether these bugs are there without any fix
       python drift.py page OLD NEW    writes docs/drift.md from two files with what `look` said, the second with
                                       what `reproduce` said as well

The first two run where torch and the wheel are installed, the third anywhere.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import textwrap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "drift.md"

HEAD = """\
# The fixes and the newest torch

What torch {new} changed for the fixes that {old} or {new} is in the range of. `nox --session drift -- {new}`, or
any other release, compares the source of every function that a fix patches, asks the probes, runs the reproductions
without any fix, and writes this page. Where a patch has to be looked at, [evidence.md](evidence.md) says whether it
holds there, once the release is in it.
"""


def look() -> dict[str, Any]:
    from torch_forwardfix import catalog, gates

    found = {}
    for id, fix in catalog.load().fixes.items():
        probes = {}
        for name in fix.modules:
            try:
                module = import_module(name)
                probes[name] = fix.is_present(module)
            except Exception as error:
                probes[name] = f"{type(error).__name__}: {error}"
        found[id] = {
            "targets": {target: _source(target) for target in fix.targets},
            "probes": probes,
            "in_range": gates.why_not_affected(fix.affects) is None,
        }
    return {"torch": gates.installed_version("torch"), "fixes": found}


def _source(target: str) -> str | None:
    """A hash of the source of what ``target`` names, None where it is gone."""
    from torch_forwardfix import patching

    home, _, qualname = target.partition(":")
    try:
        found = patching.lookup(import_module(home), qualname)
    except Exception:
        return None
    try:
        source = textwrap.dedent(inspect.getsource(getattr(found, "__func__", found)))
    except (OSError, TypeError):  # a value, or code that was made at run time
        source = repr(getattr(getattr(found, "__code__", None), "co_code", found))
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def reproduce(ids: list[str]) -> dict[str, Any]:
    from torch_forwardfix import catalog, verify

    os.environ["TORCH_FORWARDFIX"] = "0"
    fixes = catalog.load().fixes
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda id: verify.observe(fixes[id]), ids)
        return {id: {"verdict": run.verdict, "detail": run.detail} for id, run in zip(ids, runs, strict=True)}


def concerned(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The ids of the fixes that one of the two releases is in the range of."""
    return [id for id, row in new["fixes"].items() if row["in_range"] or old["fixes"][id]["in_range"]]


def answer(old: Mapping[str, Any], new: Mapping[str, Any], verdict: str) -> tuple[str, str]:
    """What became of the targets of one fix, and what is to be done about it."""
    was, now = old["targets"], new["targets"]
    gone = [target for target in now if was[target] and not now[target]]
    changed = [target for target in now if was[target] and now[target] and was[target] != now[target]]
    code = "; ".join(
        f"{word}: {', '.join(f'`{target}`' for target in targets)}"
        for word, targets in (("gone", gone), ("changed", changed))
        if targets
    )
    unsure = [probe for probe in new["probes"].values() if isinstance(probe, str)]
    if verdict == "error":
        todo = "its reproduction fails: look at it"
    elif verdict == "absent":
        todo = "not needed" if not new["in_range"] else "can retire: end its range before this release"
    elif not new["in_range"]:
        todo = "**needed, but out of range**: look whether the patch fits"
    elif gone or unsure:
        todo = f"**needed, but not applied**: {unsure[0] if unsure else 'its target is gone'}"
    else:
        todo = "needed; look whether the patch fits" if changed else "needed, as it is"
    return code or "as before", todo


def page(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    rows = []
    for id in concerned(old, new):
        run = new["runs"][id]
        code, todo = answer(old["fixes"][id], new["fixes"][id], run["verdict"])
        rows.append(f"| `{id}` | {code} | {run['verdict']} | {todo} |\n")
    names = [made["torch"].partition("+")[0] for made in (old, new)]
    heads = f"| fix | the code that it patches, since {names[0]} | bug, without fixes | |\n|---|---|---|---|\n"
    return HEAD.format(old=names[0], new=names[1]) + "\n" + heads + "".join(rows)


def main(command: str, *arguments: str) -> None:
    if command == "page":
        old, new = (json.loads(Path(file).read_text("utf-8")) for file in arguments)
        PAGE.write_text(page(old, new), encoding="utf-8")
    else:
        print(f"\n{json.dumps(look() if command == 'look' else reproduce(list(arguments)))}")


if __name__ == "__main__":
    main(*sys.argv[1:])
