import json
import sys

import pytest

ARMED = "import sys; ours = sys.modules.get('torch_forwardfix'); print(ours and ours.watcher in sys.meta_path)"
MODULES = "import sys; print(*sorted(sys.modules))"
OURS = "import sys; print(*sorted(name for name in sys.modules if name.startswith('torch_forwardfix')))"
STATUS = ("-m", "torch_forwardfix", "status")


def out(venv, *arguments, **extra):
    return venv.run(*arguments, **extra).stdout.strip()


def report(venv, *options, **extra):
    return json.loads(out(venv, *STATUS, "--json", *options, **extra))


def silent(venv, *arguments, **extra):
    done = venv.run(*arguments, "-c", "pass", **extra)
    return (done.stdout, done.stderr) == ("", "")


def cpu_seconds(venv, *arguments):
    from resource import RUSAGE_CHILDREN, getrusage

    before = getrusage(RUSAGE_CHILDREN)
    venv.run(*arguments)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def leftovers(venv):
    return sorted(name for name in venv.files() if "torch_forwardfix" in name or "torch-forwardfix" in name)


def foreign_files(venv):
    # uv leaves a .lock of its own in every environment that it has installed into.
    return {name for name in venv.files() if "__pycache__" not in name and name != ".lock"}


def fake_torch(venv, **files):
    (venv.site / "torch").mkdir()
    for name, text in files.items():
        (venv.site / "torch" / f"{name}.py").write_text(text)


@pytest.mark.row("Installation", "{installer}, install: armed")
def test_armed(venv):
    assert out(venv, "-c", ARMED) == "True"
    assert report(venv)["active"] is True


def test_one_more_module(venv, make_venv):
    before = set(out(make_venv(), "-c", MODULES).split())
    after = set(out(venv, "-c", MODULES).split())
    assert before - after == set()
    assert after - before == {"torch_forwardfix"}


def test_switched_off(venv):
    assert silent(venv, TORCH_FORWARDFIX="0")
    assert out(venv, "-c", ARMED, TORCH_FORWARDFIX="0") == "False"
    assert out(venv, "-c", OURS, TORCH_FORWARDFIX="0") == "torch_forwardfix"
    switched_off = report(venv, TORCH_FORWARDFIX="0")
    assert (switched_off["enabled"], switched_off["active"]) == (False, False)


@pytest.mark.row(
    "Security",
    "a folder `torch_forwardfix` in the working directory: `python -m torch_forwardfix` is what {installer} installed",
)
def test_folder_of_the_same_name(venv, tmp_path):
    (tmp_path / "torch_forwardfix").mkdir()
    for file in ("__init__", "__main__", "cli", "engine"):
        (tmp_path / "torch_forwardfix" / f"{file}.py").write_text("raise SystemExit('HIJACKED')\n")
    done = venv.run(*STATUS, cwd=tmp_path)
    assert "torch-forwardfix " in done.stdout
    assert "HIJACKED" not in done.stdout + done.stderr


def test_status_without_torch(venv):
    assert "torch is not installed" in out(venv, *STATUS)
    made = report(venv)
    assert made["torch"] is None
    assert {fix["state"] for fix in made["fixes"]} == {"not-affected"}
    assert venv.run(*STATUS, "--live").stderr == ""


@pytest.mark.row("Installation", "{installer}, uninstall: no file is left, starts are silent")
def test_uninstall_leaves_nothing(make_venv, wheel, installer):
    venv = make_venv()
    before = foreign_files(venv)
    assert not leftovers(venv)
    venv.install(installer, wheel)
    venv.run(*STATUS, "--live")
    assert list((venv.site / "torch_forwardfix").rglob("*.pyc"))
    venv.uninstall(installer)
    assert not leftovers(venv)
    assert foreign_files(venv) == before
    assert silent(venv)
    assert silent(venv, "-W", "error", "-X", "dev")


