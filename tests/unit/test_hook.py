from __future__ import annotations

import textwrap
import zipfile
from typing import Any

import pytest

HOOK = """
import importlib, importlib.util, pickle, inspect, traceback
from torch_forwardfix.hook import PostImportFinder
calls = []
def hook(*names, callback=lambda module: calls.append(module.__name__)):
    sys.meta_path.insert(0, PostImportFinder(names, callback))
"""


@pytest.fixture
def tree(sandbox) -> Any:
    sandbox.write(
        {
            "pkg/__init__.py": "",
            "pkg/mod.py": "value = 1\ndef f():\n    return 'source of f'\n",
            "pkg/data.txt": "some data",
            "pkg/user.py": "from pkg.mod import value\n",
        }
    )
    return sandbox


def ask(sandbox, code: str) -> Any:
    return sandbox.ask(HOOK + textwrap.dedent(code))


@pytest.mark.parametrize(
    "statement",
    [
        "from pkg.mod import value",
        "import pkg.mod as m; value = m.value",
        "import pkg.mod; value = pkg.mod.value",
        "from pkg import mod; value = mod.value",
        "from pkg.user import value",
        "value = importlib.import_module('pkg.mod').value",
        "from pkg.mod import *",
    ],
)
def test_callback_runs_before_any_importer_sees_the_module(tree, statement: str) -> None:
    code = f"""
    hook("pkg.mod", callback=lambda module: setattr(module, "value", "patched"))
    {statement}
    say(value)
    """
    assert ask(tree, code) == ["patched"]


def test_submodule_is_bound_on_its_parent_before_the_callback(tree) -> None:
    code = """
    def callback(module):
        import pkg.mod as live
        calls.append(live is module and sys.modules["pkg"].mod is module)
    hook("pkg.mod", callback=callback)
    import pkg.mod
    say(calls)
    """
    assert ask(tree, code) == [[True]]


def test_other_modules_are_left_alone(tree) -> None:
    code = """
    hook("pkg.mod")
    import pkg.user, pkg
    say(calls, sorted(vars(pkg.user.__loader__)))
    """
    assert ask(tree, code) == [["pkg.mod"], ["name", "path"]]


LOOK = """
import importlib.resources
module = importlib.import_module(NAME)
spec = module.__spec__
say(
    calls,
    type(module.__loader__).__module__.partition(".")[0] in ("importlib", "_frozen_importlib_external", "zipimport"),
    module.__loader__ is spec.loader,
    "exec_module" in vars(spec.loader),
    pickle.loads(pickle.dumps(spec)).name,
)
"""


@pytest.mark.parametrize("name", ["pkg", "pkg.mod"])
def test_module_looks_unhooked_after_the_import(tree, name: str) -> None:
    assert ask(tree, f"NAME = {name!r}\nhook(NAME)\n" + LOOK) == [[name], True, True, False, name]


def test_source_and_resources_can_be_read_after_the_import(tree) -> None:
    code = """
    from importlib import resources
    hook("pkg", "pkg.mod")
    import pkg.mod
    say(inspect.getsource(pkg.mod.f), pkg.mod.__loader__.get_source("pkg.mod")[:9],
        resources.files("pkg").joinpath("data.txt").read_text(), calls)
    """
    source = "def f():\n    return 'source of f'\n"
    assert ask(tree, code) == [source, "value = 1", "some data", ["pkg", "pkg.mod"]]


def test_source_can_be_read_in_the_callback(tree) -> None:
    code = """
    hook("pkg.mod", callback=lambda module: calls.append(inspect.getsource(module.f)))
    import pkg.mod
    say(calls)
    """
    assert "source of f" in ask(tree, code)[0][0]


def test_zipped_module_is_hooked_and_looks_unhooked(sandbox) -> None:
    with zipfile.ZipFile(sandbox.tree / "zipped.zip", "w") as archive:
        archive.writestr("zpkg/__init__.py", "")
        archive.writestr("zpkg/mod.py", "def f():\n    return 'source of f'\n")
        archive.writestr("zpkg/data.txt", "some data")
    code = f"""
    from importlib import resources
    sys.path.insert(0, {str(sandbox.tree / "zipped.zip")!r})
    hook("zpkg", "zpkg.mod")
    import zpkg.mod as m
    say(calls, type(m.__loader__).__name__, m.__loader__ is m.__spec__.loader, inspect.getsource(m.f),
        resources.files("zpkg").joinpath("data.txt").read_text())
    """
    source = "def f():\n    return 'source of f'\n"
    assert ask(sandbox, code) == [["zpkg", "zpkg.mod"], "zipimporter", True, source, "some data"]


