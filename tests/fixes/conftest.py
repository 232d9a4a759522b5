from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from torch_forwardfix import catalog, gates

FIXES = catalog.load().fixes


def in_range(id: str) -> bool:
    return gates.why_not_affected(FIXES[id].affects) is None


@pytest.fixture
def python(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program in a fresh process with empty compile caches; keyword arguments are environment variables."""

    def run(program: str, /, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), *arguments],
            env={**clean, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


def check(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout
