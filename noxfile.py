"""Sessions: ``lint``, ``release`` and ``tests`` are what CI runs; ``matrix``, ``evidence``, ``compare`` and ``demo``
work on more releases, ``trust`` and ``neighbours`` on more Pythons, ``installs`` on the ways of installing that take
long, ``browser`` opens a page of the docs, and ``benchmark`` measures what all this costs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nox
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).parent / "tests"))
import compatibility_page
import drift as drift_page
import environments
import release as distributions

nox.options.sessions = ["tests"]
nox.options.default_venv_backend = "uv|virtualenv"

# Without bytecode every process would compile torch's sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")
os.environ.setdefault("UV_LINK_MODE", "copy")

ALL_TORCH = ("2.9.0", "2.9.1", "2.10.0", "2.11.0", "2.12.0", "2.12.1", "2.13.0", "2.14.0", "2.14.1", "2.15.0")
ALL_VLLM = tuple(environments.VLLM_TORCH)
# The last release of every minor version.
COMPARED_TORCH = tuple({version.rpartition(".")[0]: version for version in ALL_TORCH}.values())
# Where CI compiles with and without fixes on the same caches.
CACHED_TORCH = ("2.10.0", "2.12.1", "2.13.0", "2.15.0")
# That has the bug of tests/demo.py.
DEMO_TORCH = "2.10.0"
# Where CI generates kernels without a GPU.
GENERATED_TORCH = ("2.9.1", "2.12.1", "2.15.0")
# Beside torch, for the fix whose range names triton: the release that torch 2.9 does not know yet.
TRITON = "triton==3.6.0"
ALL_PYTHON = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
EVERYTHING = (("torch", ALL_TORCH), ("vllm", ALL_VLLM))

COMPARISON = Path("tests", "compare", "evidence.json")
EVIDENCE = Path("torch_forwardfix", "evidence.json")
PYTEST = ("pytest", "-q", "-rs")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TEST_TOOLS = ("pytest", "pip", "build", "uv", "packaging", "importlib-metadata", "hypothesis")
PROOF = "tests/fixes/test_proofs.py::test_bug_is_there_without_and_gone_with_the_fix_exactly_in_its_range"
STAYS = "tests/fixes/test_proofs.py::test_bug_that_stays_is_there_exactly_in_its_range"
LIVE = "tests/fixes/test_proofs.py::test_live_status_applies_what_is_in_range_and_nothing_else"


def build_wheel(session: nox.Session) -> Path:
    folder = Path(session.create_tmp()).resolve() / "dist"
    session.run(environments.uv(), "build", "--quiet", "--clear", f"--out-dir={folder}", external=True)
    return next(folder.glob("*.whl"))


def make(session: nox.Session, kind: str, version: str, *more: str) -> str:
    session.log(f"environment with {kind} {version}")
    base = getattr(environments, kind)(version)
    return str(environments.with_wheel(base, build_wheel(session), *more))


def torch_site(version: str) -> Path:
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return environments.torch(version).joinpath("lib", python, "site-packages")


def boundaries(distribution: str, releases: tuple[str, ...]) -> dict[str, dict[str, bool]]:
    """The fixes whose range begins or ends at each of ``releases``, as the evidence says, and whether it is in it."""
    seen: dict[str, dict[str, bool]] = {}
    for row in json.loads(EVIDENCE.read_text("utf-8"))["rows"]:
        name, _, release = row["release"].partition(" ")
        if name == distribution and row["without"] != "not applicable":
            seen.setdefault(row["fix"], {})[release.partition(".post")[0]] = row["without"] == "present"
    found: dict[str, dict[str, bool]] = {release: {} for release in releases}
    for fix, affected in sorted(seen.items()):
        edges = [pair for pair in itertools.pairwise(releases) if affected[pair[0]] != affected[pair[1]]]
        last = [releases[-1]] if affected[releases[-1]] else []
        for release in {*itertools.chain(*edges), *last}:
            found[release][fix] = affected[release]
    return {release: fixes for release, fixes in found.items() if fixes}


def test_torch(session: nox.Session, version: str, *tests: str, beside: Sequence[str]) -> None:
    python = make(session, "torch", version, "pytest", "pytest-xdist", *beside)
    session.run(python, "-m", *PYTEST, "-n2", *(tests or ["tests/fixes"]), external=True)


def test_startup(session: nox.Session, version: str) -> None:
    # The tests of a file share its starts.
    python = make(session, "torch", version, "pytest", "pytest-xdist", "--requirement=tests/startup/requirements.txt")
    session.run(python, "-m", *PYTEST, "-n2", "--dist=loadfile", "tests/startup", external=True)


def test_vllm(session: nox.Session, version: str) -> None:
    session.run(make(session, "vllm", version, "pytest"), "-m", *PYTEST, "tests/vllm", external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Unit tests, install tests, and every fix: proved where its range begins and ends, tested where it ends."""
    edges = boundaries("torch", ALL_TORCH)
    assert edges.keys() >= {*CACHED_TORCH, *GENERATED_TORCH}
    # Where faults are put into every fix: the release that most ranges end on.
    busiest = max(edges, key=lambda version: sum(edges[version].values()))
    newest_affected = {id: version for version, fixes in edges.items() for id in fixes if fixes[id]}
    wheel = build_wheel(session)
    session.install(*TEST_TOOLS)
    session.install("--no-deps", "--reinstall", str(wheel))
    session.env["FORWARDFIX_TORCH_SITE"] = str(torch_site("2.10.0"))
    session.run(*PYTEST, "-m", "not slow", "tests/unit", "tests/install", *session.posargs)
    for version, fixes in edges.items():
        stays = {id for id in fixes if Path("torch_forwardfix", "unfixed", f"{id.replace('-', '_')}.py").exists()}
        proofs = [f"{STAYS if id in stays else PROOF}[{id}]" for id in fixes]
        newest = [id for id in fixes if newest_affected[id] == version and id not in stays]
        files = [f"tests/fixes/test_{id.replace('-', '_')}.py" for id in newest]
        files += ["tests/fixes/test_faults.py"] if version == busiest else []
        files += ["tests/fixes/test_cache_key.py", "tests/fixes/test_trace.py"] if version in CACHED_TORCH else []
        files += ["tests/fixes/test_generation.py"] if version in GENERATED_TORCH else []
        beside = [TRITON] if "triton-kernel-attrs" in fixes else []
        test_torch(session, version, *proofs, *files, LIVE, beside=beside)
    for version in (COMPARED_TORCH[1], COMPARED_TORCH[-1]):
        test_startup(session, version)
    for version in boundaries("vllm", ALL_VLLM):
        test_vllm(session, version)


