from __future__ import annotations

import json

import pytest

from torch_forwardfix.fingerprint import differences

PLUG = """
from torch_forwardfix import Fix
from torch_forwardfix.patching import wrap
def apply(module):
    {apply}
FIX = Fix(id="plugged", title="", kind="crash", upstream=(), affects={{"torch": ">=1.dev0"}}, fixed_in=None,
          targets=("torch._dynamo:f",), changes_codegen=False, is_present=lambda module: {present}, apply=apply,
          reproduce=lambda: None)
"""
WRAP = "wrap(module, 'f', lambda original: lambda: original())"
ARMED = "import sys, torch_forwardfix; torch_forwardfix.init()\nfrom torch_forwardfix.cli import main\n"


@pytest.fixture
def ask(torch_tree):
    torch_tree.write(
        {
            "torch/version.py": "__version__ = '2.10.0'\ngit_version = '0123abc'\n",
            "torch/_dynamo/__init__.py": "def f(): pass\n",
            "plug-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n",
            "plug-1.0.dist-info/entry_points.txt": "[torch_forwardfix.fixes]\nplugged = plug:FIX\n",
        }
    )

    def ask(first: str = "", apply: str = WRAP, present: str = "True", arm: str = ARMED, env=None) -> dict:
        torch_tree.write({"plug.py": PLUG.format(apply=apply, present=present)})
        code = f"{arm}{first}\nmain(['status', '--json'])"
        done = torch_tree.run("-c", code, env=env)
        assert done.returncode == 0, done.stderr
        report: dict = json.loads(done.stdout)
        return report["fingerprint"]

    return ask


LOAD = "import torch._dynamo"
# Where the wheel is installed, the interpreter is armed when it starts.
UNARMED = """
import sys, torch_forwardfix
sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not torch_forwardfix.watcher]
"""


def test_fingerprint_tells_versions_and_the_commit_of_torch_before_and_after_torch_is_loaded(ask) -> None:
    before = ask()
    assert before["versions"]["torch"] == "2.10.0"
    assert before["versions"]["torch-commit"] == "0123abc"
    assert ask(LOAD) == before


def test_fix_that_waits_is_applied_or_not_needed_is_in_force(ask) -> None:
    waiting = ask()
    assert "plugged" in waiting["fixes"]
    assert ask(LOAD) == waiting
    # What a probe finds follows from the build of torch, which is part of the fingerprint; the file is the same.
    assert "plugged" in ask(LOAD, present="module.__name__ == 'another'")["fixes"]


@pytest.mark.parametrize(
    "case",
    [
        {"present": "'it is not what it was'"},
        {"apply": "1 / 0"},
        {"env": {"TORCH_FORWARDFIX_DISABLE": "plugged"}},
        {"arm": f"{UNARMED}import torch._dynamo\nfrom torch_forwardfix.cli import main\n"},
        {"arm": f"{UNARMED}from torch_forwardfix.cli import main\n"},
    ],
    ids=["drifted", "failed", "disabled", "missed", "hook not active"],
)
def test_fix_that_is_not_in_force_is_missing(ask, case) -> None:
    assert "plugged" not in ask(**{"first": LOAD, **case})["fixes"]


def test_another_version_of_a_fix_is_another_fingerprint(ask) -> None:
    one, other = ask(), ask(apply=f"{WRAP}  # another revision")
    assert one["fixes"].keys() == other["fixes"].keys()
    assert one["fixes"]["plugged"] != other["fixes"]["plugged"]
    assert one["digest"] != other["digest"]


def test_differences_name_ranks_and_machines() -> None:
    here = {"versions": {"torch": "2.10.0"}, "fixes": {"a": "1" * 64, "b": "2" * 64}, "host": {"name": "node1"}}
    there = {"versions": {"torch": "2.11.0"}, "fixes": {"a": "3" * 64}, "reasons": {"b": "failed: why"}}
    # A later version of this package may send more, and less.
    there |= {"host": {"name": "node2"}, "more": {"x": "y"}}
    assert differences([0, 1, 2, 8, 9], [here, here, here, there, {"versions": {"torch": "2.11.0"}}]) == [
        "torch: 2.10.0 on ranks 0 to 2; 2.11.0 on ranks 8, 9",
        "a: in force as revision 111111111111 on ranks 0 to 2; in force as revision 333333333333 on rank 8; "
        "not in force (not known there) on rank 9",
        "b: in force on ranks 0 to 2; not in force (failed: why) on rank 8; not in force (not known there) on rank 9",
        "host: node1 on ranks 0 to 2; node2 on rank 8; unknown on rank 9",
    ]
