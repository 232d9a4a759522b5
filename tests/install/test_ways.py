"""The ways in which people install, and what is left when they uninstall."""

import functools
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import OTHER_VERSION, Venv, call, torch_like_wheels
from test_install import ARMED, foreign_files, leftovers, out, report, silent

row = functools.partial(pytest.mark.row, "Installation")

COUNT = "import sys, torch_forwardfix; print(sys.meta_path.count(torch_forwardfix.watcher))"
NAME = f"python{sys.version_info[0]}.{sys.version_info[1]}"

# What is asked of a program that brings us along: is it armed by itself, and what does activate() lead to?
PROGRAM = """
import json, sys

def main():
    ours = sys.modules.get("torch_forwardfix")
    armed = sys.meta_path.count(ours.watcher) if ours else 0
    import torch_forwardfix
    torch_forwardfix.activate()
    import torch._dynamo
    states = {row.id: row.state for row in torch_forwardfix.status()}
    print(json.dumps([armed, torch._dynamo.f(), states["plugged"], states.get("aot-builtins")]))

if __name__ == "__main__":
    main()
"""
FIXED = ["plain and fixed", "applied", "not-affected"]


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory, wheel, dependencies):
    """A folder of wheels that serves as an index: ours, its dependencies, and a tiny torch."""
    folder = tmp_path_factory.mktemp("index")
    for file in (wheel, *dependencies):
        shutil.copy(file, folder)
    torch_like_wheels(folder)
    return folder


@pytest.fixture
def base(tmp_path, uv_cache, dependencies):
    """An interpreter that is no virtual environment, with site-packages of its own."""
    real = Path(os.path.realpath(sys.executable))
    made = Venv(tmp_path / "base", uv_cache)
    (made.folder / "bin").mkdir(parents=True)
    shutil.copy2(real, made.folder / "bin" / NAME)
    made.python.symlink_to(NAME)
    made.site.mkdir(parents=True)
    for entry in Path(sysconfig.get_path("stdlib")).iterdir():
        if entry.name not in ("site-packages", "EXTERNALLY-MANAGED"):
            (made.site.parent / entry.name).symlink_to(entry)
    for library in (real.parents[1] / "lib").glob("libpython*"):
        (made.folder / "lib" / library.name).symlink_to(library)
    made.install("pip", *dependencies)
    return made


@pytest.fixture
def uv(uv_cache, tmp_path):
    pytest.importorskip("uv", reason="NOT TESTED WITH UV: `python -m uv` is not installed here")
    return functools.partial(call, sys.executable, "-m", "uv", cwd=tmp_path, UV_CACHE_DIR=str(uv_cache))


def gone(venv, before):
    """Nothing of ours is left, nothing else is missing, and a start is silent."""
    assert not leftovers(venv)
    assert foreign_files(venv) == before
    assert silent(venv)
    assert silent(venv, "-W", "error", "-X", "dev")


@row("`pip install --user`: armed, `python -s` not; after `pip uninstall` no file is left, starts are silent")
def test_user_install(base, wheel, tmp_path):
    user = Venv(tmp_path / "user", base.uv_cache)
    user.folder.mkdir()
    variables = {"PYTHONUSERBASE": str(user.folder)}
    call(sys.executable, "-m", "pip", "--python", base.python, "install", "--user", "--no-deps", wheel,
         cwd=tmp_path, **variables)  # fmt: skip
    assert leftovers(user)
    assert not leftovers(base)
    assert silent(base, **variables)
    assert out(base, "-c", ARMED, **variables) == "True"
    assert out(base, "-c", COUNT, **variables) == "1"
    assert out(base, "-s", "-c", ARMED, **variables) == "None"
    assert report(base, **variables)["active"]
    call(sys.executable, "-m", "pip", "--python", base.python, "uninstall", "-y", "torch-forwardfix",
         cwd=tmp_path, **variables)  # fmt: skip
    assert not leftovers(user)
    assert not foreign_files(user) - {"lib", f"lib/{NAME}", f"lib/{NAME}/site-packages"}
    assert silent(base, "-W", "error", "-X", "dev", **variables)


@pytest.fixture
def inheriting(base, tmp_path):
    """A virtual environment over ``base`` that sees its packages."""
    child = Venv(tmp_path / "child", base.uv_cache)
    base.run("-m", "venv", "--without-pip", "--system-site-packages", child.folder)
    return child


