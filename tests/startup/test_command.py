"""``python -m torch_forwardfix startup`` with the torch that is here; what needs none is in tests/unit."""

from __future__ import annotations

import json
import subprocess
import sys

from conftest import environment

# The second function is bypassed by both caches.
SCRIPT = """
import torch, torch._inductor.config as config

def double(graph):
    return None

print(torch.compile(lambda x: x @ x)(torch.eye(3)))
config.post_grad_custom_post_pass = double
print(torch.compile(lambda x: x @ x @ x)(torch.eye(3)))
"""


def test_hits_misses_and_bypasses_of_a_script_are_counted_and_the_reason_is_told(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.run(
        [sys.executable, "-m", "torch_forwardfix", "startup", "--json", "script.py"],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 1, process.stderr
    row = json.loads(process.stdout)["script.py"]
    assert row["warm"] is False
    assert [bool(run["counts"]["fixes"]) for run in row["runs"]] == [False, False, True, True]
    for run in row["runs"]:
        counts = run["counts"]
        cached = [1, 0] if run["warm"] else [0, 1]
        assert [counts["fx"][what] for what in ("hit", "miss")] == cached
        assert [counts["aot"][what] for what in ("hit", "miss")] == cached
        assert counts["fx"]["bypass"] + counts["aot"]["bypass"] >= 1
        assert (counts["captured"], counts["compiled"]) == (2, 1 if run["warm"] else 2)
        assert any("custom" in reason for reason in counts["reasons"]), counts["reasons"]
