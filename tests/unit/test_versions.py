from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import packaging.version
import pytest
from packaging.version import InvalidVersion

from torch_forwardfix import Fix, catalog, gates

SPECIFIERS = {
    "aot": ">=2.9.0.dev0,<2.12.0rc99",
    "disable": ">=2.12.0.dev0",
    "fxgraph": ">=2.9.0.dev0,<2.11.0rc99",
    "vllm": ">=0.11.0.dev0,<0.20.0rc99",
}

# Finals are in range or not; pre-releases of a bound are in the range on both sides of it, and the probe decides.
TABLE = """
version                               aot  disable  fxgraph  vllm
2.8.0                                 -    -        -        -
2.9.0                                 in   -        in       -
2.9.1                                 in   -        in       -
2.10.0                                in   -        in       -
2.11.0                                in   -        -        -
2.12.0                                -    in       -        -
2.12.1                                -    in       -        -
2.13.0                                -    in       -        -
2.14.1                                -    in       -        -
2.15.0                                -    in       -        -
2.9.0.dev20250801                     in   -        in       -
2.9.0a0+git1                          in   -        in       -
2.9.1+rocm7.2.0.lw.git7e1940d4        in   -        in       -
2.9.0+hpu_1.23.1-25.git8598e6d        in   -        in       -
2.10.0a0                              in   -        in       -
2.11.0a0                              in   -        in       -
2.11.0rc1                             in   -        in       -
2.12.0.dev20260404+cu128              in   in       -        -
2.12.0.dev20260308+cu130              in   in       -        -
2.12.0a0+git0d62256                   in   in       -        -
2.12.0a0+git1234567                   in   in       -        -
2.12.0a0+0291f960b6.nv26.04.48445190  in   in       -        -
2.12.0rc4                             in   in       -        -
2.12.0+rocm7.2                        -    in       -        -
2.12.0+cu130                          -    in       -        -
2.12.0.post1                          -    in       -        -
2.13.0a0+gitcf30153                   -    in       -        -
2.14.0a0+rocm7.15.0a20260721          -    in       -        -
0.10.2                                -    -        -        -
0.11.0rc1                             -    -        -        in
0.11.0                                -    -        -        in
0.19.0                                -    -        -        in
0.19.1rc1.dev123+gabcdef              -    -        -        in
0.20.0rc1                             -    -        -        in
0.20.0                                -    -        -        -
0.20.0+cu130                          -    -        -        -
0.20.1rc1                             -    -        -        -
"""


def cells() -> list[tuple[str, str, bool]]:
    header, *rows = (line.split() for line in TABLE.strip().splitlines())
    return [
        (version, SPECIFIERS[column], cell == "in")
        for version, *values in rows
        for column, cell in zip(header[1:], values, strict=True)
    ]


@pytest.mark.parametrize(("version", "specifier", "expected"), cells())
def test_version_is_in_range_as_the_table_says(version: str, specifier: str, expected: bool) -> None:
    assert gates.in_range(version, specifier) is expected


@pytest.mark.parametrize("fix", catalog.load().fixes.values(), ids=lambda fix: fix.id)
def test_builds_before_each_bound_are_asked_and_builds_of_the_fixed_release_are_not(fix: Fix) -> None:
    for specifier in fix.affects.values():
        for clause in specifier.split(","):
            if clause.startswith(">="):
                first = clause.removeprefix(">=").removesuffix(".dev0")
                for build in (
                    f"{first}.dev20260404+cu128",
                    f"{first}a0+git1",
                    f"{first}rc1",
                    first,
                    f"{first}+rocm7.2",
                ):
                    assert gates.in_range(build, specifier), build
            elif clause.startswith("<"):
                fixed = clause.removeprefix("<").removesuffix("rc99")
                for build in (f"{fixed}.dev20260404+cu128", f"{fixed}a0+git1", f"{fixed}rc1"):
                    assert gates.in_range(build, specifier), build
                for build in (fixed, f"{fixed}+cu130", f"{fixed}.post1"):
                    assert not gates.in_range(build, specifier), build


ASK = """
import json, sys, packaging
from torch_forwardfix.gates import in_range
wrong = [cell for cell in json.load(sys.stdin) if in_range(cell[0], cell[1]) is not cell[2]]
print(json.dumps([packaging.__version__, packaging.__file__, wrong]))
"""


@pytest.mark.parametrize("release", ["21.3", "22.0", "23.2", "24.2", "25.0", "26.0", "newest"])
def test_table_holds_under_every_packaging(release: str, tmp_path: Path) -> None:
    library = tmp_path / "library"
    requirement = "packaging" if release == "newest" else f"packaging=={release}"
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--target", str(library)]
    install = [sys.executable, "-m", "pip", "install", *options, requirement]
    subprocess.run(install, check=True, capture_output=True, text=True, cwd=tmp_path)
    path = os.pathsep.join(filter(None, [str(library), os.environ.get("PYTHONPATH")]))
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(cells()),
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert asked.returncode == 0, asked.stderr
    version, file, wrong = json.loads(asked.stdout)
    assert release in (version, "newest")
    assert Path(file).is_relative_to(library)
    assert wrong == []


