from __future__ import annotations

import json
from pathlib import Path

import pytest

import torch_forwardfix

HOME = str(Path(torch_forwardfix.__file__).parents[1])

# The .pth file may have armed the watcher already, or there may be no .pth file.
DISARM = """
import torch_forwardfix
sys.meta_path = [finder for finder in sys.meta_path if finder is not torch_forwardfix.watcher]
def armed(): return sum(finder is torch_forwardfix.watcher for finder in sys.meta_path)
"""


@pytest.mark.row("Start-up", "`init()` called twice: armed once")
def test_arming_twice_arms_once(sandbox) -> None:
    code = "torch_forwardfix.init()\ntorch_forwardfix.init()\n"
    code += "say(armed(), sys.meta_path[0] is torch_forwardfix.watcher)"
    assert sandbox.ask(DISARM + code) == [1, True]


@pytest.mark.row("Start-up", "`TORCH_FORWARDFIX` set to 0, off, false or no: not armed; any other value: armed")
@pytest.mark.parametrize(
    ("value", "armed"),
    [
        ("0", 0),
        ("off", 0),
        ("false", 0),
        ("False", 0),
        ("no", 0),
        ("NO", 0),
        (" 0 ", 0),
        ("", 1),
        ("1", 1),
        ("2", 1),
        ("nonsense", 1),
        ("00", 1),
    ],
)
def test_switch_decides_over_arming(sandbox, value: str, armed: int) -> None:
    code = "import torch_forwardfix\ntorch_forwardfix.init()\nsay(sys.meta_path.count(torch_forwardfix.watcher))"
    assert sandbox.ask(code, env={"TORCH_FORWARDFIX": value}) == [armed]


@pytest.mark.row("Start-up", "one module is loaded, nothing else is imported")
def test_import_and_arming_load_one_module(sandbox) -> None:
    code = f"""
import json, os, sys
sys.path.insert(0, {HOME!r})
before = set(sys.modules)
import torch_forwardfix
torch_forwardfix.init()
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    process = sandbox.run("-S", "-c", code)
    assert (process.returncode, process.stderr) == (0, "")
    assert json.loads(process.stdout) == ["torch_forwardfix"]


@pytest.mark.row("Start-up", "nothing is printed")
def test_arming_prints_nothing(sandbox) -> None:
    code = "import torch_forwardfix; torch_forwardfix.init()"
    process = sandbox.run("-c", code, env={"TORCH_FORWARDFIX": "nonsense"})
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


@pytest.mark.row("Start-up", "`import torch` alone loads nothing more of ours")
def test_torch_alone_loads_no_engine(torch_tree) -> None:
    code = "torch_forwardfix.init()\nimport torch\nsay(armed(), 'torch_forwardfix.engine' in sys.modules)"
    assert torch_tree.ask(DISARM + code) == [1, False]


@pytest.mark.parametrize("name", ["torch._dynamo", "torch._inductor"])
def test_first_compiler_module_loads_the_engine(torch_tree, name: str) -> None:
    code = f"torch_forwardfix.init()\nimport {name}\nsay(armed(), 'torch_forwardfix.engine' in sys.modules)"
    assert torch_tree.ask(DISARM + code) == [0, True]


def test_arming_after_the_engine_has_taken_over_does_nothing(torch_tree) -> None:
    code = "torch_forwardfix.init()\nimport torch._dynamo\ntorch_forwardfix.init()\nsay(armed())"
    assert torch_tree.ask(DISARM + code) == [0]


@pytest.mark.row("Security", "a folder `torch_forwardfix` put on `sys.path` later: what was installed is loaded")
def test_folder_of_our_name_cannot_hijack_the_engine(torch_tree) -> None:
    stray = torch_tree.cwd / "stray" / "torch_forwardfix"
    stray.mkdir(parents=True)
    (stray / "__init__.py").write_text("raise SystemExit('hijacked')")
    (stray / "engine.py").write_text("raise SystemExit('hijacked')")
    code = f"""
import os
torch_forwardfix.init()
os.chdir({str(stray.parent)!r})
sys.path[:0] = ["", os.getcwd()]
import torch._dynamo
say(os.path.samefile(os.path.dirname(sys.modules["torch_forwardfix.engine"].__file__),
                     os.path.dirname(torch_forwardfix.__file__)))
"""
    assert torch_tree.ask(DISARM + code) == [True]


OTHERS = """
class Other:
    def find_spec(self, name, path=None, target=None): return None
first, last = Other(), Other()
torch_forwardfix.init()
sys.meta_path.insert(0, first)
sys.meta_path.append(last)
def others():
    # importlib-metadata adds a finder of its own when it is imported.
    modules = [getattr(finder, "__module__", None) or type(finder).__module__ for finder in sys.meta_path]
    homes = [module.partition(".")[0] for module in modules]
    return [id(finder) for finder, home in zip(sys.meta_path, homes)
            if home not in ("torch_forwardfix", "importlib_metadata")]
before = others()
"""


def test_where_importlib_metadata_is_loaded_no_other_finder_is_added(torch_tree) -> None:
    # Its backport would add one. torch has loaded it.
    code = (
        "import importlib.metadata\nimport torch._dynamo\nsay('importlib_metadata' in sys.modules, others() == before)"
    )
    assert torch_tree.ask(DISARM + OTHERS + code) == [False, True]


@pytest.mark.row("Faults", "our own files are gone: torch imports, one warning says why")
def test_engine_that_cannot_be_imported_costs_one_warning(torch_tree) -> None:
    code = """
import logging
lines = []
class Keep(logging.Handler):
    def emit(self, record): lines.append([record.name, record.levelname, record.getMessage()])
logging.getLogger().addHandler(Keep())
sys.modules["torch_forwardfix.engine"] = None
import torch._dynamo, torch._inductor
say(lines, armed(), len(before) >= 5, others() == before)
"""
    lines, *rest = torch_tree.ask(DISARM + OTHERS + code)
    assert [line[:2] for line in lines] == [["torch_forwardfix", "WARNING"]]
    assert "no fix is applied" in lines[0][2]
    assert "torch_forwardfix.engine" in lines[0][2]
    assert rest == [0, True, True]


@pytest.mark.row("Start-up", "other finders on `sys.meta_path` stay in their places")
@pytest.mark.parametrize("version", ["2.10.0", "1.13.0"])
def test_other_finders_stay_in_their_places(torch_tree, version: str) -> None:
    torch_tree.write({"torch/version.py": f"__version__ = {version!r}\n"})
    code = "import torch._dynamo\nsay(armed(), len(before) >= 5, others() == before)"
    assert torch_tree.ask(DISARM + OTHERS + code) == [0, True, True]


def test_public_names_resolve() -> None:
    for name in torch_forwardfix.__all__:
        assert getattr(torch_forwardfix, name) is not None, name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'torch_forwardfix' has no attribute 'nonsense'"):
        torch_forwardfix.nonsense  # noqa: B018
    with pytest.raises(ImportError):
        from torch_forwardfix import nonsense  # noqa: F401
