"""Sessions: ``tests`` is what CI runs; ``matrix``, ``evidence`` and ``demo`` work on more releases of torch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent / "tests"))
import environments

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "uv|virtualenv"

# Without bytecode every process would compile torch's sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")
os.environ.setdefault("UV_LINK_MODE", "copy")

ALL_TORCH = ("2.9.1", "2.10.0", "2.11.0", "2.12.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
ALL_VLLM = tuple(environments.VLLM_TORCH)

# The last affected and the first fixed release of every fix.
CI_TORCH = ("2.10.0", "2.11.0", "2.12.0", "2.15.0")
CI_VLLM = ("0.19.0", "0.20.0")

EVIDENCE = Path("torch_forwardfix", "evidence.json")
PYTEST = ("pytest", "-q", "-rs")


def build_wheel(session: nox.Session) -> Path:
    folder = Path(session.create_tmp()).resolve() / "dist"
    session.run(environments.uv(), "build", "--quiet", "--clear", f"--out-dir={folder}", external=True)
    return next(folder.glob("*.whl"))


def make(session: nox.Session, kind: str, version: str, *more: str) -> str:
    session.log(f"environment with {kind} {version}")
    base = getattr(environments, kind)(version)
    return str(environments.with_wheel(base, build_wheel(session), *more))


def test_fixes(session: nox.Session, torch_versions: tuple[str, ...], vllm_versions: tuple[str, ...]) -> None:
    for kind, versions, folder in (("torch", torch_versions, "tests/fixes"), ("vllm", vllm_versions, "tests/vllm")):
        for version in versions:
            session.run(make(session, kind, version, "pytest"), "-m", *PYTEST, folder, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Unit tests, install tests, and every fix on its last affected and first fixed release."""
    wheel = build_wheel(session)
    session.install("pytest", "pip", "build", "uv", "packaging", "importlib-metadata")
    session.install("--no-deps", "--reinstall", str(wheel))
    site = environments.torch("2.10.0").joinpath("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    session.env["FORWARDFIX_TORCH_SITE"] = str(site / "site-packages")
    session.run(*PYTEST, "tests/unit", "tests/install", *session.posargs)
    test_fixes(session, CI_TORCH, CI_VLLM)


@nox.session
def matrix(session: nox.Session) -> None:
    """The tests of all fixes on all releases of torch and vLLM."""
    test_fixes(session, ALL_TORCH, ALL_VLLM)


@nox.session
def evidence(session: nox.Session) -> None:
    """Run every reproduction on every release, and write what they showed into the package."""
    rows = []
    for kind, versions in (("torch", ALL_TORCH), ("vllm", ALL_VLLM)):
        for version in versions:
            python = make(session, kind, version)
            printed = session.run(python, "tests/gather_evidence.py", kind, external=True, silent=True, stderr=None)
            rows += json.loads(str(printed).splitlines()[-1])
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    EVIDENCE.write_text(f'{{"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    session.log(f"wrote {len(rows)} rows to {EVIDENCE}")


@nox.session
def demo(session: nox.Session) -> None:
    """A torch with a bug: the same program before and after, and what status says."""
    python = make(session, "torch", "2.10.0")
    session.log("the program, with TORCH_FORWARDFIX=0: it fails, as it always did on torch 2.10.0")
    session.run(python, "tests/demo.py", external=True, env={"TORCH_FORWARDFIX": "0"}, success_codes=[1])
    session.log("the program as it is")
    session.run(python, "tests/demo.py", external=True)
    session.run(python, "-m", "torch_forwardfix", "status", external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, types."""
    session.install("ruff", "mypy", "packaging", "importlib-metadata", "nox", "uv")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy", "torch_forwardfix")
