"""Run cases in an environment with torch: a name a line comes in, a record a line goes out, as JSON.

usage: python worker.py FOLDER-FOR-CODE

The line ``list`` asks for all cases and for what is installed, ``fixes`` for the states of the fixes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

DISTRIBUTIONS = ("torch", "transformers", "diffusers", "expecttest", "numpy")


def all_cases() -> list[str]:
    """Cases are named group/backend/program; ``inductor-run`` is a sample, the driver adds to it."""
    ops = import_module("ops").names()
    models = import_module("models").names()
    return [
        *(f"models/aot_eager/{name}" for name in models if name.endswith("inference")),
        *(f"models/inductor-code/{name}" for name in models if name.endswith("training")),
        *(f"ops/aot_eager/{name}" for name in ops),
        *(f"ops/inductor-code/{name}" for name in ops),
        *(f"models/inductor-run/{name}" for name in import_module("models").RUN),
        *(f"ops/inductor-run/{name}" for name in import_module("ops").sampled(ops)),
    ]


def about() -> dict[str, Any]:
    import torch_forwardfix

    state = hashlib.sha256()
    for file in sorted(Path(torch_forwardfix.__file__).parent.rglob("*.py")):
        state.update(file.name.encode() + file.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}
    return {
        "cases": all_cases(),
        "versions": versions | {"python": platform.python_version()},
        "ours": state.hexdigest(),
    }


def fixes() -> dict[str, str]:
    import torch_forwardfix

    return {fix.id: fix.state for fix in torch_forwardfix.status()}


def run(case: str, folder: Path) -> dict[str, Any]:
    import measure

    group, backend, name = case.split("/")
    try:
        program = import_module(group).program(name)
    except Exception as error:
        return {"case": case, "verdict": "error", "detail": f"making the case: {measure.first_line(error)}"}
    record, code = measure.measure(name, backend, program)
    if code:
        file = folder / f"{group}.{backend}.{name}.txt"
        file.write_text(code, encoding="utf-8")
    return {"case": case, **record}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    # What torch and its compilers print must not come between the records.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_module("measure").configure()
    for line in sys.stdin:
        question = line.strip()
        answer: Any = {"list": about, "fixes": fixes}.get(question, lambda: run(question, folder))()  # noqa: B023
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
