"""The ranks of a job say that they do not carry the same fixes, before they wait for each other: torchrun, gloo."""

import json
import re
import socket
import subprocess

import pytest
from conftest import OTHER_VERSION, environment

CHECK = """
import os
{first}
from torch import distributed
import torch_forwardfix
distributed.init_process_group("gloo")
rank = distributed.get_rank()
try:
    torch_forwardfix.check_ranks()
    print(f"<rank {{rank}}: the same>", flush=True)
except torch_forwardfix.RanksDiffer as error:
    print(f"<rank {{rank}}: {{error}}>", flush=True)
{then}
distributed.destroy_process_group()
"""
ID = "fxgraph-cache-valueerror"


def launch(venvs, script, processes=1):
    """Run ``torchrun`` in each environment as if that were a machine of its own; return what each rank said."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    nodes = []
    for number, venv in enumerate(venvs):
        command = [venv.python, "-m", "torch.distributed.run", f"--nnodes={len(venvs)}", f"--node-rank={number}"]
        command += [f"--nproc-per-node={processes}", "--master-addr=127.0.0.1", f"--master-port={port}", script]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        nodes.append(subprocess.Popen(command, cwd=venv.folder, env=environment(OMP_NUM_THREADS="1"), **pipes))
    said = {}
    for node in nodes:
        output, errors = node.communicate(timeout=300)
        assert node.returncode == 0, errors
        said |= dict(re.findall(r"<rank (\d+): (.*?)>", output, re.DOTALL))
    return said


@pytest.fixture
def write(tmp_path):
    def write(first="", then=""):
        script = tmp_path / "check.py"
        script.write_text(CHECK.format(first=first, then=then))
        return script

    return write


def test_ranks_with_the_same_fixes_pass_also_where_some_have_compiled(torch_venv, write):
    first = """
if os.environ['RANK'] == '1':
    import torch
    torch.compile(torch.sin, backend='aot_eager')(torch.ones(2))
"""
    assert launch([torch_venv], write(first), processes=3) == dict.fromkeys("012", "the same")


def test_rank_where_a_fix_is_switched_off_is_named_on_every_rank(torch_venv, write):
    first = f"if os.environ['RANK'] == '2':\n    os.environ['TORCH_FORWARDFIX_DISABLE'] = '{ID}'"
    # The ranks of a group are named as those of the whole job.
    then = """
group = distributed.new_group([0, 2])
try:
    torch_forwardfix.check_ranks(group)
    print(f"<rank 1{rank}: the same>", flush=True)
except torch_forwardfix.RanksDiffer as error:
    print(f"<rank 1{rank}: {error}>", flush=True)
"""
    said = launch([torch_venv], write(first, then), processes=3)
    expected = f"the ranks would not compile the same graphs:\n  {ID}: in force on {{}}; not in force "
    expected += "(disabled: TORCH_FORWARDFIX_DISABLE names it) on rank 2"
    everyone, two = expected.format("ranks 0, 1"), expected.format("rank 0")
    assert said == {"0": everyone, "1": everyone, "2": everyone, "10": two, "11": "the same", "12": two}


def test_machines_with_other_versions_and_revisions_are_told_apart(torch_venv, make_venv, other_wheel, write):
    other = make_venv()
    other.install("pip", other_wheel)
    (other.site / "torch_site.pth").write_bytes((torch_venv.site / "torch_site.pth").read_bytes())
    with (other.site / "torch_forwardfix" / "fixes" / "aot_builtins.py").open("a") as file:
        file.write("# another revision\n")
    said = launch([torch_venv, other], write())
    assert said["0"] == said["1"]
    (version,) = (line for line in said["0"].splitlines() if "torch-forwardfix" in line)
    assert version.endswith(f" on rank 0; {OTHER_VERSION} on rank 1")
    revisions = r"aot-builtins: in force as revision (\w{12}) on rank 0; in force as revision (?!\1)\w{12} on rank 1"
    assert re.search(revisions, said["0"])
    assert len(said["0"].splitlines()) == 3


def test_fingerprint_of_status_is_that_of_processes_that_have_compiled(torch_venv):
    planned = json.loads(torch_venv.run("-m", "torch_forwardfix", "status", "--json").stdout)["fingerprint"]
    assert re.fullmatch(r"[0-9a-f]{16}", planned["digest"])
    assert len(planned["versions"]["torch-commit"]) == 40
    assert len(planned["fixes"]) > 10
    live = json.loads(torch_venv.run("-m", "torch_forwardfix", "status", "--live", "--json").stdout)
    assert live["fingerprint"] == planned
    assert "applied" in {row["state"] for row in live["fixes"]}
    without = json.loads(torch_venv.run("-m", "torch_forwardfix", "status", "--json", TORCH_FORWARDFIX="0").stdout)
    assert without["fingerprint"]["versions"] == planned["versions"]
    assert without["fingerprint"]["fixes"] == {}
    assert without["fingerprint"]["digest"] != planned["digest"]


def test_without_a_process_group_it_says_what_to_call(torch_venv):
    done = torch_venv.run("-c", "import torch_forwardfix; torch_forwardfix.check_ranks()", check=False)
    assert done.returncode == 1
    assert "RuntimeError: torch_forwardfix.check_ranks() compares the ranks of a process group" in done.stderr
    assert "call torch.distributed.init_process_group() first" in done.stderr
