"""Builds the distributions once, and makes virtual environments to install them into."""

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EPOCH = "1700000000"


def environment(**extra):
    """The environment without what would change how Python, the package, or uv behaves.

    nox has UV_PROJECT_ENVIRONMENT name the environment of the session: `uv sync` would empty that.
    """
    ours = ("PYTHON", "TORCH_FORWARDFIX", "UV_PROJECT", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, **extra}


def call(*command, cwd, check=True, **extra):
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment(**extra), capture_output=True, text=True
    )
    if check and done.returncode:
        pytest.fail(f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@dataclass(frozen=True)
class Venv:
    folder: Path
    uv_cache: Path

    @property
    def python(self):
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def site(self):
        if os.name == "nt":
            return self.folder / "Lib" / "site-packages"
        return self.folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def run(self, *arguments, check=True, cwd=None, under=(), **extra):
        """Run its Python, away from the repository, whose package folder would be found first."""
        return call(*under, self.python, *arguments, cwd=cwd or self.folder, check=check, **extra)

    def pip(self, *arguments):
        return call(sys.executable, "-m", "pip", "--python", self.python, *arguments, cwd=self.folder)

    def uv(self, command, *arguments):
        cache = {"UV_CACHE_DIR": str(self.uv_cache)}
        return call(
            sys.executable, "-m", "uv", "pip", command, "--python", self.python, *arguments, cwd=self.folder, **cache
        )

    def install(self, installer, *arguments):
        return {"pip": self.pip, "uv": self.uv}[installer]("install", "--no-deps", *arguments)

    def uninstall(self, installer):
        if installer == "uv":
            return self.uv("uninstall", "torch-forwardfix")
        return self.pip("uninstall", "-y", "torch-forwardfix")

    def files(self):
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}


@pytest.fixture(scope="session")
def copy_source(tmp_path_factory):
    """Make copies of the tracked and untracked files: a build leaves folders behind where it runs."""
    listed = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout

    def copy():
        folder = tmp_path_factory.mktemp("source")
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        return folder

    return copy


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path
    wheel_again: Path
    wheel_from_sdist: Path


@pytest.fixture(scope="session")
def built(copy_source):
    def build(*options):
        folder = copy_source()
        call(sys.executable, "-m", "build", *options, cwd=folder, SOURCE_DATE_EPOCH=EPOCH)
        return folder / "dist"

    tree, again, through_sdist = build("--sdist", "--wheel"), build("--wheel"), build()
    (sdist,), (wheel,) = tree.glob("*.tar.gz"), tree.glob("*.whl")
    (wheel_again,), (wheel_from_sdist,) = again.glob("*.whl"), through_sdist.glob("*.whl")
    return Built(sdist, wheel, wheel_again, wheel_from_sdist)


@pytest.fixture(scope="session")
def wheel(built):
    return built.wheel


OTHER_VERSION = "99.0"


@pytest.fixture(scope="session")
def other_wheel(copy_source):
    """The same package under a later version, with one more file."""
    folder = copy_source()
    (folder / "torch_forwardfix" / "_version.py").write_text(f'__version__ = "{OTHER_VERSION}"\n')
    (folder / "torch_forwardfix" / "later.py").write_text("")
    call(sys.executable, "-m", "build", "--wheel", cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def dependencies(tmp_path_factory):
    """The dependencies but torch, as wheels."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    call(sys.executable, "-m", "pip", "wheel", "-q", "-w", folder, "packaging", "importlib-metadata", cwd=folder)
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def uv_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("uv-cache")


@pytest.fixture(scope="session")
def make_venv(tmp_path_factory, dependencies, uv_cache):
    def make():
        venv = Venv(tmp_path_factory.mktemp("venv"), uv_cache)
        call(sys.executable, "-m", "venv", "--without-pip", venv.folder, cwd=venv.folder)
        venv.install("pip", *dependencies)
        # From Python 3.13 on, the first .pth file, whosever it is, makes site import encodings.utf_8_sig (3 % of a
        # start). With a neighbour on both sides of a comparison, only what we add is counted.
        (venv.site / "neighbour.pth").write_text("# nothing\n")
        return venv

    return make


@pytest.fixture(params=["pip", "uv"], scope="session")
def installer(request):
    if request.param == "uv":
        pytest.importorskip("uv", reason="NOT TESTED WITH UV: `python -m uv` is not installed here")
    return request.param


@pytest.fixture(scope="session")
def venv(make_venv, installer, wheel):
    """An environment with the wheel, for tests that change nothing in it."""
    made = make_venv()
    made.install(installer, wheel)
    return made


@pytest.fixture
def own_venv(make_venv, wheel):
    """An environment with the wheel, for one test to spoil."""
    made = make_venv()
    made.install("pip", wheel)
    return made


@pytest.fixture(scope="session")
def torch_venv(make_venv, wheel):
    site = os.environ.get("FORWARDFIX_TORCH_SITE")
    if not site:
        pytest.skip("NOT TESTED WITH TORCH: set FORWARDFIX_TORCH_SITE to a site-packages folder that holds torch")
    made = make_venv()
    made.install("pip", wheel)
    (made.site / "torch_site.pth").write_text(f"{site}\n")
    return made


# The modules of a package that calls itself torch, and a distribution with a fix for two of them.
TORCH_LIKE = {
    "torch/__init__.py": """
import os
from .version import __version__
if "START_A_THREAD" in os.environ:
    from importlib import import_module
    from threading import Thread
    thread = Thread(target=import_module, args=["torch._dynamo"])
    thread.start()
    thread.join()
""",
    "torch/version.py": "__version__ = '1.13.0'\n",
    "torch/_dynamo/__init__.py": "import time\ntime.sleep(0.05)\ndef f():\n    return 'plain'\n",
    "torch/_inductor/__init__.py": "raise ValueError('a torch that is broken')\n",
    "plug.py": """
from torch_forwardfix import Fix
from torch_forwardfix.patching import wrap
def apply(module):
    wrap(module, "f", lambda original: lambda: original() + " and fixed")
FIX = Fix(id="plugged", title="f is plain", kind="crash", upstream=(), affects={"torch": ">=1.dev0"}, fixed_in=None,
          targets=("torch._dynamo:f", "torch._inductor:f"), changes_codegen=False,
          is_present=lambda module: module.__name__ == "torch._dynamo", apply=apply, reproduce=lambda: None)
""",
    "plug-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n",
    "plug-1.0.dist-info/entry_points.txt": "[torch_forwardfix.fixes]\nplugged = plug:FIX\n",
}


def torch_like_wheels(folder):
    """The same as two wheels, ``torch`` and ``plug``."""
    for name, version in ("torch", "1.13.0"), ("plug", "1.0"):
        info = f"{name}-{version}.dist-info"
        files = {file: text for file, text in TORCH_LIKE.items() if file.startswith(name)}
        files.setdefault(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
            for file, text in files.items():
                archive.writestr(file, text)


def add_torch_like(venv):
    for file, text in TORCH_LIKE.items():
        (venv.site / file).parent.mkdir(parents=True, exist_ok=True)
        (venv.site / file).write_text(text)


@pytest.fixture(scope="session")
def fixing_venv(make_venv, wheel):
    """An environment with the wheel where `torch._dynamo.f()` needs a fix, for tests that change nothing in it."""
    made = make_venv()
    made.install("pip", wheel)
    add_torch_like(made)
    return made
