from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest


class Sandbox:
    """Fresh interpreters over a folder of modules of our own; the working directory is an empty one."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        self.cwd = folder / "cwd"
        self.tree.mkdir()
        self.cwd.mkdir()

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def run(
        self, *arguments: str, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
        path = [str(self.tree), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.cwd,
            env={**inherited, "PYTHONPATH": os.pathsep.join(path), **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def ask(self, code: str, env: Mapping[str, str] | None = None) -> Any:
        """Run ``code`` and return what it handed to ``say``."""
        preamble = "import json, sys\ndef say(*answer): print('\\n' + json.dumps(answer))\n"
        process = self.run("-c", preamble + code, env=env)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


@pytest.fixture
def torch_tree(sandbox: Sandbox) -> Sandbox:
    """A sandbox with a package that calls itself torch 2.10.0."""
    sandbox.write(
        {
            "torch/__init__.py": "from .version import __version__\n",
            "torch/version.py": "__version__ = '2.10.0'\n",
            "torch/_dynamo/__init__.py": "",
            "torch/_inductor/__init__.py": "",
        }
    )
    return sandbox