def test_version_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(InvalidVersion, match="not a version"):
        gates.in_range("not a version", ">=2.12.0.dev0")


def fix(specifier: str) -> Fix:
    return Fix(
        id="some-fix",
        title="",
        kind="crash",
        upstream=(),
        affects={"torch": specifier},
        fixed_in=None,
        targets=("torch._dynamo:f",),
        changes_codegen=False,
        is_present=lambda module: True,
        apply=lambda module: None,
        reproduce=lambda: None,
    )


ALL_FORMS = "'>=X.dev0', '<Xrc99', '==X', '!=X'"


@pytest.mark.parametrize(
    ("specifier", "clause", "advice"),
    [
        ("<2.12", "<2.12", "write '<2.12rc99'"),
        ("<2.12.dev0", "<2.12.dev0", "write '<2.12rc99'"),
        (">=2.10", ">=2.10", "write '>=2.10.dev0'"),
        (">=2.10rc99", ">=2.10rc99", "write '>=2.10.dev0'"),
        (">=2.9.dev0,<2.12", "<2.12", "write '<2.12rc99'"),
        ("==2.12rc99", "==2.12rc99", "write '==2.12'"),
        ("!=2.12.dev0", "!=2.12.dev0", "write '!=2.12'"),
        ("<=2.12", "<=2.12", ALL_FORMS),
        ("~=2.9", "~=2.9", ALL_FORMS),
        (">2.9", ">2.9", ALL_FORMS),
        ("==2.9.*", "==2.9.*", ALL_FORMS),
        (">=2.9.dev0,", "", ALL_FORMS),
        ("", "", ALL_FORMS),
        ("latest", "latest", ALL_FORMS),
    ],
)
def test_bound_that_leaves_builds_out_is_refused_with_advice(specifier: str, clause: str, advice: str) -> None:
    with pytest.raises(ValueError, match=r"Fix\.affects") as caught:
        fix(specifier)
    message = str(caught.value)
    assert "Fix.affects['torch']" in message
    assert repr(clause) in message
    assert advice in message


@pytest.mark.parametrize("specifier", [">=2.9.dev0", "<2.12rc99", " >=2.9.0.dev0 , <2.12.0rc99 ", "==2.9.1", "!=2.9.1"])
def test_bound_that_admits_pre_releases_is_taken(specifier: str) -> None:
    assert fix(specifier).affects == {"torch": specifier}


# Which file or module of a package tells its version is a matter of the real layouts of torch and vLLM.
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"torch/__init__.py": "raise SystemExit", "torch/version.py": "__version__ = '2.9.1+cpu'\n"}, "2.9.1+cpu"),
        ({"torch/__init__.py": "", "torch/version.py": "__version__: str = '2.9.1'\n"}, "2.9.1"),
        ({"torch/__init__.py": "", "torch/_version.py": '__version__ = version = "2.9.1"\n'}, "2.9.1"),
        ({"torch-2.9.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1\n"}, "2.9.1"),
        # Triton comes as several distributions, and has no version file.
        (
            {
                "torch/__init__.py": "__version__ = '2.9.1'\nraise SystemExit",
                "torch_rocm-2.9.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: torch-rocm\nVersion: 2.9.1\n",
            },
            "2.9.1",
        ),
    ],
)
def test_installed_version_is_read_without_importing(sandbox, files: dict[str, str], expected: str) -> None:
    sandbox.write(files)
    code = "from torch_forwardfix.gates import installed_version\n"
    code += "say(installed_version('torch'), 'torch' in sys.modules)"
    assert sandbox.ask(code) == [expected, False]


def test_loaded_package_outdoes_its_version_file(sandbox) -> None:
    sandbox.write({"torch/__init__.py": "__version__ = '2.9.1'\n", "torch/version.py": "__version__ = '2.8.0'\n"})
    code = "import torch\nfrom torch_forwardfix.gates import installed_version\nsay(installed_version('torch'))"
    assert sandbox.ask(code) == ["2.9.1"]


@pytest.mark.skipif(find_spec("torch") is not None, reason="ABOUT AN ENVIRONMENT WITHOUT TORCH: nox -s tests makes one")
def test_package_that_is_absent_is_a_reason() -> None:
    assert gates.why_not_affected({"torch": ">=2.9.0.dev0"}) == "torch is not installed"


def test_versions_are_read_by_torchs_copy_of_packaging_where_it_is_whole(monkeypatch) -> None:
    def forget() -> None:
        for function in (gates._packaging, gates._version, gates._bounds):
            function.cache_clear()

    read: list[str] = []

    class Version(packaging.version.Version):
        def __init__(self, text: str) -> None:
            read.append(text)
            super().__init__(text)

    copy = ModuleType("torch._vendor.packaging.version")
    monkeypatch.setitem(sys.modules, copy.__name__, copy)
    forget()
    assert gates.in_range("2.10.0+cpu", ">=2.9.0.dev0,<2.11.0rc99")
    assert read == []
    copy.__dict__["Version"] = Version
    forget()
    assert gates.in_range("2.10.0+cpu", ">=2.9.0.dev0,<2.11.0rc99")
    assert sorted(read) == ["2.10.0", "2.10.0+cpu", "2.11.0rc99", "2.9.0.dev0"]
    forget()
