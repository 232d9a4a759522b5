"""What changes on the disk under a process that has started, and has not loaded torch's compiler yet."""

import functools
import json
import shutil
import subprocess

import pytest
from conftest import OTHER_VERSION, Venv, environment

row = functools.partial(pytest.mark.row, "Faults")

TORCH = {
    "torch/__init__.py": "from .version import __version__\n",
    "torch/version.py": "__version__ = '2.10.0'\n",
    "torch/_dynamo/__init__.py": "from .part import f\n",
    "torch/_dynamo/part.py": "def f():\n    return 'plain'\n",
    "torch/_inductor/__init__.py": "def f():\n    return 'plain'\n",
    "plug.py": """
from torch_forwardfix import Fix
from torch_forwardfix.patching import wrap
def probe(module):
    (returned,) = {"plain", "repaired", "moved"}.intersection(module.f.__code__.co_consts)
    return {"plain": True, "repaired": False, "moved": "f is not what it was"}[returned]
def apply(module):
    wrap(module, "f", lambda original: lambda: original() + " and fixed")
def fix(id, home):
    return Fix(id=id, title="f is plain", kind="crash", upstream=(), affects={"torch": ">=2.9.dev0,<2.11rc99"},
               fixed_in="2.11.0", targets=(f"{home}:f",), changes_codegen=False, is_present=probe, apply=apply,
               reproduce=lambda: None)
FIXES = fix("plugged", "torch._dynamo"), fix("later", "torch._inductor")
""",
    "plug-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n",
    "plug-1.0.dist-info/entry_points.txt": "[torch_forwardfix.fixes]\nplugged = plug:FIXES\n",
}

# At `wait()` the test changes the disk. `said` is what the program saw, an exception as its name and message.
START = """
import importlib, json, sys
said = []
def wait():
    print("ready", flush=True)
    sys.stdin.readline()
    importlib.invalidate_caches()
def see(ask):
    try:
        said.append(ask())
    except Exception as error:
        said.append([type(error).__name__, str(error)])
def call(name="torch._dynamo"):
    return importlib.import_module(name).f()
def state(id="plugged"):
    from torch_forwardfix import status
    return next([row.state, row.reason] for row in status() if row.id == id)
import atexit
atexit.register(lambda: print(json.dumps(said)))
import torch
"""
IMPORT = "wait(); see(call)\n"


@pytest.fixture(scope="session")
def template(make_venv, wheel):
    made = make_venv()
    made.install("pip", wheel)
    write(made, TORCH)
    return made


@pytest.fixture
def venv(template, tmp_path):
    """A copy of an environment with the wheel, a torch and two plug-in fixes for it, for one test to spoil."""
    shutil.copytree(template.folder, tmp_path / "venv", symlinks=True)
    return Venv(tmp_path / "venv", template.uv_cache)


def write(venv, files):
    for name, text in files.items():
        (venv.site / name).parent.mkdir(parents=True, exist_ok=True)
        (venv.site / name).write_text(text)


def ours(venv):
    return venv.site / "torch_forwardfix"