def test_sourceless_module_is_hooked(tree) -> None:
    code = """
    import os, py_compile
    file = os.path.join(sys.path[1], "pkg", "mod.py")
    py_compile.compile(file, cfile=file + "c")
    os.remove(file)
    hook("pkg.mod")
    import pkg.mod
    say(calls, type(pkg.mod.__loader__).__name__, "exec_module" in vars(pkg.mod.__loader__), pkg.mod.f())
    """
    assert ask(tree, code) == [["pkg.mod"], "SourcelessFileLoader", False, "source of f"]


def test_extension_module_is_hooked(sandbox) -> None:
    code = """
    from importlib.machinery import ExtensionFileLoader
    name = next(
        (name for name in ("_heapq", "_bisect", "_queue", "_csv", "_asyncio", "_zoneinfo", "_elementtree", "_curses")
         if name not in sys.modules and isinstance(getattr(importlib.util.find_spec(name), "loader", None),
                                                   ExtensionFileLoader)), None)
    if name is None:
        say(True, False)
    else:
        hook(name)
        module = importlib.import_module(name)
        say(calls == [name], "exec_module" in vars(module.__loader__))
    """
    assert ask(sandbox, code) == [True, False]


@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("next(name for name in sys.builtin_module_names if name not in sys.modules)", "BuiltinImporter"),
        ("'__hello__'", "FrozenImporter"),
    ],
)
def test_module_without_a_file_is_hooked_and_looks_unhooked(sandbox, name: str, loader: str) -> None:
    code = f"""
    name = {name}
    hook(name)
    module = importlib.import_module(name)
    say(calls == [name], module.__loader__.__name__, module.__spec__.loader is module.__loader__)
    """
    assert ask(sandbox, code) == [True, loader, True]


def test_namespace_package_imports_as_ever(sandbox) -> None:
    sandbox.write({"space/mod.py": "value = 1\n"})
    code = """
    hook("space", "space.mod")
    import space.mod
    say("space.mod" in calls, "Namespace" in type(space.__path__).__name__, space.mod.value,
        "Proxy" in type(space.__loader__).__name__)
    """
    assert ask(sandbox, code) == [True, True, 1, False]


def test_reload_calls_back_again(tree) -> None:
    code = """
    hook("pkg.mod", callback=lambda module: (calls.append(module.value), setattr(module, "value", "patched")))
    import pkg.mod
    importlib.reload(pkg.mod)
    say(calls, pkg.mod.value)
    """
    assert ask(tree, code) == [[1, 1], "patched"]


def test_lazy_module_calls_back_when_it_executes(tree) -> None:
    code = """
    hook("pkg.mod", callback=lambda module: (calls.append(module.value), setattr(module, "value", "patched")))
    spec = importlib.util.find_spec("pkg.mod")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pkg.mod"] = module
    spec.loader.exec_module(module)
    before = list(calls)
    say(before, module.value, calls)
    """
    assert ask(tree, code) == [[], "patched", [1]]


@pytest.mark.parametrize("error", ["ValueError", "ImportError"])
def test_module_that_fails_once_is_hooked_when_it_succeeds(sandbox, error: str) -> None:
    once = f"import sys\nif not hasattr(sys, 'again'):\n    sys.again = 1\n    raise {error}('no')\n"
    sandbox.write({"once.py": once})
    code = f"""
    hook("once")
    try:
        import once
    except {error}:
        calls.append("raised")
    import once
    say(calls, "exec_module" in vars(once.__loader__))
    """
    assert ask(sandbox, code) == [["raised", "once"], False]


FRAMES = """
def statement(name):
    try:
        exec("import " + name)
    except Exception as error:
        return [[frame.filename.rpartition("/")[2], frame.name] for frame in traceback.extract_tb(error.__traceback__)]
"""


@pytest.mark.parametrize(
    ("home", "line"),
    [
        ("file", "raise ValueError"),
        ("file", "import nothing_of_that_name"),
        ("file", "1 +"),
        ("zip", "raise ValueError"),
        ("zip", "import nothing_of_that_name"),
    ],
)
def test_traceback_of_a_failing_import_is_that_of_an_unhooked_one(sandbox, home: str, line: str) -> None:
    if home == "file":
        sandbox.write({"bad.py": line + "\n"})
        path = sandbox.tree
    else:
        path = sandbox.tree / "zipped.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("bad.py", line + "\n")
    code = f"""
    sys.path.insert(0, {str(path)!r})
    plain = statement("bad")
    hook("bad")
    hooked = statement("bad")
    say(plain, hooked)
    """
    plain, hooked = sandbox.ask(HOOK + FRAMES + textwrap.dedent(code))
    assert hooked == plain


