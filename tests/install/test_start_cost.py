import re
import shutil
import sys

import pytest

LIMIT = 1.03


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="START COST NOT MEASURED: valgrind is not on PATH")
def test_start_cost(own_venv):
    def instructions():
        tool = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
        done = own_venv.run("-c", "pass", under=tool, PYTHONHASHSEED="0")
        return int(re.search(r"Collected : (\d+)", done.stderr)[1])

    if sys.version_info < (3, 13):
        # Before 3.13 an environment without any other .pth file is the stricter comparison.
        (own_venv.site / "neighbour.pth").unlink()
    own_venv.run("-m", "compileall", "-q", own_venv.site)
    with_us = instructions()
    (own_venv.site / "torch_forwardfix.pth").rename(own_venv.folder / "torch_forwardfix.pth")
    without = instructions()
    assert with_us > without, "nothing of ours was run"
    assert with_us / without <= LIMIT, f"{with_us} instructions with us, {without} without"
