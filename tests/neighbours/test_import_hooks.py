"""Other packages hook imports too: their hooks do what they do without us, and the fixes are applied.

Each runs as itself, from PyPI, over a package that calls itself torch. What is seen is compared with what is seen under
``TORCH_FORWARDFIX=0``.
"""

import functools
import json
import sys

import pytest
from conftest import add_torch_like

row = functools.partial(pytest.mark.row, "Other import hooks")

WITHOUT = {"TORCH_FORWARDFIX": "0"}
APPLIED = ["applied", "patched torch._dynamo"]
LATE = ["applied", "patched torch._dynamo, which was loaded already"]
FOREIGN = ["foreign", "f was replaced by hooks"]

FILES = {
    "torch/_dynamo/__init__.py": "def f() -> str:\n    return 'plain'\n\n\ndef g(x: int) -> int:\n    return x\n",
    "importer.py": "from torch._dynamo import f\n\nsaw = f()\n",
    "hooks.py": """
import os
heard = []
def hook(module):
    heard.append([module.__name__, module.f()])
    original = module.f
    if os.environ["HOOK"] == "replaces it":
        module.f = lambda: original() + " and theirs"
    elif os.environ["HOOK"] == "wraps it in a proxy":
        import wrapt
        module.f = wrapt.FunctionWrapper(original, lambda wrapped, me, args, kwargs: wrapped() + " and theirs")
""",
    "hooks-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: hooks\nVersion: 1\n",
    "hooks-1.dist-info/entry_points.txt": "".join(
        f"[{group}]\ntorch._dynamo = hooks:hook\n" for group in ("hooks", "importpatch")
    ),
}


@pytest.fixture(scope="session")
def beside(make_venv, wheel):
    """An environment with the wheel, that torch, and these packages; one for each combination."""

    @functools.cache
    def make(*packages):
        made = make_venv()
        made.install("pip", wheel)
        made.uv("install", *packages)
        add_torch_like(made)
        for name, text in FILES.items():
            (made.site / name).parent.mkdir(exist_ok=True)
            (made.site / name).write_text(text)
        return made

    return make


# Where we stand among the finders. Ahead of the standard ones is behind all others.
PLACE = """
import sys
from importlib.machinery import BuiltinImporter
from torch_forwardfix import watcher
def put_us(where):
    if watcher in sys.meta_path:
        sys.meta_path.remove(watcher)
        sys.meta_path.insert({"first": 0, "last": sys.meta_path.index(BuiltinImporter)}[where], watcher)
"""

REPORT = """
import json, torch_forwardfix
def state():
    return next(([row.state, row.reason] for row in torch_forwardfix.status() if row.id == "plugged"), None)
def complains(g):
    try:
        g("no number")
    except Exception as error:
        return type(error).__name__
def say(ours, **theirs):
    dynamo = sys.modules["torch._dynamo"]
    theirs["loaders"] = [str(type(loader)) for loader in (dynamo.__loader__, dynamo.__spec__.loader)]
    print(json.dumps([theirs, ours]))
"""


def ask(venv, code, **run):
    """Run ``code`` with us and without; return what it says with us, or fail where something else is different."""
    done = venv.run("-c", PLACE + REPORT + code, **run)
    without = venv.run("-c", PLACE + REPORT + code, **{**run, **WITHOUT})
    assert (done.stderr, without.stderr) == ("", "")
    (theirs, ours), (theirs_alone, _) = json.loads(done.stdout), json.loads(without.stdout)
    assert theirs == theirs_alone
    return ours


