"""``verify`` says proved only where the bug is there without the fix, gone with it, and the fix was applied."""

from __future__ import annotations

import json
import re

import pytest

PLUGIN = """
from torch_forwardfix import BugPresent, Fix
from torch_forwardfix.patching import wrap

def apply(module):
    wrap(module, "answer", lambda original: lambda: "right")

def reproduce():
    import torch._dynamo
    {reproduction}

FIX = Fix(
    id="made-up", title="a made-up bug", kind="crash", upstream=(), affects={{"torch": ">=2.9.dev0"}}, fixed_in=None,
    targets=("torch._dynamo:answer",), changes_codegen=False, is_present=lambda module: True, apply=apply,
    reproduce=reproduce,
)
"""
HONEST = "if torch._dynamo.answer() != 'right': raise BugPresent('answer is wrong')"


@pytest.fixture
def verify(torch_tree):
    def run(reproduction: str, *options: str, **environment: str):
        torch_tree.write(
            {
                "torch/_dynamo/__init__.py": "def answer(): return 'wrong'\n",
                "plug.py": PLUGIN.format(reproduction=reproduction),
                "plug-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: plug\nVersion: 1\n",
                "plug-1.dist-info/entry_points.txt": "[torch_forwardfix.fixes]\nmade-up = plug:FIX\n",
                # Arms the hook where these tests run on the sources, without the .pth file.
                "sitecustomize.py": "import torch_forwardfix; torch_forwardfix.init()\n",
            }
        )
        return torch_tree.run("-m", "torch_forwardfix", "verify", "made-up", *options, env=environment)

    return run


def test_bug_that_stays_and_is_not_seen_where_it_should_be_fails(torch_tree):
    process = torch_tree.run("-m", "torch_forwardfix", "verify", "set-mutation-lost")
    assert process.returncode == 1
    assert "[1/1] set-mutation-lost: bug error (" in process.stderr
    table = process.stdout.splitlines()
    assert table[1] == "known and not fixed here: 1"
    assert table[2].split()[:2] == ["set-mutation-lost", "error"]
    assert table[3].startswith("    this torch should have the bug. ")
    assert table[-1].startswith("0 of 0 proved here, in ")


def test_plugin_that_fixes_a_bug_that_stays_takes_its_place(verify, torch_tree):
    verify(HONEST)
    plugin = (torch_tree.tree / "plug.py").read_text().replace('id="made-up"', 'id="set-mutation-lost"')
    torch_tree.write({"plug.py": plugin})
    process = torch_tree.run("-m", "torch_forwardfix", "verify", "set-mutation-lost", "--json")
    assert process.returncode == 0, process.stderr
    made = json.loads(process.stdout)
    assert ([proof["holds"] for proof in made["proofs"]], made["unfixed"]) == ([True], {})
    report = json.loads(torch_tree.run("-m", "torch_forwardfix", "status", "--json").stdout)
    assert "set-mutation-lost" not in {bug["id"] for bug in report["unfixed"]}


def test_a_fix_that_holds_is_proved(verify):
    process = verify(HONEST, "--json")
    assert process.returncode == 0, process.stderr
    (proof,) = json.loads(process.stdout)["proofs"]
    assert proof["holds"]
    assert (proof["without"]["verdict"], proof["without"]["detail"]) == ("present", "answer is wrong")
    assert (proof["with"]["verdict"], proof["with"]["state"]) == ("absent", "applied")
    assert proof["without"]["by"] == proof["with"]["by"] == "cpu"
    assert 0 < proof["without"]["seconds"] < 60


def test_each_run_is_a_line_of_progress_and_the_table_comes_at_the_end(verify):
    process = verify(HONEST)
    assert process.returncode == 0, process.stderr
    seconds = r"\d+\.\d"
    progress = rf"""\[1/2\] made-up without its fix: bug present \({seconds} s\)
\[2/2\] made-up with its fix: bug absent \({seconds} s\)
"""
    assert re.fullmatch(progress, process.stderr)
    table = rf""" +without +with +seconds
proved: 1
  made-up +present +absent +{seconds}
1 of 1 proved here, in \d+ s
"""
    assert re.fullmatch(table, process.stdout)


def test_what_the_proof_rests_on_is_told_where_it_is_not_a_run_on_the_cpu(verify):
    process = verify("from torch_forwardfix import generation; generation._way = 'gpu NVIDIA H100'\n    " + HONEST)
    assert re.search(r"  made-up +present +absent +\d+\.\d  NVIDIA H100\n", process.stdout)