def run(venv, code, *changes, **variables):
    """Run ``code``, with one of ``changes`` at every ``wait()``. Return what it saw, and its lines on stderr."""
    process = subprocess.Popen(
        [venv.python, "-c", START + code],
        cwd=venv.folder,
        env=environment(TORCH_FORWARDFIX_ONLY="plugged,later", **variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for change in changes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        change(venv)
        process.stdin.write("go\n")
        process.stdin.flush()
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(out), errors.splitlines()


def uninstall(venv):
    venv.uninstall("pip")


def install(wheel):
    return lambda venv: venv.install("pip", wheel)


def replace(**files):
    """Write modules of our package; ``__`` stands for the slash."""
    texts = {f"torch_forwardfix/{name.replace('__', '/')}.py": text for name, text in files.items()}
    return lambda venv: write(venv, texts)


def test_nothing_changes(venv):
    assert run(venv, IMPORT + "see(state)\n", lambda venv: None) == (
        ["plain and fixed", ["applied", "patched torch._dynamo"]],
        [],
    )
    assert run(venv, IMPORT, lambda venv: None, TORCH_FORWARDFIX="0") == (["plain"], [])


@row("uninstalled under a running process: torch imports, one warning says why; it raises under `STRICT`")
@pytest.mark.parametrize("strict", ["", "1"])
def test_uninstalled(venv, strict):
    gone = "No module named 'torch_forwardfix.{}'".format
    said, lines = run(venv, IMPORT + "see(call); see(state)\n", uninstall, TORCH_FORWARDFIX_STRICT=strict)
    first = ["ModuleNotFoundError", gone("engine")]
    assert said == ([first, first] if strict else ["plain", "plain"]) + [["ModuleNotFoundError", gone("report")]]
    assert lines == ([] if strict else [f"no fix is applied: ModuleNotFoundError: {gone('engine')}"])


@row("uninstalled after the fixes are in force: they stay, and modules that load later are patched")
def test_uninstalled_later(venv):
    code = "see(call); wait(); see(call); see(lambda: call('torch._inductor'))\n"
    assert run(venv, code, uninstall, TORCH_FORWARDFIX_STRICT="1") == (["plain and fixed"] * 3, [])


@row("uninstalled and installed again: `status()` says `missed`, and `activate()` patches late")
def test_uninstalled_for_a_while(venv, wheel):
    code = IMPORT + "wait(); see(state); import torch_forwardfix; torch_forwardfix.activate(); see(call); see(state)\n"
    said, lines = run(venv, code, uninstall, install(wheel))
    reason = "torch._dynamo was loaded while the hook was not active; torch_forwardfix.activate() patches it"
    late = "patched torch._dynamo, which was loaded already"
    assert said == ["plain", ["missed", reason], "plain and fixed", ["applied", late]]
    assert len(lines) == 1


@row("upgraded under a running process: the fixes of the new version are applied")
@pytest.mark.parametrize("strict", ["", "1"])
def test_upgraded(venv, other_wheel, strict):
    code = IMPORT + "see(lambda: state()[0]); see(lambda: __import__('torch_forwardfix').__version__)\n"
    said, lines = run(venv, code, install(other_wheel), TORCH_FORWARDFIX_STRICT=strict)
    assert (said, lines) == (["plain and fixed", "applied", OTHER_VERSION], [])


@row("a version that the running process cannot work with: torch imports, one warning says why")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replace(engine=""), "ImportError: cannot import name 'take_over' from 'torch_forwardfix.engine'"),
        (replace(fix="class Fix\n"), "SyntaxError: "),
        (replace(gates="raise RuntimeError('half written')\n"), "RuntimeError: half written"),
        (lambda venv: shutil.rmtree(ours(venv) / "fixes"), "ImportError: "),
        (lambda venv: (ours(venv) / "hook.py").unlink(), "ModuleNotFoundError: No module named"),
    ],
)
def test_parts_do_not_fit(venv, change, reason):
    said, lines = run(venv, IMPORT + "see(call)\n", change)
    assert said == ["plain", "plain"]
    (line,) = lines
    assert line.startswith(f"no fix is applied: {reason}")
    (name, message), *_ = run(venv, IMPORT, lambda venv: None, TORCH_FORWARDFIX_STRICT="1")[0]
    assert f"{name}: {message}".startswith(reason)


@row("a file of `fixes/` is replaced by a broken one: that fix is `failed`, one warning says why, others are applied")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def is_present(module:\n", "SyntaxError: "),
        ("", "AttributeError: "),
        ("raise RuntimeError('half written')\n", "RuntimeError: half written"),
        ("import torch_forwardfix.no_such_module\n", "ModuleNotFoundError: "),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("FIX = None\n", "AttributeError: "),
    ],
)
def test_broken_fix(venv, text, reason):
    change = replace(fixes__aot_builtins=text)
    said, lines = run(venv, IMPORT + "see(lambda: state('aot-builtins')); see(state)\n", change)
    result, (state, why), plugged = said
    assert (result, state, plugged) == ("plain and fixed", "failed", ["applied", "patched torch._dynamo"])
    assert why.startswith(f"cannot be loaded: {reason}")
    assert lines == [f"aot-builtins: failed: {why}"]
    ((name, message),), _ = run(venv, IMPORT, change, TORCH_FORWARDFIX_STRICT="1")
    assert name == "FixNotApplied"
    assert message.startswith(f"aot-builtins: failed: {why}")


