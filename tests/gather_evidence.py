"""Run the reproductions of all bugs in this environment and print the rows for the evidence file, as JSON.

usage: python gather_evidence.py DISTRIBUTION [ID ...]

DISTRIBUTION, torch or vllm, is the one whose release the rows are about. Without an ID the rows are about all bugs.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from torch_forwardfix import Fix, catalog, gates, verify
from torch_forwardfix.fix import Unfixed


def row(distribution: str, fix: Fix | Unfixed) -> dict[str, str] | None:
    version = gates.installed_version(distribution)
    torch = gates.installed_version("torch")
    if version is None or torch is None:
        raise SystemExit(f"{distribution} and torch must be installed")
    found = {"fix": fix.id, "release": f"{distribution} {version.partition('+')[0]}"}
    if all(gates.installed_version(name) for name in fix.affects) and distribution in fix.affects:
        if isinstance(fix, Unfixed) or gates.why_not_affected(fix.affects):
            # Nothing of it is applied here: with and without are the same.
            without = with_fix = verify.observe(fix)
        else:
            proof = verify.prove(fix)
            without, with_fix = proof.without, proof.with_fix
        for run in (without, with_fix):
            if run.verdict == "error":
                raise SystemExit(f"{fix.id} on {found['release']}: the reproduction itself failed: {run.detail}")
        if without.by != with_fix.by:
            raise SystemExit(f"{fix.id} on {found['release']}: {without.by} without the fix, {with_fix.by} with it")
        found |= {"without": without.verdict, "with": with_fix.verdict, "state": with_fix.state, "by": with_fix.by}
    elif distribution == "torch":
        found |= {"without": "not applicable", "with": "not applicable", "state": "not-affected", "by": "cpu"}
    else:
        return None
    print(found, file=sys.stderr, flush=True)
    return found | {"python": platform.python_version(), "torch": torch}


def rows(distribution: str, ids: Collection[str]) -> list[dict[str, str]]:
    known = [*catalog.load().fixes.values(), *catalog.unfixed().values()]
    fixes = [fix for fix in known if not ids or fix.id in ids]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [found for found in pool.map(lambda fix: row(distribution, fix), fixes) if found]


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1], sys.argv[2:])))
