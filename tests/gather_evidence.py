"""Run the reproductions of the fixes in this environment and print the rows for the evidence file, as JSON.

usage: python gather_evidence.py DISTRIBUTION [ID ...]

DISTRIBUTION, torch or vllm, is the one whose release the rows are about. Without an ID the rows are about all fixes.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from torch_forwardfix import Fix, catalog, gates, verify


def row(distribution: str, fix: Fix) -> dict[str, str] | None:
    version = gates.installed_version(distribution)
    torch = gates.installed_version("torch")
    if version is None or torch is None:
        raise SystemExit(f"{distribution} and torch must be installed")
    found = {"fix": fix.id, "release": f"{distribution} {version.partition('+')[0]}"}
    if all(gates.installed_version(name) for name in fix.affects) and distribution in fix.affects:
        proof = verify.prove(fix)
        for run in (proof.without, proof.with_fix):
            if run.verdict == "error":
                raise SystemExit(f"{fix.id} on {found['release']}: the reproduction itself failed: {run.detail}")
        found |= {"without": proof.without.verdict, "with": proof.with_fix.verdict, "state": proof.with_fix.state}
    elif distribution == "torch":
        found |= {"without": "not applicable", "with": "not applicable", "state": "not-affected"}
    else:
        return None
    print(found, file=sys.stderr, flush=True)
    return found | {"python": platform.python_version(), "torch": torch}


def rows(distribution: str, ids: Collection[str]) -> list[dict[str, str]]:
    fixes = [fix for fix in catalog.load().fixes.values() if not ids or fix.id in ids]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [found for found in pool.map(lambda fix: row(distribution, fix), fixes) if found]


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1], sys.argv[2:])))
