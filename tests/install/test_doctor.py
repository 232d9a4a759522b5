"""Each trouble is made for real; doctor names it, and after its advice has been followed it is content."""

import ctypes
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import environment

DOCTOR = ("-m", "torch_forwardfix", "doctor")
ACTIVATED = "import sys, torch_forwardfix; torch_forwardfix.activate(); from torch_forwardfix.cli import main; "


class Patient:
    """An environment with a trouble, and the variables under which it has it."""

    def __init__(self, venv, finder, **variables):
        self.venv = venv
        self.variables = {**finder, **variables}
        self.expected = {"no-torch"}

    def doctor(self, *options, python=(), command=DOCTOR, **extra):
        """Return what doctor found, as code to finding, and what it prints for people."""
        told = self.venv.run(*python, *command, *options, check=False, **self.variables, **extra)
        made = self.venv.run(*python, *command, *options, "--json", check=False, **self.variables, **extra)
        assert (told.stderr, made.stderr) == ("", "")
        diagnosis = json.loads(made.stdout)
        assert told.returncode == made.returncode == (0 if diagnosis["well"] else 1)
        text = " ".join(told.stdout.split())
        for finding in diagnosis["findings"]:
            assert finding["code"] in text
            assert " ".join(finding["what"].split()) in text
            assert (finding["command"] or finding["advice"]) in text
        found = {finding["code"]: finding for finding in diagnosis["findings"]}
        assert len(found) == len(diagnosis["findings"])
        return found

    def findings(self, *options, **extra):
        return {code: found for code, found in self.doctor(*options, **extra).items() if code not in self.expected}

    def after(self, finding, *options, **extra):
        """Run the command that the finding advises, in a shell, and return what doctor finds afterwards in it."""
        last = shlex.join([str(self.venv.python), *DOCTOR, *options, "--json"])
        done = subprocess.run(
            ["sh", "-c", f"{finding['command']} >&2 && {last}"],
            cwd=self.venv.folder,
            env=environment(**self.variables, **extra),
            capture_output=True,
            text=True,
        )
        assert done.stdout, done.stderr
        diagnosis = json.loads(done.stdout)
        assert done.returncode == (0 if diagnosis["well"] else 1)
        return {found["code"]: found for found in diagnosis["findings"] if found["code"] not in self.expected}


def make_wheel(folder, name, version, files):
    """A wheel of a package that a test makes up."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))
    return path


TORCH = {
    "torch/__init__.py": "from .version import __version__\n",
    "torch/version.py": "__version__ = '2.10.0'\n",
    "torch/_dynamo/__init__.py": "def step():\n    return 1\n",
    "torch/_inductor/__init__.py": "",
}
FIX = """
from torch_forwardfix import Fix

def is_present(module):
    {probe}

def apply(module):
    {apply}

