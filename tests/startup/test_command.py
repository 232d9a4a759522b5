"""``python -m torch_forwardfix startup`` with the torch that is here; what needs none is in tests/unit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import environment

SCRIPT = """
import sys, torch, torch._inductor.config as config

def double(graph):
    return None

if "bypass" in sys.argv:
    config.post_grad_custom_post_pass = double
print(torch.compile(lambda x: x @ x)(torch.eye(3)))
"""


@pytest.fixture
def measured(tmp_path):
    def run(*arguments):
        (tmp_path / "script.py").write_text(SCRIPT)
        process = subprocess.run(
            [sys.executable, "-m", "torch_forwardfix", "startup", "--json", "script.py", *arguments],
            env=environment(tmp_path),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
        )
        (row,) = json.loads(process.stdout).values()
        return process.returncode, row

    return run


def test_a_script_that_torch_can_cache_starts_warm_with_and_without_the_fixes(measured):
    status, row = measured()
    assert (status, row["warm"]) == (0, True), row
    for cold, warm in (row["runs"][:2], row["runs"][2:]):
        for cache in ("fx", "aot"):
            counted = [[run["counts"][cache][what] for what in ("hit", "miss", "bypass")] for run in (cold, warm)]
            assert counted == [[0, 1, 0], [1, 0, 0]]
        assert [(run["counts"]["captured"], run["counts"]["compiled"]) for run in (cold, warm)] == [(1, 1), (1, 0)]
    assert [bool(run["counts"]["fixes"]) for run in row["runs"]] == [False, False, True, True]


def test_a_script_that_torch_cannot_cache_is_told_with_the_reason(measured):
    status, row = measured("bypass")
    warm = row["runs"][-1]["counts"]
    assert (status, row["warm"], warm["compiled"]) == (1, False, 1)
    assert warm["fx"]["bypass"] + warm["aot"]["bypass"] > 0
    assert "custom" in " ".join(warm["reasons"]), warm
