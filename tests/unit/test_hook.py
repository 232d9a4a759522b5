from __future__ import annotations

import functools
import subprocess
import textwrap
import zipfile
from typing import Any

import pytest

row = functools.partial(pytest.mark.row, "A module that is patched")
thread_row = functools.partial(pytest.mark.row, "Processes, threads and interpreters")

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


@row("is patched before any importer sees it, whatever the import statement")
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


@row("is bound on its parent when it is patched")
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


@row("modules beside it are not touched")
def test_other_modules_are_left_alone(tree) -> None:
    code = """
    hook("pkg.mod")
    import pkg.user, pkg
    say(calls, sorted(vars(pkg.user.__loader__)))
    """
    assert ask(tree, code) == [["pkg.mod"], ["name", "path"]]


# What tools ask of a module, its spec and its loader.
DESCRIBE = """
import copy, importlib.resources, pkgutil
def loads(spec):
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sorted(vars(module))
def of_spec(spec):
    loader, name = spec.loader, spec.name
    again, deep = pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)
    return {
        "spec": [spec.name, spec.origin, spec.cached, spec.has_location, spec.parent, spec.submodule_search_locations],
        "source": [loader.get_source(name), loader.is_package(name), loader.get_code(name).co_filename],
        "file": loader.get_filename(name),
        "reader": type(loader.get_resource_reader(name)).__name__ if spec.submodule_search_locations else None,
        "pickle": [type(again.loader).__module__, type(again.loader).__name__, again.origin, loads(again)],
        "copy": [type(deep.loader).__name__, deep.origin, loads(deep), loads(copy.copy(spec))],
    }
def of_module(module):
    spec = module.__spec__
    return {
        **of_spec(spec),
        "loader": [type(spec.loader).__name__, module.__loader__ is spec.loader, sorted(vars(spec.loader))],
        "equal": [copy.copy(spec) == spec, spec._initializing],
        "module": [sorted(vars(module)), module.__file__, module.__cached__ if "__cached__" in vars(module) else None],
        "inspect": [inspect.getfile(module), inspect.getmodule(module.f) is module, inspect.getsource(module.f)],
        "find_spec": importlib.util.find_spec(module.__name__) is spec,
        "pkgutil": [pkgutil.get_data("pkg", "data.txt").decode(), pkgutil.resolve_name(module.__name__) is module,
                    sorted(entry.name for entry in pkgutil.walk_packages(sys.modules["pkg"].__path__, "pkg."))],
        "resources": importlib.resources.files("pkg").joinpath("data.txt").read_text(),
    }
"""

PACKAGE = {
    "pkg/__init__.py": "def f():\n    return 'source of pkg.f'\n",
    "pkg/mod.py": "value = 1\ndef f():\n    return 'source of f'\n",
    "pkg/data.txt": "some data",
}


@pytest.fixture(params=["folder", "zip file"])
def home(request, sandbox) -> str:
    """Where the package is."""
    if request.param == "folder":
        sandbox.write(PACKAGE)
        return str(sandbox.tree)
    with zipfile.ZipFile(sandbox.tree / "zipped.zip", "w") as archive:
        for file, text in PACKAGE.items():
            archive.writestr(file, text)
    return str(sandbox.tree / "zipped.zip")


def describe(sandbox, home: str, code: str, *hooked: str) -> Any:
    preamble = f"{HOOK}{DESCRIBE}\nsys.path.insert(0, {home!r})\nhook(*{hooked!r})\n"
    return sandbox.ask(preamble + code)[0]


@row("after the import: loader, spec, `get_source`, `pickle`, `copy`, `inspect`, `pkgutil`, `resources` as ever")
@pytest.mark.parametrize("name", ["pkg", "pkg.mod"])
def test_module_looks_unhooked_after_the_import(sandbox, home: str, name: str) -> None:
    code = f"module = importlib.import_module({name!r})\nsay([of_module(module), calls])"
    plain, none = describe(sandbox, home, code)
    hooked, calls = describe(sandbox, home, code, "pkg", "pkg.mod")
    assert none == []
    # pickled and copied specs that are loaded by hand are those of the unhooked module
    assert calls == ["pkg", "pkg.mod"][: name.count(".") + 1]
    assert hooked == plain


@row("before it executes: `get_source`, `pickle` and `copy` of the spec as ever")
@pytest.mark.parametrize("name", ["pkg", "pkg.mod"])
def test_spec_can_be_read_pickled_and_copied_before_the_import(sandbox, home: str, name: str) -> None:
    code = f"say(of_spec(importlib.util.find_spec({name!r})))"
    assert describe(sandbox, home, code, name) == describe(sandbox, home, code)


@row("`python -m`: runs as ever")
def test_module_runs_as_a_program(sandbox, home: str) -> None:
    code = """
import runpy
say(runpy.run_module("pkg.mod", run_name="__main__", alter_sys=True)["value"])
"""
    assert describe(sandbox, home, code, "pkg", "pkg.mod") == 1


