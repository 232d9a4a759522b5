"""Programs that the tests run in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
    return subprocess.run(
        [sys.executable, *arguments], env={**clean, **environment}, capture_output=True, text=True, timeout=900
    )


def result(process: subprocess.CompletedProcess[str]):
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == 1, process.stdout + process.stderr
    return json.loads(lines[0].removeprefix("RESULT "))