@row("all files of `fixes/` are gone: one warning says so, plug-ins are applied")
def test_no_built_in_fixes(venv):
    def empty(venv):
        shutil.rmtree(ours(venv) / "fixes")
        write(venv, {"torch_forwardfix/fixes/__init__.py": ""})

    said, lines = run(venv, IMPORT + "see(lambda: state('built-in fixes')[0])\n", empty)
    assert said == ["plain and fixed", "failed"]
    (line,) = lines
    assert line.startswith("built-in fixes: failed: not one is there")


@row("torch is upgraded from 2.10.0 to 2.12.0 after `import torch`: the probe decides")
@pytest.mark.parametrize(
    ("text", "state", "reason"),
    [
        ("plain", "applied", "patched torch._dynamo"),
        ("repaired", "already-fixed", "torch._dynamo does not have the bug"),
        ("moved", "drifted", "f is not what it was"),
    ],
)
def test_torch_upgraded(venv, text, state, reason):
    def upgrade(venv):
        part = f"def f():\n    return {text!r}\n"
        write(venv, {"torch/version.py": "__version__ = '2.12.0'\n", "torch/_dynamo/part.py": part})

    def downgrade():
        write(venv, {name: text for name, text in TORCH.items() if name.startswith("torch/")})

    said, lines = run(venv, IMPORT + "see(state)\n", upgrade)
    assert said == [text + (" and fixed" if state == "applied" else ""), [state, reason]]
    assert lines == ([f"plugged: drifted: {reason}"] if state == "drifted" else [])
    downgrade()
    (strict, after), _ = run(venv, IMPORT + "see(state)\n", upgrade, TORCH_FORWARDFIX_STRICT="1")
    if state == "drifted":
        assert strict[0] == "FixNotApplied"
        assert strict[1].startswith(f"plugged: drifted: {reason}")
    else:
        assert [strict, after] == said


@row("torch is half installed: errors are those without us; when it is whole, fixes are applied")
@pytest.mark.parametrize("strict", ["", "1"])
@pytest.mark.parametrize(
    ("name", "break_it"),
    [
        ("no submodule", lambda site: (site / "_dynamo" / "part.py").unlink()),
        ("broken submodule", lambda site: (site / "_dynamo" / "part.py").write_text("def f(:\n")),
        ("empty submodule", lambda site: (site / "_dynamo" / "part.py").write_text("")),
        ("broken package", lambda site: (site / "_dynamo" / "__init__.py").write_text("from .part import\n")),
        ("NUL bytes", lambda site: (site / "_dynamo" / "__init__.py").write_bytes(b"\0\0")),
        ("no package", lambda site: shutil.rmtree(site / "_dynamo")),
    ],
)
def test_torch_half_installed(venv, name, break_it, strict):
    def spoil(venv):
        break_it(venv.site / "torch")

    def mend(venv):
        write(venv, TORCH)

    (error, whole), _ = run(venv, IMPORT + IMPORT, spoil, mend, TORCH_FORWARDFIX="0")
    mend(venv)
    said, lines = run(venv, IMPORT + "see(state); " + IMPORT, spoil, mend, TORCH_FORWARDFIX_STRICT=strict)
    assert isinstance(error, list)
    # An empty submodule has been imported: Python does not look at its file again.
    assert (whole == "plain") is (name != "empty submodule")
    waiting = ["waiting", "for torch._dynamo to load; its probe decides"]
    assert said == [error, waiting, "plain and fixed" if whole == "plain" else whole]
    assert lines == []
