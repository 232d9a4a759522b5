"""``startup`` over a torch that only counts: the numbers are those that the script wrote into its counters."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

COUNTERS = """
import collections
counters = collections.defaultdict(collections.Counter)
compilation_time_metrics = {}
"""
# Its first start in a folder of caches misses, the later ones hit; the arguments say what else is to happen.
SCRIPT = """
import logging, os, sys
from pathlib import Path
print(__name__, Path(__file__).name, sys.argv[1:], Path(sys.path[0]).name)
print(os.environ["TORCHINDUCTOR_CACHE_DIR"], os.environ["TRITON_CACHE_DIR"], file=open("folders", "a"))
if "fail" in sys.argv:
    sys.exit("it cannot be done")
if "vanish" in sys.argv:
    os._exit(0)
if "idle" in sys.argv:
    sys.exit()
from torch._dynamo.utils import compilation_time_metrics, counters
left = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"], "left")
what = "hit" if left.exists() else "miss"
left.touch()
counters["inductor"]["fxgraph_cache_" + what] += 2
counters["aot_autograd"]["autograd_cache_" + what] += 2
counters["stats"]["unique_graphs"] = 2
compilation_time_metrics["GraphLowering.run"] = [0.1, 0.2] if what == "miss" else []
if "bypass" in sys.argv:
    counters["inductor"]["fxgraph_cache_bypass"] += 1
    logging.getLogger("torch._inductor.codecache").info("Bypassing FX Graph Cache because '%s'", "of a reason")
"""


@pytest.fixture
def startup(torch_tree, tmp_path):
    (torch_tree.cwd / "train.py").write_text(SCRIPT)
    torch_tree.write({"torch/_dynamo/utils.py": COUNTERS, "trainer.py": SCRIPT})
    # No fix is for this release: where the wheel is installed, those that are would call the counters drifted.
    torch_tree.write({"torch/version.py": "__version__ = '1.13.0'\n"})
    (tmp_path / "tmp").mkdir()

    def run(*arguments: str) -> Any:
        return torch_tree.run("-m", "torch_forwardfix", "startup", *arguments, env={"TMPDIR": str(tmp_path / "tmp")})

    return run


def test_a_warm_start_that_compiles_nothing_exits_0_and_shows_the_counts(startup) -> None:
    process = startup("train.py")
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "  the warm start compiles nothing"
    lines = {line.split("  ")[1]: line.split()[3:] for line in process.stdout.splitlines() if "with" in line[:9]}
    cold, warm = ["2", "2", "0", "2", "0", "0", "2", "0", "-", "-"], ["2", "0", "2", "0", "0", "2", "0", "0", "-", "-"]
    assert lines == {"without, cold": cold, "without, warm": warm, "with, cold": cold, "with, warm": warm}
    progress = process.stderr.splitlines()
    assert [line.partition(" (")[0] for line in progress[1:]] == [
        "train.py: without, cold: 2 graphs compiled",
        "train.py: without, warm: 0 graphs compiled",
        "train.py: with, cold: 2 graphs compiled",
        "train.py: with, warm: 0 graphs compiled",
    ]


def test_a_warm_start_that_bypasses_a_cache_exits_1_and_says_why(startup) -> None:
    process = startup("train.py", "bypass", "--json", "-m")
    assert (process.returncode, process.stdout.count("'of a reason'")) == (1, 1), process.stdout
    process = startup("--json", "train.py", "bypass", "--json", "-m")
    assert process.returncode == 1, process.stderr
    row = json.loads(process.stdout)["train.py"]
    assert row["warm"] is False
    assert row["problem"].startswith(
        "the warm start compiles; graphs compiled: 0; FX graph cache: misses 0, bypasses 1;"
    )
    assert row["runs"][-1]["counts"]["reasons"] == {"Bypassing FX Graph Cache because 'of a reason'": 1}
    assert [(run["with"], run["warm"], run["status"]) for run in row["runs"]] == [
        (False, False, 0),
        (False, True, 0),
        (True, False, 0),
        (True, True, 0),
    ]


def test_a_script_runs_as_python_would_run_it_and_its_output_is_kept(startup, torch_tree, tmp_path) -> None:
    assert startup("--keep", str(tmp_path / "kept"), "train.py", "--json", "x y").returncode == 0
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == [f"train-{fixes}-{start}.out" for fixes in ("with", "without") for start in ("cold", "warm")]
    said = "__main__ train.py ['--json', 'x y'] cwd\n"
    assert (tmp_path / "kept" / "train-with-warm.out").read_text() == said
    folders = [line.split() for line in (torch_tree.cwd / "folders").read_text().splitlines()]
    assert folders[0] == folders[1] != folders[2] == folders[3]
    assert not any(os.path.exists(folder) for folder, _ in folders)
    assert all(triton.startswith(folder) for folder, triton in folders)


def test_a_module_runs_as_python_would_run_it(startup, tmp_path) -> None:
    assert startup("--keep", str(tmp_path / "kept"), "-m", "trainer", "-m").returncode == 0
    said = "__main__ trainer.py ['-m'] cwd\n"
    assert (tmp_path / "kept" / "trainer-without-cold.out").read_text() == said


@pytest.mark.parametrize(
    ("argument", "runs", "said"),
    [
        ("fail", 1, "the start without, cold ended with exit 1"),
        ("vanish", 4, "the start with, warm handed over no counts"),
        ("idle", 4, "nothing was compiled in the process that was started"),
    ],
)
def test_where_there_is_no_answer_it_says_why_and_exits_1(startup, argument: str, runs: int, said: str) -> None:
    process = startup("train.py", argument)
    assert process.returncode == 1
    assert said in " ".join(process.stdout.split())
    assert len(process.stderr.splitlines()) == 1 + runs
    assert ("it cannot be done" in process.stdout) == (argument == "fail")
    assert "Traceback" not in process.stdout + process.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("llamas",), "llamas: no such file, and no model (llama, qwen3, deepseek, glm)"),
        (("--keep", ".", "train.py"), ".: Directory not empty"),
        (("-m",), "-m takes the name of a module"),
    ],
)
def test_what_cannot_be_done_is_named_and_exits_2(startup, tmp_path, arguments: tuple[str, ...], said: str) -> None:
    process = startup(*arguments)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.splitlines()[-1] == f"python -m torch_forwardfix startup: {said}"
    assert not list((tmp_path / "tmp").iterdir())


def test_ctrl_c_ends_it_without_a_traceback_and_removes_the_caches(startup, torch_tree, tmp_path) -> None:
    (torch_tree.cwd / "hang.py").write_text("import time\nopen('ready', 'w').close()\ntime.sleep(600)\n")
    driver = """
import os, signal, subprocess, time
heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
command = [sys.executable, "-m", "torch_forwardfix", "startup", "hang.py"]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
while not os.path.exists("ready"):
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.05)
process.send_signal(signal.SIGINT)
output, errors = process.communicate(timeout=10)
say(process.returncode, output, errors, os.listdir(os.environ["TMPDIR"]))
"""
    status, output, errors, left = torch_tree.ask(driver, env={"TMPDIR": str(tmp_path / "tmp")})
    (folder,) = left
    assert (status, output) == (130, "")
    assert errors.splitlines()[-1] == f"stopped by SIGINT; output of the starts: {tmp_path / 'tmp' / folder}"
    assert "Traceback" not in errors