def test_ctrl_c_ends_with_130_and_the_table_of_what_is_done(verify, torch_tree):
    verify(HONEST)
    program = (
        "import sys; from torch_forwardfix import cli, verify\n"
        "runs = iter([verify.Run('present', 'answer is wrong', 'disabled', seconds=2.0)])\n"
        "def answer(*of):\n"
        "    for run in runs:\n"
        "        return run\n"
        "    raise KeyboardInterrupt\n"
        "verify._run = answer\n"
        "sys.exit(cli.main(['verify', 'made-up']))\n"
    )
    process = torch_tree.run("-c", program)
    assert process.returncode == 130
    assert process.stderr == "[1/2] made-up without its fix: bug present (2.0 s)\n"
    assert process.stdout.splitlines()[-1].startswith("0 of 0 proved here")


@pytest.mark.parametrize(
    ("reproduction", "said"),
    [
        pytest.param("pass", "bug absent, fix disabled", id="bug is not there without the fix"),
        pytest.param("raise BugPresent('still')", "bug present, fix applied. still", id="bug is there with the fix"),
        pytest.param("raise KeyError('x')", "bug error, fix applied. KeyError: 'x'", id="reproduction is broken"),
        pytest.param("import os; os._exit(3)", "exit status 3 without an answer", id="reproduction dies"),
    ],
)
def test_a_proof_that_fails_exits_with_1_and_says_why(verify, reproduction, said):
    process = verify(reproduction)
    assert process.returncode == 1
    assert "NOT PROVED: 1\n  made-up " in process.stdout
    assert said in " ".join(process.stdout.split())
    assert "0 of 1 proved here" in process.stdout
    assert "Traceback" not in process.stderr


def test_a_fix_that_cannot_be_loaded_is_told_and_fails(verify, torch_tree):
    verify(HONEST)
    torch_tree.write({"plug.py": "raise ImportError('half of it is missing')\n"})
    for arguments in ((), ("plug:made-up",)):
        process = torch_tree.run(
            "-m", "torch_forwardfix", "verify", *arguments, env={"TORCH_FORWARDFIX_ONLY": "mul-zero-nan"}
        )
        assert process.returncode == 1
        said = " ".join(process.stdout.split())
        assert "plug:made-up: failed: plug-in plug cannot be loaded: ImportError: half of it is missing" in said
    process = torch_tree.run("-m", "torch_forwardfix", "show", "plug:made-up")
    assert process.returncode == 1
    assert "half of it is missing" in process.stdout


def test_nothing_is_run_where_the_hook_is_not_active(verify, torch_tree):
    verify(HONEST)
    # The wheel arms it as well, where it is installed.
    disarm = "import sys, torch_forwardfix; sys.meta_path.remove(torch_forwardfix.watcher)\n"
    program = disarm + "from torch_forwardfix.cli import main; sys.exit(main(sys.argv[1:]))"
    process = torch_tree.run("-c", program, "verify", "made-up")
    assert (process.returncode, process.stderr) == (1, "")
    said = " ".join(process.stdout.split())
    assert "made-up: waiting: the hook is not active in this interpreter" in said
    assert "python -m torch_forwardfix doctor says why" in said
    shown = torch_tree.run("-c", program, "show", "made-up").stdout
    assert "here: the hook is not active" in " ".join(shown.split())


@pytest.mark.parametrize("command", [["verify", "made-up"], ["bisect", "--", "true"], ["startup", "llama"]])
def test_no_place_for_temporary_files_is_named(verify, torch_tree, command):
    verify(HONEST)
    program = "import sys, tempfile; from torch_forwardfix.cli import main\n"
    program += f"tempfile._candidate_tempdir_list = lambda: ['/nowhere']; sys.exit(main({command}))"
    process = torch_tree.run("-c", program)
    assert process.returncode == 2
    assert process.stderr.startswith(f"python -m torch_forwardfix {command[0]}: ")
    assert "No usable temporary directory found" in process.stderr
    assert "Traceback" not in process.stderr


def test_a_fix_that_the_user_disabled_is_not_run(verify):
    process = verify(HONEST, TORCH_FORWARDFIX_DISABLE="made-up")
    assert process.returncode == 0
    assert "not run: 1\n  made-up: disabled: " in process.stdout
