"""What becomes of the vLLM fix on a vLLM that is not what it was written for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import torch_forwardfix

PACKAGE_ROOT = Path(torch_forwardfix.__file__).parents[1]

OLD_CLASS = """
class VllmConfig:
    def __post_init__(self):
        self.compilation_config.mode = self.compilation_config.mode or 3
"""
REPAIRED_CLASS = """
import os
class VllmConfig:
    def __post_init__(self):
        if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
            self.compilation_config.mode = 0
"""
OTHER_CLASS = """
class VllmConfig:
    def __post_init__(self):
        self.plan = 3
"""

PROGRAM = """
import json
import torch._dynamo
import vllm.config
import torch_forwardfix
(row,) = (row for row in torch_forwardfix.status() if row.id == "vllm-compile-disable")
print(json.dumps([row.state, row.reason]))
"""


@pytest.mark.parametrize(
    ("version", "body", "state", "said"),
    [
        ("0.19.1", OLD_CLASS, "applied", "patched vllm.config.vllm"),
        ("0.19.1", "", "drifted", "VllmConfig.__post_init__ is gone"),
        ("0.19.1", OTHER_CLASS, "drifted", "no longer looks at compilation_config"),
        ("0.20.0rc1", REPAIRED_CLASS, "already-fixed", "does not have the bug"),
        ("0.20.0rc1.dev3+gabc1234", OLD_CLASS, "applied", "patched vllm.config.vllm"),
        ("0.20.0", REPAIRED_CLASS, "not-affected", "vllm 0.20.0 is not in"),
        ("0.41.0", "", "not-affected", "vllm 0.41.0 is not in"),
    ],
)
def test_gate_on_other_builds_of_vllm(tmp_path, version, body, state, said):
    files = {
        "torch/__init__.py": "",
        "torch/version.py": "__version__ = '2.10.0+cpu'\n",
        "torch/_dynamo/__init__.py": "",
        "vllm/__init__.py": "",
        "vllm/_version.py": f"__version__ = version = '{version}'\n",
        "vllm/config/__init__.py": "from . import vllm as _home\nVllmConfig = getattr(_home, 'VllmConfig', None)\n",
        "vllm/config/compilation.py": "class CompilationMode:\n    NONE = 0\n",
        "vllm/config/vllm.py": body,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    process = subprocess.run(
        [sys.executable, "-c", "import torch_forwardfix; torch_forwardfix.init()\n" + PROGRAM],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PACKAGE_ROOT)])},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    found, reason = json.loads(process.stdout.splitlines()[-1])
    assert found == state
    assert said in reason