THEIRS = """
class Theirs:
    busy = False
    def find_spec(self, name, path=None, target=None):
        if name != "pkg.mod" or self.busy:
            return None
        self.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy = False
        original = spec.loader.exec_module
        def exec_module(module):
            original(module)
            module.theirs = True
        spec.loader.exec_module = exec_module
        return spec
"""


@pytest.mark.parametrize("position", [0, 1])
def test_finder_that_asks_again_and_assigns_exec_module_gets_along(tree, position: int) -> None:
    code = f"""
    hook("pkg.mod")
    sys.meta_path.insert({position}, Theirs())
    import pkg.mod
    say(calls, pkg.mod.theirs, pkg.mod.value, inspect.getsource(pkg.mod.f)[:8])
    """
    assert tree.ask(HOOK + THEIRS + textwrap.dedent(code)) == [["pkg.mod"], True, 1, "def f():"]


def test_loader_that_is_handed_on_takes_an_exec_module(tree) -> None:
    code = """
    sys.meta_path.insert(0, Theirs())
    hook("pkg.mod")
    spec = sys.meta_path[0].find_spec("pkg.mod", importlib.import_module("pkg").__path__)
    original = spec.loader.exec_module
    spec.loader.exec_module = lambda module: (original(module), setattr(module, "more", True))
    module = importlib.util.module_from_spec(spec)
    sys.modules["pkg.mod"] = module
    spec.loader.exec_module(module)
    say(calls, module.theirs, module.more)
    """
    assert tree.ask(HOOK + THEIRS + textwrap.dedent(code)) == [["pkg.mod"], True, True]


def test_finder_without_find_spec_is_passed_over(tree) -> None:
    code = """
    hook("pkg.mod")
    importlib.import_module("pkg")
    sys.meta_path.insert(1, object())
    say(importlib.util.find_spec("pkg.mod").name)
    """
    assert ask(tree, code) == ["pkg.mod"]


def test_two_hooks_on_one_module_both_call_back(tree) -> None:
    code = """
    hook("pkg.mod", callback=lambda module: calls.append("first"))
    hook("pkg.mod", callback=lambda module: calls.append("second"))
    import pkg.mod
    say(sorted(calls), type(pkg.mod.__loader__).__name__, "exec_module" in vars(pkg.mod.__loader__))
    """
    assert ask(tree, code) == [["first", "second"], "SourceFileLoader", False]


def test_threads_that_import_at_once_call_back_once(sandbox) -> None:
    sandbox.write({"slow.py": "import time\ntime.sleep(0.05)\nvalue = 1\n"})
    code = """
    from threading import Barrier, Thread
    seen, barrier = [], Barrier(16)
    def work():
        barrier.wait()
        import slow
        seen.append(slow.value)
    hook("slow", callback=lambda module: (calls.append(1), setattr(module, "value", "patched")))
    threads = [Thread(target=work) for _ in range(16)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    say(calls, seen == ["patched"] * 16)
    """
    assert ask(sandbox, code) == [[1], True]


def test_circular_imports_call_back_once_each(sandbox) -> None:
    sandbox.write(
        {
            "ring/__init__.py": "",
            "ring/a.py": "import ring.b\ndone = True\n",
            "ring/b.py": "import sys, ring.a\nearly = hasattr(sys.modules['ring.a'], 'done')\ndone = True\n",
        }
    )
    code = """
    hook("ring.a", "ring.b", callback=lambda module: calls.append([module.__name__, module.done]))
    import ring.a
    say(calls, ring.b.early)
    """
    assert ask(sandbox, code) == [[["ring.b", True], ["ring.a", True]], False]


def test_module_that_replaces_itself_is_seen_as_it_lives(sandbox) -> None:
    me = "import sys\nclass Me:\n    value = 1\nsys.modules[__name__] = Me()\n"
    sandbox.write({"pkg/__init__.py": "", "pkg/me.py": me})
    code = """
    hook("pkg.me", callback=lambda module: (calls.append(type(module).__name__), setattr(module, "value", "patched")))
    from pkg.me import value
    import pkg
    say(calls, value, type(pkg.me).__name__)
    """
    assert ask(sandbox, code) == [["Me"], "patched", "Me"]


def test_callback_that_raises_fails_the_import(tree) -> None:
    code = """
    def callback(module):
        raise ImportError("refused")
    hook("pkg.mod", callback=callback)
    try:
        import pkg.mod
    except ImportError as error:
        say(str(error), "pkg.mod" in sys.modules)
    """
    assert ask(tree, code) == ["refused", False]