@row("`--system-site-packages` over an interpreter that has it: armed once")
def test_environment_that_inherits(base, inheriting, wheel):
    base.install("pip", wheel)
    assert silent(inheriting)
    assert out(inheriting, "-c", COUNT) == "1"
    assert report(inheriting)["active"]
    assert f"{base.site}" in out(inheriting, "-m", "torch_forwardfix", "doctor")
    before = foreign_files(inheriting)
    base.uninstall("pip")
    gone(inheriting, before)
    assert out(inheriting, "-c", ARMED) == "None"


@row("`--system-site-packages`, with a copy of its own as well: armed once, by its own, and `doctor` names both")
def test_environment_that_inherits_and_has_a_copy(base, inheriting, wheel, other_wheel):
    base.install("pip", other_wheel)
    inheriting.install("pip", wheel)
    assert silent(inheriting)
    assert out(inheriting, "-c", COUNT) == "1"
    assert out(inheriting, "-c", "import torch_forwardfix; print(torch_forwardfix.__file__)").startswith(
        str(inheriting.folder)
    )
    assert report(inheriting)["version"] != OTHER_VERSION
    assert report(base)["version"] == OTHER_VERSION
    said = inheriting.run("-m", "torch_forwardfix", "doctor", check=False).stdout
    assert "two-copies" in said
    assert str(base.site) in said
    inheriting.uninstall("pip")
    assert report(inheriting)["version"] == OTHER_VERSION
    assert out(inheriting, "-c", COUNT) == "1"


@row("from the sdist: the files are those of the wheel, and it is armed")
def test_install_from_sdist(make_venv, built):
    venvs = make_venv(), make_venv()
    before = foreign_files(venvs[0])
    venvs[0].install("pip", built.sdist)
    venvs[1].install("pip", built.wheel)
    from_sdist, from_wheel = map(foreign_files, venvs)
    assert {name for name in from_sdist ^ from_wheel if not name.endswith(".dist-info/direct_url.json")} == set()
    assert silent(venvs[0])
    assert out(venvs[0], "-c", ARMED) == "True"
    venvs[0].uninstall("pip")
    gone(venvs[0], before)


@row("{installer}, upgrade and downgrade: armed, the files are those of the version, none is left after uninstalling")
def test_upgrade_and_downgrade(make_venv, wheel, other_wheel, installer):
    venv = make_venv()
    before = foreign_files(venv)
    venv.install(installer, wheel)
    earlier, version = foreign_files(venv), report(venv)["version"]
    venv.install(installer, other_wheel)
    assert silent(venv)
    assert out(venv, "-c", COUNT) == "1"
    assert report(venv)["version"] == OTHER_VERSION
    assert any(name.endswith("torch_forwardfix/later.py") for name in foreign_files(venv) - earlier)
    venv.install(installer, wheel)
    assert silent(venv)
    assert out(venv, "-c", COUNT) == "1"
    assert report(venv)["version"] == version
    assert foreign_files(venv) == earlier
    venv.uninstall(installer)
    gone(venv, before)


PROJECT = """
[project]
name = "project"
version = "1"
requires-python = "=={0[0]}.{0[1]}.*"
dependencies = {1}

[tool.uv]
package = false
no-index = true
find-links = ["{2}"]
"""


@row("`uv sync`: armed, and fixes are applied; without the dependency `uv sync` leaves no file, starts are silent")
def test_uv_sync(uv, wheelhouse, tmp_path):
    def sync(*dependencies):
        text = PROJECT.format(sys.version_info, json.dumps(dependencies), wheelhouse.as_posix())
        (tmp_path / "pyproject.toml").write_text(text)
        uv("sync", "--python", sys.executable)
        return Venv(tmp_path / ".venv", tmp_path)

    others = ("torch", "packaging", "importlib-metadata")
    venv = sync(*others)
    before = foreign_files(venv)
    sync(*others, "torch-forwardfix", "plug")
    assert silent(venv)
    assert out(venv, "-c", COUNT) == "1"
    assert out(venv, "-c", "import torch._dynamo; print(torch._dynamo.f())") == "plain and fixed"
    assert report(venv)["active"]
    sync(*others)
    gone(venv, before)


@row("`uv run --with`: armed, and fixes are applied")
def test_uv_run_with(uv, wheelhouse, wheel):
    def run(*command):
        options = ("run", "--quiet", "--no-project", "--python", sys.executable, "--with", wheel, "--with", "plug",
                   "--no-index", "--find-links", wheelhouse)  # fmt: skip
        return uv(*options, "python", *command)

    assert run("-c", COUNT).stdout == "1\n"
    done = run("-c", "import torch._dynamo; print(torch._dynamo.f())")
    assert (done.stdout, done.stderr) == ("plain and fixed\n", "")
    assert json.loads(run("-m", "torch_forwardfix", "status", "--json").stdout)["active"]