REGISTER = {
    "wrapt": "import wrapt; wrapt.register_post_import_hook(hooks.hook, 'torch._dynamo')",
    "autowrapt": "",
    "importpatch": "",
    "ddtrace": "from ddtrace.internal.module import ModuleWatchdog\n"
    "ModuleWatchdog.register_module_hook('torch._dynamo', hooks.hook)",
}
VARIABLES = {
    "autowrapt": {"AUTOWRAPT_BOOTSTRAP": "hooks"},
    "ddtrace": {"DD_TRACE_ENABLED": "false", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"},
}
HOOKED = """
put_us({where!r})
import importer
names = [getattr(finder, "__qualname__", type(finder).__qualname__) for finder in sys.meta_path]
place = names.index("PostImportFinder") if "PostImportFinder" in names else None
say([importer.saw, hooks.heard, state(), place == 0], calls=len(hooks.heard))
"""


def hooked(beside, neighbour, where, hook):
    venv = beside(neighbour)
    variables = {"HOOK": hook, **VARIABLES.get(neighbour, {})}
    if neighbour == "ddtrace":
        variables["under"] = [venv.folder / "bin" / "ddtrace-run"]
    else:
        variables["PYTHONWARNINGS"] = "error"
    code = f"import hooks\n{REGISTER[neighbour]}\n{HOOKED.format(where=where)}"
    saw, heard, state, we_are_first = ask(venv, code, **variables)
    assert we_are_first == (where == "first")
    ((name, heard_value),) = heard
    assert name == "torch._dynamo"
    return saw, heard_value, state


@row("{neighbour}, we are {where} on `sys.meta_path`: the fix is applied, its hook runs once")
@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("neighbour", REGISTER)
def test_hook_that_looks(beside, neighbour, where):
    # Who is asked first is the outermost: the other has done its work by then.
    heard = {"first": "plain", "last": "plain and fixed"}[where]
    assert hooked(beside, neighbour, where, "looks") == ("plain and fixed", heard, APPLIED)


@row("{neighbour} patches what we patch, before us: left alone, and named as `foreign`")
@pytest.mark.parametrize(
    ("neighbour", "hook"),
    [*((neighbour, "replaces it") for neighbour in REGISTER), ("wrapt", "wraps it in a proxy")],
)
def test_hook_that_patches_before_us(beside, neighbour, hook):
    assert hooked(beside, neighbour, "first", hook) == ("plain and theirs", "plain", FOREIGN)


@row("{neighbour} patches what we patch, after us: both patches work")
@pytest.mark.parametrize(
    ("neighbour", "hook"),
    [*((neighbour, "replaces it") for neighbour in REGISTER), ("wrapt", "wraps it in a proxy")],
)
def test_hook_that_patches_after_us(beside, neighbour, hook):
    assert hooked(beside, neighbour, "last", hook) == ("plain and fixed and theirs", "plain and fixed", APPLIED)


CHECKED = """
import importer, torch._dynamo
early = importer.saw
reported = state()
say([early, reported, torch._dynamo.f()], complains=complains(torch._dynamo.g))
"""


@row('beartype.claw, `beartype_package("torch")`: the fix is applied, arguments are checked')
def test_beartype_package(beside):
    code = f"from beartype.claw import beartype_package; beartype_package('torch'); {CHECKED.lstrip()}"
    assert ask(beside("beartype"), code, PYTHONWARNINGS="error") == ["plain and fixed", APPLIED, "plain and fixed"]


# What we import and these hooks break, us or no us.
FRAGILE = ("packaging", "importlib_metadata", "lazy_importer", "zipp")


@row("beartype.claw, `beartype_all()` without our dependencies: the fix is applied, arguments are checked")
def test_beartype_all(beside):
    # On Python 3.10 it refuses what every function returns that is a context manager and typed as one, so ours too.
    skipped = (*FRAGILE, "torch_forwardfix") if sys.version_info < (3, 11) else FRAGILE
    code = f"""
from beartype import BeartypeConf
from beartype.claw import beartype_all
beartype_all(conf=BeartypeConf(claw_skip_package_names={skipped}))
"""
    # On Python 3.13 beartype warns of modules of the standard library (ipaddress), which metadata is read with.
    fixed = ask(beside("beartype"), code + CHECKED, PYTHONWARNINGS="ignore")
    assert fixed == ["plain and fixed", APPLIED, "plain and fixed"]


@row("beartype.claw, `beartype_all()` where it breaks our dependencies: torch loads, warnings say what is not applied")
def test_beartype_all_that_breaks_what_we_import(beside):
    venv = beside("beartype")
    everything = "from beartype.claw import beartype_all; beartype_all()\n"
    alone = (
        "from packaging.specifiers import SpecifierSet; SpecifierSet('>=1').contains('2'); import importlib_metadata"
    )
    if not venv.run("-c", everything + alone, check=False, **WITHOUT).returncode:
        pytest.skip("beartype_all() does not break packaging and importlib-metadata here")
    done = venv.run("-c", everything + "import torch._dynamo; print(torch._dynamo.f())")
    assert done.stdout == "plain\n"
    assert "no fix is applied: " in done.stderr or "failed: " in done.stderr
    assert "Traceback" not in done.stderr


TYPEGUARD = "import typeguard; typeguard.install_import_hook({})\n"


@row("typeguard's `install_import_hook` {what}, we are first: the fix is applied, arguments are checked")
@pytest.mark.parametrize(
    ("what", "arguments"), [("on torch", "'torch'"), ("on all but our dependencies", f"ignore_packages={FRAGILE}")]
)
def test_typeguard_behind_us(beside, what, arguments):
    code = f"{TYPEGUARD.format(arguments)}put_us('first')\n{CHECKED}"
    assert ask(beside("typeguard"), code) == ["plain and fixed", APPLIED, "plain and fixed"]


@row("typeguard's `install_import_hook` on torch, ahead of us: it asks nobody, `status()` applies the fix")
def test_typeguard_ahead_of_us(beside):
    code = TYPEGUARD.format("'torch'") + CHECKED
    assert ask(beside("typeguard"), code) == ["plain", LATE, "plain and fixed"]


@row("typeguard's hook ahead of us, and gone: the fix is applied when the next module of torch's compiler loads")
def test_typeguard_that_is_gone(beside):
    code = """
import typeguard
with typeguard.install_import_hook("torch"):
    import torch._dynamo
early = torch._dynamo.f()
try:
    import torch._inductor
except ValueError:
    pass
say([early, torch._dynamo.f(), state()], complains=complains(torch._dynamo.g))
"""
    assert ask(beside("typeguard"), code) == ["plain", "plain and fixed", LATE]


@row("a hook ahead of us that asks nobody: `status --live --check` and `doctor --live` say so, and exit with 1")
def test_hook_that_asks_nobody_is_named(beside, tmp_path):
    venv = beside("typeguard")
    (tmp_path / "sitecustomize.py").write_text(TYPEGUARD.format("'torch'"))
    for command in (("status", "--live", "--check"), ("doctor", "--live")):
        done = venv.run("-m", "torch_forwardfix", *command, check=False, PYTHONPATH=str(tmp_path))
        assert done.returncode == 1, done.stdout
        assert "torch._dynamo was loaded past the hook" in " ".join(done.stdout.split())


# pytest reads its conftest before it imports the tests.
PYTEST_FILES = {
    "conftest.py": f"{PLACE}\nimport os\nput_us(os.environ['WHERE'])\n",
    "helper.py": "import pytest\n@pytest.fixture\ndef check():\n    def check(x): assert x == 2\n    return check\n",
    "test_some.py": """
import os, pytest, importer
def test_fix():
    assert importer.saw == os.environ["EXPECTED"]
def test_assertions_are_rewritten(request):
    with pytest.raises(AssertionError, match="assert 1 == 2"):
        assert 1 == len([1, 2])
    if os.environ.get("HELPER"):
        with pytest.raises(AssertionError, match="assert 1 == 2"):
            request.getfixturevalue("check")(1)
""",
}


@row("`pytest {options}`, we are {where} on `sys.meta_path`: the fix is applied, assertions are rewritten")
@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize(
    "options", ["--import-mode=prepend", "--import-mode=append", "--import-mode=importlib", "-p helper", "-n 2"]
)
def test_pytest(beside, tmp_path, options, where):
    for name, text in PYTEST_FILES.items():
        (tmp_path / name).write_text(text)
    venv = beside("pytest", "pytest-xdist")
    variables = {"WHERE": where, "PYTHONPATH": str(tmp_path), "HELPER": "1" if "helper" in options else ""}
    for switch, expected in (("1", "plain and fixed"), ("0", "plain")):
        command = ("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options.split())
        done = venv.run(*command, cwd=tmp_path, check=False, EXPECTED=expected, TORCH_FORWARDFIX=switch, **variables)
        assert "2 passed" in done.stdout, done.stdout
        assert "warning" not in done.stdout
        assert (done.returncode, done.stderr) == (0, "")


@row("pytest told to rewrite torch's modules: it asks nobody, `status()` applies the fix")
def test_pytest_that_rewrites_torch(beside, tmp_path):
    (tmp_path / "conftest.py").write_text("import pytest\npytest.register_assert_rewrite('torch')\n")
    (tmp_path / "test_some.py").write_text(
        "import torch._dynamo, torch_forwardfix\n"
        "def test_some():\n"
        "    assert torch._dynamo.f() == 'plain'\n"
        "    state, = [row.reason for row in torch_forwardfix.status() if row.id == 'plugged']\n"
        f"    assert state == {LATE[1]!r}\n"
        "    assert torch._dynamo.f() == 'plain and fixed'\n"
    )
    venv = beside("pytest", "pytest-xdist")
    done = venv.run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


PROGRAM = "import subprocess, sys, importer\nprint(importer.saw)\n"


@row("coverage, {how}: the fix is applied, the same lines are measured")
@pytest.mark.parametrize("how", ["`coverage run`", "in a process that its `.pth` file starts it in"])
def test_coverage(beside, tmp_path, how):
    venv = beside("coverage")
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / ".coveragerc").write_text("[run]\nsource_pkgs = torch\nsource = .\n")
    run = ("-m", "coverage", "run", "program.py")
    started = {"COVERAGE_PROCESS_START": ".coveragerc"} if "pth" in how else {}
    measured = []
    for switch, expected in (("1", "plain and fixed\n"), ("0", "plain\n")):
        command = ("program.py",) if started else run
        done = venv.run("-W", "error", *command, cwd=tmp_path, TORCH_FORWARDFIX=switch, **started)
        assert (done.stdout, done.stderr) == (expected, "")
        venv.run("-m", "coverage", "json", "-q", "-o", "lines.json", cwd=tmp_path)
        files = json.loads((tmp_path / "lines.json").read_text())["files"]
        measured.append({name: file["executed_lines"] for name, file in files.items()})
        (tmp_path / ".coverage").unlink()
    assert measured[0] == measured[1]
    assert any("_dynamo" in name and 2 in lines for name, lines in measured[0].items())
