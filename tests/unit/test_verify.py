"""``verify`` says proved only where the bug is there without the fix, gone with it, and the fix was applied."""

from __future__ import annotations

import json

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
    assert "set-mutation-lost: known and not fixed here\n  bug error. " in process.stdout
    assert "0 of 0 proved here" in process.stdout


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
    assert "made-up: NOT PROVED" in process.stdout
    assert said in process.stdout
    assert "0 of 1 proved here" in process.stdout
    assert "Traceback" not in process.stderr


def test_a_fix_that_the_user_disabled_is_not_run(verify):
    process = verify(HONEST, TORCH_FORWARDFIX_DISABLE="made-up")
    assert process.returncode == 0
    assert "made-up: disabled, not run" in process.stdout