@pytest.mark.row("Installation", "{installer}, reinstall: armed, no file added or lost")
def test_reinstall(make_venv, wheel, installer):
    venv = make_venv()
    venv.install(installer, wheel)
    before = foreign_files(venv)
    venv.install(installer, "--reinstall" if installer == "uv" else "--force-reinstall", wheel)
    assert foreign_files(venv) == before
    assert silent(venv)
    assert out(venv, "-c", ARMED) == "True"
    venv.uninstall(installer)
    assert not leftovers(venv)


@pytest.mark.row("Installation", "editable install: silent, not active, and `status` says so")
def test_editable_install_is_inactive(make_venv, copy_source):
    venv = make_venv()
    venv.install("pip", "-e", copy_source())
    assert silent(venv)
    assert out(venv, "-c", OURS.replace("print", "import torch_forwardfix; print")) == "torch_forwardfix"
    assert out(venv, "-c", ARMED) in ("None", "False")
    made = report(venv)
    assert made["active"] is False
    assert "torch_forwardfix.pth was not read" in made["reason"]
    assert "editable" in out(venv, *STATUS)
    assert venv.run(*STATUS, "--check", check=False).returncode == 1


@pytest.mark.row("Installation", "`pip install --target`: silent, not active; `activate()` arms it")
def test_target_install_needs_activate(make_venv, wheel, tmp_path):
    venv = make_venv()
    venv.install("pip", "--target", tmp_path, wheel)
    path = {"PYTHONPATH": str(tmp_path)}
    assert silent(venv, **path)
    assert out(venv, "-c", ARMED, **path) == "None"
    assert out(venv, "-c", f"import torch_forwardfix; {ARMED}", **path) == "False"
    assert out(venv, "-c", f"import torch_forwardfix; torch_forwardfix.activate(); {ARMED}", **path) == "True"
    assert report(venv, **path)["active"] is False


@pytest.mark.row("Faults", "a torch without its compiler: errors are Python's own")
def test_torch_without_its_compiler(own_venv):
    fake_torch(own_venv, __init__="from .version import __version__\n", version="__version__ = '2.10.0'\n")
    assert out(own_venv, "-c", "import torch; print(torch.__version__)") == "2.10.0"
    assert report(own_venv)["torch"] == "2.10.0"
    done = own_venv.run(*STATUS, "--live")
    assert "cannot be imported: ModuleNotFoundError" in " ".join(done.stdout.split())
    assert done.stderr == ""
    plain = own_venv.run("-c", "import torch._dynamo", check=False).stderr
    assert plain.strip().splitlines()[-1] == "ModuleNotFoundError: No module named 'torch._dynamo'"
    assert "torch_forwardfix" not in plain


@pytest.mark.row("Faults", "a torch without `version.py`: imports as ever")
def test_torch_without_version_file(own_venv):
    fake_torch(own_venv, __init__="")
    assert out(own_venv, "-c", "import torch; print('fine')") == "fine"
    assert "torch is not installed" in out(own_venv, *STATUS)
    info = own_venv.site / "torch-2.10.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.10.0\n")
    assert report(own_venv)["torch"] == "2.10.0"
    assert own_venv.run(*STATUS, "--live").stderr == ""


def test_folder_that_an_uninstalled_torch_left(own_venv):
    fake_torch(own_venv)
    assert report(own_venv)["torch"] is None


def test_import_torch_loads_nothing_of_ours(torch_venv):
    assert out(torch_venv, "-c", f"import torch; {OURS}") == "torch_forwardfix"


def test_status_does_not_import_torch(torch_venv):
    done = torch_venv.run("-X", "importtime", *STATUS)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch_forwardfix.report" in imported
    assert not [name for name in imported if name == "torch" or name.startswith("torch.")]
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}" in done.stdout
    assert "torch is not installed" not in done.stdout


def test_status_costs_less_than_ten_interpreter_starts(torch_venv):
    # On a quiet machine it is six, a tenth of a second; wall times would fail on a busy one.
    runs = [(cpu_seconds(torch_venv, "-c", "pass"), cpu_seconds(torch_venv, *STATUS)) for _ in range(8)]
    start, status = map(min, zip(*runs, strict=True))
    assert status < 10 * start
