"""Run the reproduction of every fix in this environment and print the rows for the evidence file, as JSON.

usage: python gather_evidence.py DISTRIBUTION

DISTRIBUTION, torch or vllm, is the one whose release the rows are about.
"""

from __future__ import annotations

import json
import platform
import sys

from torch_forwardfix import catalog, gates, verify


def rows(distribution: str) -> list[dict[str, str]]:
    version = gates.installed_version(distribution)
    torch = gates.installed_version("torch")
    if version is None or torch is None:
        raise SystemExit(f"{distribution} and torch must be installed")
    found = []
    for fix in catalog.load().fixes.values():
        row = {"fix": fix.id, "release": f"{distribution} {version.partition('+')[0]}"}
        if all(gates.installed_version(name) for name in fix.affects) and distribution in fix.affects:
            proof = verify.prove(fix)
            for run in (proof.without, proof.with_fix):
                if run.verdict == "error":
                    raise SystemExit(f"{fix.id} on {row['release']}: the reproduction itself failed: {run.detail}")
            row |= {"without": proof.without.verdict, "with": proof.with_fix.verdict, "state": proof.with_fix.state}
        elif distribution == "torch":
            row |= {"without": "not applicable", "with": "not applicable", "state": "not-affected"}
        else:
            continue
        print(row, file=sys.stderr, flush=True)
        found.append(row | {"python": platform.python_version(), "torch": torch})
    return found


if __name__ == "__main__":
    print(json.dumps(rows(sys.argv[1])))