FIX = Fix(
    id="demo-step",
    title="step is 1",
    kind="crash",
    upstream=("pytorch/pytorch#1",),
    affects={{"torch": ">=2.9.0.dev0,<2.11.0rc99"}},
    fixed_in=None,
    targets=("torch._dynamo:step",),
    changes_codegen=False,
    is_present=is_present,
    apply=apply,
    reproduce=print,
)
"""


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory, wheel):
    """Where pip finds what the advice names: our wheel, and packages that tests make up."""
    folder = tmp_path_factory.mktemp("advised")
    shutil.copy(wheel, folder)
    make_wheel(folder, "torch", "2.10.0", TORCH)
    return folder


@pytest.fixture
def finder(wheelhouse):
    return {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_FIND_LINKS": str(wheelhouse)}


@pytest.fixture(scope="session")
def healthy(make_venv, wheel):
    """One environment with the wheel and one without, to make copies of."""
    made = {True: make_venv(), False: make_venv()}
    made[True].install("pip", wheel)
    for venv in made.values():
        (venv.site / "pip").symlink_to(importlib.util.find_spec("pip").submodule_search_locations[0])
    return made


@pytest.fixture
def admit(healthy, finder, tmp_path):
    """Copy an environment, with the wheel or without: that takes a tenth of the time of an installation."""

    def admit(*, installed=True, **variables):
        folder = tmp_path / "patient"
        shutil.copytree(healthy[installed].folder, folder, symlinks=True)
        return Patient(replace(healthy[installed], folder=folder), finder, **variables)

    return admit


@pytest.fixture
def patient(admit):
    return admit()


def plug_in(patient, probe="return True", apply="module.step = lambda: 2"):
    """Install a torch that is not one, and a fix for it alone."""
    patient.venv.install("pip", *Path(patient.variables["PIP_FIND_LINKS"]).glob("torch-*.whl"))
    (patient.venv.site / "demo_fix.py").write_text(FIX.format(probe=probe, apply=apply))
    info = patient.venv.site / "demo_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: demo-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[torch_forwardfix.fixes]\ndemo = demo_fix:FIX\n")
    (info / "RECORD").write_text("demo_plugin-1.0.dist-info/METADATA,,\ndemo_plugin-1.0.dist-info/entry_points.txt,,\n")
    patient.variables["TORCH_FORWARDFIX_ONLY"] = "demo-step"


def test_content_with_a_healthy_environment(patient):
    patient.venv.install("pip", *Path(patient.variables["PIP_FIND_LINKS"]).glob("torch-*.whl"))
    assert patient.doctor() == {}
    made = json.loads(patient.venv.run(*DOCTOR, "--json").stdout)
    assert made["torch"] == "2.10.0"
    assert made["executable"] == str(patient.venv.python)
    assert made["pth"] == str(patient.venv.site / "torch_forwardfix.pth")
    assert made["file"] == made["child"]["file"] == str(patient.venv.site / "torch_forwardfix" / "__init__.py")
    assert made["child"]["armed"] is True


def test_loads_no_torch_unless_asked(patient):
    plug_in(patient)
    (patient.venv.site / "torch" / "__init__.py").write_text("raise SystemExit('torch was loaded')\n")
    assert patient.findings().keys() == {"opted-out"}


def test_not_installed(admit, wheel, tmp_path):
    folder = tmp_path / "target"
    patient = admit(installed=False, PYTHONPATH=str(folder))
    patient.venv.install("pip", "--target", folder, wheel)
    found = patient.findings()["not-installed"]
    assert str(folder) in found["what"]
    assert "torch_forwardfix.activate()" in found["advice"]
    after = patient.after(found)
    # What the advice has installed is still hidden by the folder on PYTHONPATH.
    assert after.keys() == {"shadowed"}
    assert patient.after(after["shadowed"]) == {}


def test_editable(admit, copy_source):
    source = copy_source()
    patient = admit(installed=False)
    patient.venv.install("pip", "-e", source)
    found = patient.findings()["editable"]
    assert str(source) in found["what"]
    del patient.variables["PIP_NO_INDEX"]  # the build takes setuptools from the index
    assert patient.after(found) == {}


def test_pth_file_is_missing(patient):
    (patient.venv.site / "torch_forwardfix.pth").unlink()
    found = patient.findings()
    assert found.keys() == {"no-pth"}
    assert str(patient.venv.site) in found["no-pth"]["what"]
    assert patient.after(found["no-pth"]) == {}


@pytest.mark.parametrize("option", ["pip", "uv"])
def test_advice_names_the_installer_that_is_there(patient, option):
    if option == "uv":
        (patient.venv.site / "pip").unlink()
    (patient.venv.site / "torch_forwardfix.pth").unlink()
    words = shlex.split(patient.findings()["no-pth"]["command"])
    python = str(patient.venv.python)
    assert words[:4] == ([python, "-m", "pip", "install"] if option == "pip" else ["uv", "pip", "install", "--python"])
    if option == "uv":
        assert words[4:7] == [python, "--reinstall", "--no-deps"]


def test_without_site(patient):
    found = patient.doctor(python=["-S"], PYTHONPATH=str(patient.venv.site))
    assert "-S" in found["no-site"]["what"]
    assert "without -S" in found["no-site"]["advice"]
    assert patient.findings(PYTHONPATH=str(patient.venv.site)) == {}
    code = f"{ACTIVATED}sys.exit(main(['doctor']))"
    patient.venv.run("-S", "-c", code, PYTHONPATH=str(patient.venv.site))


@pytest.fixture
def user_site(admit, wheel, tmp_path):
    """An environment whose user site holds the package, and the folder."""
    patient = admit(installed=False, PYTHONUSERBASE=str(tmp_path / "user"))
    config = patient.venv.folder / "pyvenv.cfg"
    config.write_text(config.read_text().replace("packages = false", "packages = true"))
    folder = patient.venv.run("-m", "site", "--user-site", **patient.variables).stdout.strip()
    patient.venv.install("pip", "--target", folder, wheel)
    patient.expected.add("finders-ahead")  # the setuptools of the base interpreter has one
    return patient, folder


@pytest.mark.parametrize("flag", ["-I", "-s"])
def test_isolated(user_site, flag):
    patient, folder = user_site
    assert patient.findings() == {}
    code = f"import sys; sys.path.insert(0, {folder!r}); from torch_forwardfix.cli import main; "
    command = ("-c", f"{code}sys.exit(main(sys.argv[1:]))", "doctor")
    found = patient.doctor(python=[flag], command=command)
    assert found["isolated"]["what"].startswith(f"Python was started with {flag} ")
    assert f"without {flag}" in found["isolated"]["advice"]
    assert "isolated" not in patient.doctor(command=command)


def test_user_site_that_is_left_out(user_site):
    patient, folder = user_site
    patient.variables |= {"PYTHONNOUSERSITE": "yes", "PYTHONPATH": folder}
    found = patient.findings()
    assert found.keys() == {"user-site"}
    assert folder in found["user-site"]["what"]
    assert "PYTHONNOUSERSITE=yes" in found["user-site"]["advice"]
    assert patient.after(found["user-site"]) == {}


def test_shadowed(patient, tmp_path):
    shutil.copytree(patient.venv.site / "torch_forwardfix", tmp_path / "old" / "torch_forwardfix")
    (tmp_path / "kept").mkdir()
    patient.variables["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "kept"), str(tmp_path / "old")])
    found = patient.findings()
    assert found.keys() == {"shadowed"}
    assert str(tmp_path / "old") in found["shadowed"]["what"]
    assert str(patient.venv.site) in found["shadowed"]["what"]
    assert found["shadowed"]["command"] == f"export PYTHONPATH={tmp_path / 'kept'}"
    assert patient.after(found["shadowed"]) == {}


def test_folder_in_the_working_directory_that_nobody_loads_is_no_trouble(patient, tmp_path):
    (tmp_path / "torch_forwardfix").mkdir()
    (tmp_path / "torch_forwardfix" / "__init__.py").write_text("raise SystemExit('HIJACKED')\n")
    assert patient.findings(cwd=tmp_path) == {}


@pytest.mark.parametrize(("loaded", "severity"), [("0.0.1", "wrong"), ("9999", "note")])
def test_two_copies(user_site, wheel, loaded, severity):
    patient, folder = user_site
    patient.venv.install("pip", wheel)  # the environment comes before the user site
    (info,) = patient.venv.site.glob("torch_forwardfix-*.dist-info")
    renamed = info.with_name(f"torch_forwardfix-{loaded}.dist-info")
    record = (info / "RECORD").read_text().replace(info.name, renamed.name)
    (info / "RECORD").write_text(record)
    lines = (info / "METADATA").read_text().splitlines()
    lines = [f"Version: {loaded}" if line.startswith("Version:") else line for line in lines]
    (info / "METADATA").write_text("\n".join(lines))
    info.rename(renamed)
    found = patient.findings()["two-copies"]
    assert found["severity"] == severity
    assert f"that in {patient.venv.site} is loaded" in found["what"]
    assert f"{folder} (" in found["what"]
    assert patient.after(found) == {}
    kept, removed = (folder, patient.venv.site) if severity == "wrong" else (patient.venv.site, folder)
    assert Path(kept, "torch_forwardfix.pth").exists()
    assert not [path.name for path in Path(removed).iterdir() if path.name.startswith("torch_forwardfix")]


def test_start_file(patient):
    start = patient.venv.site / "torch_forwardfix.start"
    start.write_text("json:loads\n")
    found = patient.findings()
    assert found.keys() == {"start-file"}
    assert str(start) in found["start-file"]["what"]
    assert found["start-file"]["severity"] == ("wrong" if sys.version_info >= (3, 15) else "note")
    assert patient.after(found["start-file"]) == {}
    assert not start.exists()


@pytest.mark.parametrize("value", ["0", "OFF"])
def test_opted_out(patient, value):
    patient.variables["TORCH_FORWARDFIX"] = value
    found = patient.findings()
    assert found.keys() == {"opted-out"}
    assert f"TORCH_FORWARDFIX={value} " in found["opted-out"]["what"]
    assert patient.after(found["opted-out"]) == {}


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("TORCH_FORWARDFIX", "maybe", "maybe"),
        ("TORCH_FORWARDFIX_STRICT", "2", "2"),
        ("TORCH_FORWARDFIX_DISABLE", "aot-builtin", "'aot-builtins'"),
        ("TORCH_FORWARDFIX_ONLY", "no-such-fix", "no-such-fix"),
    ],
)
def test_bad_value(patient, name, value, named):
    patient.variables[name] = value
    found = patient.findings()
    assert found.keys() == {"bad-value"}
    assert name in found["bad-value"]["what"]
    assert named in found["bad-value"]["what"]
    assert patient.after(found["bad-value"]) == {}


def test_fixes_that_are_switched_off_are_noted(patient):
    patient.variables["TORCH_FORWARDFIX_DISABLE"] = "aot-builtins"
    found = patient.findings()
    assert (found["opted-out"]["severity"], "aot-builtins" in found["opted-out"]["what"]) == ("note", True)
    assert patient.after(found["opted-out"]) == {}


@pytest.mark.parametrize("missing", [False, True], ids=["changed", "missing"])
def test_files_that_are_not_those_of_the_wheel(patient, missing):
    file = patient.venv.site / "torch_forwardfix" / "fixes" / "aot_builtins.py"
    if missing:
        file.unlink()
    else:
        file.write_text(file.read_text() + "# changed\n")
    found = patient.findings()
    assert found.keys() == {"hash-mismatch"}
    assert "torch_forwardfix/fixes/aot_builtins.py" in found["hash-mismatch"]["what"]
    assert patient.after(found["hash-mismatch"]) == {}


def test_pth_file_that_was_changed(patient):
    (patient.venv.site / "torch_forwardfix.pth").write_text("# import torch_forwardfix; torch_forwardfix.init()\n")
    found = patient.findings()
    assert found.keys() == {"hash-mismatch"}
    assert "RECORD: torch_forwardfix.pth" in found["hash-mismatch"]["what"]
    assert patient.after(found["hash-mismatch"]) == {}


def test_no_record(patient):
    (info,) = patient.venv.site.glob("torch_forwardfix-*.dist-info")
    (info / "RECORD").unlink()
    found = patient.findings()
    assert (found.keys(), found["no-record"]["severity"]) == ({"no-record"}, "note")
    assert str(patient.venv.site) in found["no-record"]["what"]
    assert patient.after(found["no-record"]) == {}


def without_bytecode(venv):
    for cache in list((venv.site / "torch_forwardfix").rglob("__pycache__")):
        shutil.rmtree(cache)


def test_no_bytecode_and_none_is_to_be_written(patient):
    without_bytecode(patient.venv)
    patient.variables["PYTHONDONTWRITEBYTECODE"] = "1"
    found = patient.findings()["no-bytecode"]
    assert found["severity"] == "note"
    assert str(patient.venv.site / "torch_forwardfix") in found["what"]
    assert "PYTHONDONTWRITEBYTECODE" in found["what"]
    assert patient.after(found) == {}


def test_no_bytecode_in_a_read_only_place(patient):
    without_bytecode(patient.venv)
    package = patient.venv.site / "torch_forwardfix"
    folders = [package, package / "fixes", package / "unfixed"]
    for folder in folders:
        folder.chmod(0o555)
    # Root may write everywhere, unless it has given up that right (CAP_DAC_OVERRIDE) before.
    drop = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
    assert hasattr(ctypes.CDLL(None), "prctl")
    found = patient.findings(under=(sys.executable, "-c", drop))["no-bytecode"]
    assert f"in {package} have no bytecode, and none can be written there" in found["what"]
    for folder in folders:
        folder.chmod(0o755)
    assert patient.after(found) == {}


FINDER = """
import sys
from importlib.machinery import PathFinder