@nox.session
def matrix(session: nox.Session) -> None:
    """The tests of all fixes on all releases of torch and vLLM, and cold and warm starts."""
    for version in ALL_TORCH:
        test_torch(session, version, beside=[TRITON])
    for version in COMPARED_TORCH:
        test_startup(session, version)
    for version in ALL_VLLM:
        test_vllm(session, version)
    for version in environments.VLLM_IMPORTED:
        python = make(session, "vllm", version, "pytest")
        session.run(python, "-m", *PYTEST, "tests/vllm/test_double_patch.py", external=True)


@nox.session
def evidence(session: nox.Session) -> None:
    """Run every reproduction on every release, write what they showed into the package and the docs; ``-- ID ...``.

    What was shown on a GPU stays until it is shown there anew.
    """
    known = json.loads(EVIDENCE.read_text("utf-8"))["rows"]
    others = [row for row in known if session.posargs and row["fix"] not in session.posargs]
    rows = [*others, *(row for row in known if row["by"].startswith("gpu ") and row not in others)]
    for kind, versions in EVERYTHING:
        for version in versions:
            python = make(session, kind, version, *([TRITON] if kind == "torch" else []))
            command = (python, "tests/gather_evidence.py", kind, *session.posargs)
            printed = session.run(*command, external=True, silent=True, stderr=None)
            rows += json.loads(str(printed).splitlines()[-1])
    rows = list({(row["fix"], row["release"], row["by"]): row for row in rows}.values())
    order = [f"{kind} {version}" for kind, versions in EVERYTHING for version in versions]
    rows.sort(key=lambda row: (order.index(row["release"].partition(".post")[0]), row["fix"], row["by"]))
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    EVIDENCE.write_text(f'{{"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    session.log(f"wrote {len(rows)} rows to {EVIDENCE}")
    session.install("packaging", "importlib-metadata")
    for pages in "tests/evidence_page.py", "tests/fix_pages.py":
        session.run("python", pages, env={"PYTHONPATH": "."})


@nox.session
def browser(session: nox.Session) -> None:
    """docs/evidence.html in a real browser: chromium, or the one that FORWARDFIX_BROWSER names."""
    found = os.environ.get("FORWARDFIX_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        session.error(f"none of {', '.join(BROWSERS)} is here: install one, or name one in FORWARDFIX_BROWSER")
    session.install("pytest", "packaging", "importlib-metadata")
    env = {"FORWARDFIX_BROWSER": found, "PYTHONPATH": str(Path.cwd())}
    session.run("python", "-m", *PYTEST, "tests/unit/test_evidence_page.py", env=env)


@nox.session
def drift(session: nox.Session) -> None:
    """What the release of torch after ``--`` means for the fixes: docs/drift.md."""
    if len(session.posargs) != 1:
        session.error("say which release: nox --session drift -- 2.16.0")
    (version,) = session.posargs
    older = [known for known in ALL_TORCH if Version(known) < Version(version)]
    made, files = [], []
    for release in (older[-1], version):
        python = make(session, "torch", release)

        def ask(*arguments: str, python: str = python) -> Any:
            variables = {"TORCH_FORWARDFIX": "0"}
            command = (python, "tests/drift.py", *arguments)
            printed = session.run(*command, external=True, silent=True, stderr=None, env=variables)
            return json.loads(str(printed).splitlines()[-1])

        made.append(ask("look"))
    made[1]["runs"] = ask("reproduce", *drift_page.concerned(*made))
    for number, found in enumerate(made):
        files.append(Path(session.create_tmp()).resolve() / f"{number}.json")
        files[-1].write_text(json.dumps(found), encoding="utf-8")
    session.run("python", "tests/drift.py", "page", *map(str, files))


@nox.session
def compare(session: nox.Session) -> None:
    """No new fault: operators and models with and without us, on every minor version or the releases after ``--``.

    What was run before is kept beside the environments; without the fixes it holds as long as the cases do.
    """
    folder = environments.ROOT / "compare"
    for version in session.posargs or COMPARED_TORCH:
        python = make(session, "torch", version, "--requirement=tests/compare/requirements.txt")
        # 1 says that there are differences: whether they are explained, the summary says.
        session.run("python", "tests/compare/run.py", f"--python={python}", f"--out={folder}", success_codes=[0, 1])
    session.run("python", "tests/compare/summarise.py", str(folder), str(COMPARISON))


@nox.session
def trust(session: nox.Session) -> None:
    """Run the tests marked ``row`` on every CPython that is here, and write docs/compatibility.md from the results."""
    write_rows(session, "tests/unit", "tests/install")


@nox.session
def neighbours(session: nox.Session) -> None:
    """Other packages beside us: import hooks on every CPython; processes with torch, faults and vLLM on this one."""
    heavy = {"torch 2.11.0": make(session, "torch", "2.11.0", "pytest")}
    for version in (*boundaries("vllm", ALL_VLLM), *environments.VLLM_IMPORTED):
        heavy[f"vllm {version}"] = make(session, "vllm", version, "pytest")
    runs = {}
    for name, python in heavy.items():
        tests = "tests/fixes/test_faults.py" if name.startswith("torch") else "tests/vllm/test_double_patch.py"
        rows = Path(session.create_tmp()).resolve() / f"rows-{name}.json"
        command = (python, "-m", *PYTEST, f"--rows={rows}", tests)
        session.run(*command, external=True, success_codes=[0, 1])
        runs[name] = json.loads(rows.read_text("utf-8"))
    write_rows(session, "tests/neighbours", torch="2.10.0", runs=runs)


def write_rows(
    session: nox.Session, *tests: str, torch: str | None = None, runs: dict[str, list[dict[str, str]]] | None = None
) -> None:
    """Run these tests on every CPython that is here, and put their rows, and those of ``runs``, on the page."""
    wheel = build_wheel(session)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    runs = dict(runs or {})
    found = {version: environments.interpreter(version) for version in ALL_PYTHON}
    pythons: dict[str, str | None] = dict.fromkeys(ALL_PYTHON)
    for version, interpreter in found.items():
        if interpreter is None:
            session.log(f"Python {version} is not on this machine: not tested")
            continue
        python = environments.without_torch(interpreter, wheel, *TEST_TOOLS)
        rows = Path(session.create_tmp()).resolve() / f"rows-{version}.json"
        # Not `python -m pytest`: the working directory would come before the wheel. 1 says that tests failed.
        command = (str(python.with_name("pytest")), *PYTEST[1:], "-m", "row", f"--rows={rows}", *tests)
        variables = {}
        if torch and version == here:
            variables["FORWARDFIX_TORCH_SITE"] = str(torch_site(torch))
        session.run(*command, external=True, success_codes=[0, 1], env=variables)
        runs[version] = json.loads(rows.read_text("utf-8"))
        ask = "import platform; print(platform.python_version())"
        pythons[version] = str(session.run(str(python), "-c", ask, external=True, silent=True)).strip()
    known = json.loads(compatibility_page.RESULTS.read_text("utf-8"))
    results = compatibility_page.update(known, compatibility_page.merge(runs, pythons))
    compatibility_page.RESULTS.write_text(compatibility_page.dump(results), encoding="utf-8")
    compatibility_page.PAGE.write_text(compatibility_page.page(results), encoding="utf-8")
    failed = [row["text"] for row in results["rows"] if "failed" in row["outcomes"].values()]
    if failed:
        session.error(f"does not hold everywhere: {'; '.join(failed)}")


@nox.session
def benchmark(session: nox.Session) -> None:
    """Measure what torch-forwardfix costs, beside other packages, and write docs/performance.md; ``-- PART ...``."""
    wheel = build_wheel(session)
    session.install("uv", "matplotlib")
    try:
        session.run("python", "benchmarks/run.py", f"--wheel={wheel}", *session.posargs)
    finally:
        # Of a part that failed, the page shows what was known.
        session.run("python", "benchmarks/page.py")


@nox.session
def installs(session: nox.Session) -> None:
    """The ways of installing that take long: PEX and PyInstaller."""
    session.install(*TEST_TOOLS)
    session.run(*PYTEST, "-m", "slow", "tests/install", *session.posargs)


def build_release(session: nox.Session, name: str, seconds: str, **env: str) -> tuple[Path, Path]:
    """Build the sdist from what is committed, and the wheel from the sdist, in a folder of this name."""
    folder = Path(session.create_tmp()).resolve() / name
    shutil.rmtree(folder, ignore_errors=True)
    distributions.export(folder / "source")
    command = (environments.uv(), "build", "--quiet", f"--out-dir={folder / 'dist'}")
    env["SOURCE_DATE_EPOCH"] = seconds
    session.run(*command, "--sdist", str(folder / "source"), external=True, env=env)
    (sdist,) = folder.glob("dist/*.tar.gz")
    distributions.repack(sdist, int(seconds))
    session.run(*command, "--wheel", str(sdist), external=True, env=env)
    (wheel,) = folder.glob("dist/*.whl")
    return sdist, wheel


@nox.session
def release(session: nox.Session) -> None:
    """Build what is committed into dist/, twice and to the same bytes; check it, install it, and try it with torch."""
    if changed := distributions.git("status", "--porcelain"):
        session.warn(f"not committed, so not in it:\n{changed}")
    # It is in the modes of what a build generates.
    os.umask(0o022)
    seconds = distributions.git("log", "-1", "--format=%ct")
    built = build_release(session, "first", seconds)
    again = build_release(session, "the-second", seconds, TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="1")
    for one, other in zip(built, again, strict=True):
        if one.read_bytes() != other.read_bytes():
            session.error(f"two builds of the same commit differ: {one} and {other}")
    sdist, wheel = built
    session.install("twine", "check-wheel-contents")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    session.run("check-wheel-contents", str(wheel))

    base = environments.torch(DEMO_TORCH)
    python = str(environments.over(base, "release", str(wheel), "packaging", "importlib-metadata"))
    program = str(Path("tests", "demo.py").resolve())
    ours = (python, "-m", "torch_forwardfix")
    # Away from the package that is here.
    with session.chdir(session.create_tmp()):
        session.run(python, program, external=True, env={"TORCH_FORWARDFIX": "0"}, success_codes=[1])
        session.run(python, program, external=True)
        session.run(*ours, "status", "--live", "--check", external=True, silent=True)
        session.run(*ours, "doctor", external=True, silent=True)
        said = str(session.run(*ours, "--version", external=True, silent=True)).strip()
    version = wheel.name.split("-")[1]
    if said != f"torch-forwardfix {version}" or sdist.name != f"torch_forwardfix-{version}.tar.gz":
        session.error(f"one version is wanted, not those of {wheel.name}, {sdist.name} and {said!r}")
    if f"## [{version}]" not in Path("CHANGELOG.md").read_text("utf-8"):
        session.warn(f"CHANGELOG.md has no section [{version}] yet")
    dist = Path("dist")
    dist.mkdir(exist_ok=True)
    for file in built:
        shutil.copyfile(file, dist / file.name)
        session.log(f"sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}  {dist / file.name}")


@nox.session
def demo(session: nox.Session) -> None:
    """A torch with a bug: the same program before and after, and what status says."""
    python = make(session, "torch", DEMO_TORCH)
    session.log("the program, with TORCH_FORWARDFIX=0: it fails, as it always did on torch 2.10.0")
    session.run(python, "tests/demo.py", external=True, env={"TORCH_FORWARDFIX": "0"}, success_codes=[1])
    session.log("the program as it is")
    session.run(python, "tests/demo.py", external=True)
    session.run(python, "-m", "torch_forwardfix", "status", external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, lint, types."""
    # CI runs it: a new release of theirs must not make an old commit fail.
    session.install("ruff==0.17.5", "mypy==2.4.1", "packaging", "importlib-metadata", "nox", "uv")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("mypy", "torch_forwardfix", "examples")