@row("its source can be read while it is patched")
def test_source_can_be_read_in_the_callback(tree) -> None:
    code = """
    hook("pkg.mod", callback=lambda module: calls.append(inspect.getsource(module.f)))
    import pkg.mod
    say(calls)
    """
    assert "source of f" in ask(tree, code)[0][0]


@row("in a zip file: patched, and looks as ever")
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


@row("without source, a `.pyc` alone: patched, and nothing of ours stays on its loader")
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


@row("an extension module: patched, and nothing of ours stays on its loader")
def test_extension_module_is_hooked(sandbox) -> None:
    code = """
    from importlib.machinery import ExtensionFileLoader
    name = next(
        (name for name in ("_heapq", "_bisect", "_queue", "_csv", "_asyncio", "_zoneinfo", "_elementtree", "_curses")
         if name not in sys.modules and isinstance(getattr(importlib.util.find_spec(name), "loader", None),
                                                   ExtensionFileLoader)), None)
    if name is not None:
        hook(name)
        module = importlib.import_module(name)
    say(name, calls, name and "exec_module" in vars(module.__loader__))
    """
    name, calls, hooked = ask(sandbox, code)
    if name is None:
        pytest.skip("this Python was built without extension modules in files of their own")
    assert (calls, hooked) == ([name], False)


@row("without a file (`{loader}`): patched, and its loader is as ever")
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


@row("in a namespace package: patched; the package looks as ever")
def test_namespace_package_imports_as_ever(sandbox) -> None:
    sandbox.write({"space/mod.py": "value = 1\n"})
    code = """
    hook("space", "space.mod")
    import space.mod
    say("space.mod" in calls, "Namespace" in type(space.__path__).__name__, space.mod.value,
        "Proxy" in type(space.__loader__).__name__)
    """
    assert ask(sandbox, code) == [True, True, 1, False]


@row("`importlib.reload`: patched again")
def test_reload_calls_back_again(tree) -> None:
    code = """
    hook("pkg.mod", callback=lambda module: (calls.append(module.value), setattr(module, "value", "patched")))
    import pkg.mod
    importlib.reload(pkg.mod)
    say(calls, pkg.mod.value)
    """
    assert ask(tree, code) == [[1, 1], "patched"]


@row("`importlib.util.LazyLoader`: patched when it executes")
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


@row("a first import that fails with {error}, and a good second: patched")
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


@row("the traceback of an import that fails has no frame of ours")
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


@row("another hook that asks all finders again and assigns `exec_module`: both work")
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


def test_loader_of_the_old_kind_imports_as_ever(tree) -> None:
    code = """
    import types, warnings
    warnings.simplefilter("ignore")
    class Legacy:
        def load_module(self, name):
            module = sys.modules[name] = types.ModuleType(name)
            module.value = "legacy"
            return module
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "pkg.mod":
                return importlib.machinery.ModuleSpec(name, Legacy())
    hook("pkg.mod")
    sys.meta_path.insert(1, Finder())
    import pkg.mod
    say(pkg.mod.value, calls, sys.meta_path[0].loaded_past())
    """
    assert ask(tree, code) == ["legacy", [], ["pkg.mod"]]


@row("two hooks of this kind: both work")
def test_two_hooks_on_one_module_both_call_back(tree) -> None:
    code = """
    hook("pkg.mod", callback=lambda module: calls.append("first"))
    hook("pkg.mod", callback=lambda module: calls.append("second"))
    import pkg.mod
    say(sorted(calls), type(pkg.mod.__loader__).__name__, "exec_module" in vars(pkg.mod.__loader__))
    """
    assert ask(tree, code) == [["first", "second"], "SourceFileLoader", False]


@thread_row("16 threads import at once: patched once, before any of them sees it")
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


@row("circular imports: each module patched once, when it is complete")
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


@row("replaces itself in `sys.modules`: the replacement is patched")
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


# The thread imports the child while the main thread, in the parent's __init__, waits for it.
PARENT = """
from importlib import import_module
from threading import Thread
thread = Thread(target=import_module, args=[__name__ + ".child"])
thread.start()
thread.join()
"""


# From python/cpython#83065 on Python locks parents before their children, and hangs there without us.
@thread_row(
    "a thread started in a package's `__init__` imports a submodule: patched, no hang where Python alone does not hang "
    "(python/cpython#83065)"
)
def test_thread_of_a_parent_that_is_loading_can_import_its_child(sandbox) -> None:
    sandbox.write({"par/__init__.py": PARENT, "par/child.py": "value = 1\n"})
    try:
        sandbox.run("-c", "import par", env={"TORCH_FORWARDFIX": "0"}, timeout=10)
    except subprocess.TimeoutExpired:
        pytest.skip("this Python hangs there by itself: it locks parents before their children (python/cpython#83065)")
    code = """
    hook("par", "par.child", callback=lambda module: (calls.append(module.__name__), setattr(module, "value", 2)))
    import par
    say(calls, par.child.value, par.thread.is_alive())
    """
    assert ask(sandbox, code) == [["par.child", "par"], 2, False]