class Impatient:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return PathFinder.find_spec(name, path, target) if name in {names} else None

sys.meta_path.insert(0, Impatient)
"""


def ahead_of_us(patient, names):
    (patient.venv.site / "zzz_demo.py").write_text(FINDER.format(names=names))
    (patient.venv.site / "zzz_demo.pth").write_text("import zzz_demo\n")


def test_finders_ahead(patient):
    plug_in(patient)
    del patient.variables["TORCH_FORWARDFIX_ONLY"]
    ahead_of_us(patient, ())
    found = patient.findings()
    assert found.keys() == {"finders-ahead"}
    assert f"zzz_demo.Impatient ({patient.venv.site / 'zzz_demo.py'})" in found["finders-ahead"]["what"]
    assert found["finders-ahead"]["severity"] == "note"
    patient.variables["TORCH_FORWARDFIX_ONLY"] = "demo-step"
    assert patient.findings("--live").keys() == {"finders-ahead", "opted-out"}


def test_compiler_that_is_loaded_past_the_hook(patient):
    plug_in(patient)
    ahead_of_us(patient, ("torch._dynamo", "torch._inductor"))
    found = patient.findings("--live")
    assert found.keys() == {"finders-ahead", "loaded-past", "opted-out"}
    assert "torch._dynamo and torch._inductor" in found["loaded-past"]["what"]
    assert "zzz_demo.Impatient" in found["loaded-past"]["advice"]
    code = "import torch._dynamo, torch_forwardfix; torch_forwardfix.activate(); print(torch._dynamo.step())"
    assert patient.venv.run("-c", code, **patient.variables).stdout == "2\n"
    (patient.venv.site / "zzz_demo.pth").unlink()
    assert patient.findings("--live").keys() == {"opted-out"}


def test_compiler_that_is_loaded_when_python_starts(patient):
    plug_in(patient)
    early = patient.venv.site / "aaa.pth"
    early.write_text("import torch._dynamo, torch._inductor\n")
    found = patient.findings()["loaded-past"]
    assert "torch._dynamo and torch._inductor" in found["what"]
    assert ".pth" in found["advice"]
    early.unlink()
    assert patient.findings("--live").keys() == {"opted-out"}


@pytest.mark.parametrize(
    ("state", "probe", "apply", "reason"),
    [
        ("drifted", "return 'step is another one'", "pass", "step is another one"),
        ("failed", "return True", "raise OSError('no patch today')", "no patch today"),
    ],
)
def test_fix_that_could_not_be_applied(patient, state, probe, apply, reason):
    plug_in(patient, probe, apply)
    found = patient.findings("--live")
    assert found.keys() == {state, "opted-out"}
    assert f"demo-step: {state}: " in found[state]["what"]
    assert reason in found[state]["what"]
    assert patient.after(found[state], "--live").keys() == {"opted-out"}


def test_target_that_somebody_else_has_patched(patient):
    plug_in(patient)
    dynamo = patient.venv.site / "torch" / "_dynamo" / "__init__.py"
    dynamo.write_text("from zzz_patcher import step\n")
    (patient.venv.site / "zzz_patcher.py").write_text("def step():\n    return 3\n")
    found = patient.findings("--live")
    assert found.keys() == {"foreign", "opted-out"}
    assert "zzz_patcher" in found["foreign"]["what"]
    assert found["foreign"]["severity"] == "note"
    assert patient.after(found["foreign"], "--live").keys() == {"opted-out"}


def test_broken_plug_in(patient):
    plug_in(patient)
    del patient.variables["TORCH_FORWARDFIX_ONLY"]
    (patient.venv.site / "demo_fix.py").write_text("raise RuntimeError('half a plug-in')\n")
    found = patient.findings()
    assert found.keys() == {"plug-in"}
    assert "demo-plugin" in found["plug-in"]["what"]
    assert "half a plug-in" in found["plug-in"]["what"]
    assert patient.after(found["plug-in"]) == {}


def test_no_torch(patient):
    found = patient.doctor()
    assert found.keys() == {"no-torch"}
    assert str(patient.venv.python) in found["no-torch"]["what"]
    assert patient.after(found["no-torch"]) == {}
    assert patient.doctor() == {}


def test_torch_that_is_installed_by_half(patient):
    plug_in(patient)
    del patient.variables["TORCH_FORWARDFIX_ONLY"]
    shutil.rmtree(patient.venv.site / "torch" / "_dynamo")
    found = patient.findings()
    assert found.keys() == {"torch-broken"}
    assert "_dynamo is missing" in found["torch-broken"]["what"]
    assert str(patient.venv.site / "torch") in found["torch-broken"]["what"]
    assert patient.after(found["torch-broken"]) == {}


def test_torch_that_cannot_be_loaded(patient):
    plug_in(patient)
    dynamo = patient.venv.site / "torch" / "_dynamo" / "__init__.py"
    dynamo.write_text("raise ImportError('libtorch.so is not there')\n")
    found = patient.findings("--live")["torch-broken"]
    assert "torch._dynamo cannot be imported: ImportError: libtorch.so is not there" in found["what"]
    assert found["severity"] == "wrong"
    assert patient.after(found, "--live").keys() == {"opted-out"}


def test_frozen_program_is_told_to_activate(patient):
    # PyInstaller and its like set this; sys.executable is then the program, and must not be started.
    code = "import sys; sys.frozen = True; sys.executable = '/bin/false'; {}from torch_forwardfix.cli import main; "
    code += "sys.meta_path.remove(sys.modules['torch_forwardfix'].watcher) if {} else None; sys.exit(main({}))"
    done = patient.venv.run("-c", code.format("", True, ["doctor", "--json"]), check=False)
    (found,) = [row for row in json.loads(done.stdout)["findings"] if row["severity"] == "wrong"]
    assert (found["code"], done.returncode) == ("frozen", 1)
    assert "torch_forwardfix.activate()" in found["advice"]
    activate = "import torch_forwardfix; torch_forwardfix.activate(); "
    assert patient.venv.run("-S", "-c", code.format(activate, False, ["doctor"]), PYTHONPATH=str(patient.venv.site))


def test_process_from_before_the_installation(patient):
    code = "import sys, torch_forwardfix; sys.meta_path.remove(torch_forwardfix.watcher); {}"
    code += "from torch_forwardfix.cli import main; sys.exit(main(['doctor', *sys.argv[1:]]))"
    found = patient.findings(command=("-c", code.format("")))
    assert found.keys() == {"restart"}
    assert "torch_forwardfix.activate()" in found["restart"]["advice"]
    assert patient.findings(command=("-c", code.format("torch_forwardfix.activate(); "))) == {}


def test_interpreter_that_cannot_be_started(patient):
    code = "import sys; sys.executable = '/no/such/python'; from torch_forwardfix.cli import main; "
    found = patient.findings(command=("-c", code + "sys.exit(main(['doctor', *sys.argv[1:]]))"))
    assert found.keys() == {"child-failed"}
    assert "/no/such/python cannot be started: FileNotFoundError" in found["child-failed"]["what"]


def test_hook_that_something_else_has_removed(patient):
    thief = patient.venv.site / "zzz.pth"
    thief.write_text("import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'watcher' not in repr(f)]\n")
    found = patient.findings()
    assert "not-armed" in found
    thief.unlink()
    assert patient.findings() == {}


def test_check_that_breaks_is_a_finding(patient):
    (info,) = patient.venv.site.glob("torch_forwardfix-*.dist-info")
    (info / "direct_url.json").write_text("{")
    found = patient.findings()["check-failed"]
    assert "JSONDecodeError" in found["what"]
    assert patient.after(found) == {}


def test_content_with_real_torch(torch_venv):
    done = torch_venv.run(*DOCTOR, "--live", "--json")
    made = json.loads(done.stdout)
    assert made["findings"] == []
    assert {"applied"} <= {state for _, state, _ in made["child"]["live"]}
