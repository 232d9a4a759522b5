"""What docs/ecosystem.md says, run as it stands there."""

import os
import re
import textwrap

import pytest
from venvs import ROOT, call, environment

PAGE = (ROOT / "docs" / "ecosystem.md").read_text("utf-8")
TRAIN = "import torch\nprint(torch.compile(lambda x: x @ x)(torch.ones(3, 3)).sum())\n"


def blocks(language):
    """The code of this language on the page, in order, each block without the indentation of the list it is in."""
    return [textwrap.dedent(code) for _, code in re.findall(rf"( *)```{language}\n(.*?)\n *```", PAGE, re.DOTALL)]


LINES = [line for block in blocks("sh") for line in block.splitlines()]
PROGRAMS = [code for code in blocks("python") if code.startswith("# run by a test")]


@pytest.fixture(scope="module")
def tools(make_venv, wheel, torch_venv, tmp_path_factory):
    """An environment with pip and tlparse as well, and a folder with the programs of the page."""
    made = make_venv()
    made.install("pip", wheel)
    made.install("pip", "pip", "tlparse")
    (made.site / "torch_site.pth").write_bytes((torch_venv.site / "torch_site.pth").read_bytes())
    torchrun = made.python.with_name("torchrun")
    torchrun.write_text(f"#!{made.python}\nfrom torch.distributed.run import main\nmain()\n")
    torchrun.chmod(0o755)
    folder = tmp_path_factory.mktemp("programs")
    (folder / "train.py").write_text(TRAIN)
    (folder / "check.py").write_text(next(code for code in PROGRAMS if "check_ranks" in code))
    return made, folder


@pytest.fixture(scope="module")
def said(tools):
    """What each line of the page printed, all in the order of the page."""
    made, folder = tools
    path = f"{made.python.parent}{os.pathsep}{environment()['PATH']}"
    caches = str(folder / "caches")
    found = {}
    for line in LINES:
        done = call("bash", "-c", line, cwd=folder, PATH=path, TORCHINDUCTOR_CACHE_DIR=caches, OMP_NUM_THREADS="1")
        found[line] = done.stdout + done.stderr
    return found, folder


def test_lines_of_the_page_are_run_and_say_what_it_says(said):
    found, folder = said
    assert len(LINES) == 8

    def of(part):
        (text,) = (text for line, text in found.items() if part in line)
        return text

    assert re.search(r"torch_forwardfix.*: applied to torch\._", of('TORCH_LOGS="+torch_forwardfix"'))
    assert re.search(r"torch-forwardfix==\d", of("collect_env"))
    assert "tensor(27.)" in of("TORCH_FORWARDFIX=0")
    assert "make no difference" in of("bisect").replace("\n", " ")
    assert '"fingerprint"' in of("status --live")
    (artifact,) = (folder / "report").rglob("torch_forwardfix*.json")
    assert '"in force"' in artifact.read_text("utf-8")
    assert artifact.name in (folder / "report" / "index.html").read_text("utf-8")


def test_cell_for_jupyter_activates_a_running_kernel(tools):
    made, folder = tools
    (cell,) = (code for code in PROGRAMS if "activate()" in code)
    lines = cell.splitlines()
    program = "\n".join(["import torch._dynamo", *lines[:-1], f"print({lines[-1]})"])
    path = {"PYTHONPATH": f"{made.site}{os.pathsep}{(made.site / 'torch_site.pth').read_text().strip()}"}
    # A kernel that runs since before the installation has read no .pth file of ours.
    done = made.run("-S", "-c", program, cwd=folder, **path)
    assert "'aot-builtins'" in done.stdout


@pytest.mark.parametrize("code", blocks("python"))
def test_programs_of_the_page_are_python(code):
    compile(code, "docs/ecosystem.md", "exec")


def test_uv_writes_bytecode_when_told_to(make_venv, wheel):
    pytest.importorskip("uv", reason="NOT TESTED WITH UV: `python -m uv` is not installed here")
    made = make_venv()
    made.uv("install", "--no-deps", "--compile-bytecode", wheel)
    assert list((made.site / "torch_forwardfix" / "__pycache__").glob("__init__.*.pyc"))
    assert "--compile-bytecode" in PAGE
