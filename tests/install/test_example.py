"""The example of a third-party fix, as its README says: built, installed, shown, proved and removed."""

import json
import re
import shlex
import sys

import pytest
from venvs import ROOT, call

EXAMPLE = ROOT / "examples" / "vllm-known-ops"
ID = "vllm-known-ops"

LAYOUT = """
import torch, vllm_known_ops
from torch._inductor.lowering import maybe_layout_constraints
library = torch.library.Library("vllm", "FRAGMENT")
library.define("probe(Tensor x) -> Tensor")
library.impl("probe", torch.Tensor.neg, "CompositeExplicitAutograd")
torch.compile(torch.ops.vllm.probe)(torch.ones(3))
from torch._inductor.graph import FALLBACK_ALLOW_LIST
print("vllm::probe" in FALLBACK_ALLOW_LIST, maybe_layout_constraints(torch.ops.vllm.probe.default).__name__)
"""


@pytest.fixture(scope="module")
def example(copy_source):
    folder = copy_source() / "examples" / "vllm-known-ops"
    call(sys.executable, "-m", "build", "--wheel", cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def row(venv, *options, **extra):
    report = json.loads(venv.run("-m", "torch_forwardfix", "status", "--json", *options, **extra).stdout)
    rows = [row for row in report["fixes"] if row["id"] == ID]
    assert (ID in report["fingerprint"]["fixes"]) == any(row["state"] in ("applied", "waiting") for row in rows)
    return rows[0] if rows else None


def test_example_installs_beside_us_and_leaves_nothing_behind(own_venv, example):
    before = own_venv.files()
    assert row(own_venv) is None
    own_venv.install("pip", example)
    assert row(own_venv)["state"] == "not-affected"
    assert row(own_venv)["reason"] == "torch is not installed"
    shown = " ".join(own_venv.run("-m", "torch_forwardfix", "show", ID).stdout.split())
    assert "takes each of them for a mistake that it has to make up for" in shown
    own_venv.pip("uninstall", "-y", ID)
    assert row(own_venv) is None
    assert {name for name in own_venv.files() - before if "__pycache__" not in name} == set()


def test_example_is_proved_by_the_commands_of_its_readme(torch_venv, copy_source):
    """In a copy: pip builds in the folder that it is given."""
    folder = copy_source() / "examples" / "vllm-known-ops"
    said = ""
    for block in re.findall(r"```console\n(.*?)```", (EXAMPLE / "README.md").read_text("utf-8"), re.DOTALL):
        for line in block.splitlines():
            if not line.startswith("$ "):
                assert line in said
                continue
            program, *arguments = shlex.split(line.removeprefix("$ "))
            if program == "pip":
                verb, *rest = arguments
                also = ["--no-deps"] if verb == "install" else []
                call(sys.executable, "-m", "pip", "--python", torch_venv.python, verb, *also, *rest, cwd=folder)
            else:
                assert program == "python"
                said = torch_venv.run(*arguments).stdout
            if line.endswith("verify vllm-known-ops"):
                assert row(torch_venv)["state"] == "waiting"
                assert row(torch_venv, "--live")["state"] == "applied"
                # What is found in a cache is not lowered.
                uncached = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
                bare = torch_venv.run("-c", LAYOUT, TORCH_FORWARDFIX_DISABLE=ID, **uncached).stdout.split()
                ours = torch_venv.run("-c", LAYOUT, **uncached).stdout.split()
                assert bare[0] == "False"
                assert ours == ["True", bare[1]]
    assert row(torch_venv) is None