@pytest.fixture
def bundle(wheelhouse, tmp_path):
    """Install the program and all that it needs into a folder, as `pip install --target` does."""
    folder = tmp_path / "bundle"
    call(sys.executable, "-m", "pip", "install", "--no-index", "--find-links", wheelhouse, "--target", folder,
         "torch-forwardfix", "plug", cwd=tmp_path)  # fmt: skip
    (folder / "program.py").write_text(PROGRAM)
    return folder


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """An environment with nothing in it."""
    made = Venv(tmp_path_factory.mktemp("bare"), tmp_path_factory.mktemp("cache"))
    call(sys.executable, "-m", "venv", "--without-pip", made.folder, cwd=made.folder)
    return made


def check_program(*command, armed, cwd, **extra):
    done = call(*command, cwd=cwd, **extra)
    assert json.loads(done.stdout) == [armed, *FIXED]
    assert done.stderr == ""


@row("`pip install --target`: fixes are applied after `activate()`")
def test_target(bundle, bare, tmp_path):
    check_program(bare.python, bundle / "program.py", armed=0, cwd=tmp_path)


@row("zipapp: not active; fixes are applied after `activate()`")
def test_zipapp(bundle, bare, tmp_path):
    call(sys.executable, "-m", "zipapp", bundle, "-m", "program:main", "-o", tmp_path / "app.pyz", cwd=tmp_path)
    shutil.rmtree(bundle)
    check_program(bare.python, tmp_path / "app.pyz", armed=0, cwd=tmp_path)


def tool(make_venv, name, *wheels):
    """An environment with this tool of PyPI's; where it cannot be installed the installer says why."""
    made = make_venv()
    options = ("--python", made.python, "install", "--quiet", name)
    done = call(sys.executable, "-m", "pip", *options, cwd=made.folder, check=False)
    if done.returncode:
        pytest.skip(f"{name} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")  # pip's own reason
    if wheels:
        made.install("pip", *wheels)
    return made


@pytest.mark.slow
@row("PEX, laid out as {layout}: armed, as PEX reads `.pth` files, and fixes are applied")
@pytest.mark.parametrize("layout", ["zipapp", "packed", "loose"])
def test_pex(make_venv, wheelhouse, bare, tmp_path, layout):
    made = tool(make_venv, "pex")
    (tmp_path / "program.py").write_text(PROGRAM)
    # Pre-resolved, as PEX would fetch a pip of its own to resolve anything.
    made.run("-m", "pex", "torch-forwardfix", "plug", "--pre-resolved-dists", wheelhouse, "--layout", layout,
             "--exe", tmp_path / "program.py", "-o", tmp_path / "app.pex", PEX_ROOT=str(tmp_path / "root"))  # fmt: skip
    check_program(bare.python, tmp_path / "app.pex", armed=1, cwd=tmp_path, PEX_ROOT=str(tmp_path / "root"))


@pytest.fixture
def freeze(make_venv, wheelhouse, wheel, tmp_path):
    made = tool(make_venv, "pyinstaller", wheel, *wheelhouse.glob("torch-1*.whl"), *wheelhouse.glob("plug*.whl"))
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(*options):
        options = ("--log-level", "WARN", "--noconfirm", "--copy-metadata", "plug", "--hidden-import", "plug", *options)
        made.run("-m", "PyInstaller", *options, tmp_path / "program.py", cwd=tmp_path)
        return tmp_path / "dist" / "program" / "program"

    return run


@pytest.mark.slow
@row("PyInstaller with `--collect-all torch_forwardfix`: not active; fixes are applied after `activate()`")
def test_pyinstaller(freeze, tmp_path):
    check_program(freeze("--collect-all", "torch_forwardfix"), armed=0, cwd=tmp_path)


@pytest.mark.slow
@row("PyInstaller without that option: our own fixes are left out, and a warning says so")
def test_pyinstaller_that_was_not_told(freeze, tmp_path):
    done = call(freeze(), cwd=tmp_path, check=False)
    assert done.stderr.startswith("built-in fixes: failed: ")
    assert "--collect-all torch_forwardfix" in done.stderr.splitlines()[0]
