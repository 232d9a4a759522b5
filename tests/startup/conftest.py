from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

# Without vector code torch need not find out first, by compiling, what this CPU can do, and compiles faster.
QUICK = "import torch._inductor.config; torch._inductor.config.cpp.simdlen = 1\n"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Variables for a process with compile caches in ``folder``."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
    return {**clean, "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1", **more}


def start(program: str, folder: Path, *arguments: str) -> Any:
    """Run ``program`` in a fresh process, and return what it printed last, which is JSON."""
    process = subprocess.run(
        [sys.executable, "-c", QUICK + textwrap.dedent(program), *arguments],
        env=environment(folder),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return json.loads(process.stdout.splitlines()[-1])
