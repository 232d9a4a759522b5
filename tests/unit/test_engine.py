from __future__ import annotations

from typing import Any

import pytest

PLUGIN = """
from torch_forwardfix import Fix
from torch_forwardfix.patching import replace, wrap

def louder(original):
    def f():
        return original() + "!"
    return f

def apply_to_f(module):
    wrap(module, "f", louder)

def break_half_way(module):
    apply_to_f(module)
    wrap(module.K, "m", louder)
    raise RuntimeError("boom")

def drift_half_way(module):
    apply_to_f(module)
    wrap(module, "gone", louder)

def raise_in_two(module):
    apply_to_f(module)
    if module.__name__.endswith("two"):
        raise RuntimeError("boom")

def raising(module):
    raise RuntimeError("no probe")

def fix(id="plugged", targets=("torch._dynamo.one:f",), affects=">=1.0.dev0", probe=lambda module: True,
        apply=apply_to_f, changes_codegen=False):
    return Fix(id=id, title="something breaks", kind="crash", upstream=(), affects={"torch": affects}, fixed_in=None,
               targets=targets, changes_codegen=changes_codegen, is_present=probe, apply=apply, reproduce=lambda: None)

BOTH = ("torch._dynamo.one:f", "torch._dynamo.two:f")
"""

MODULE = "def f():\n    return __name__[14:]\nclass K:\n    def m():\n        return 'm'\n"

PREAMBLE = """
import importlib, logging
lines = []
class Keep(logging.Handler):
    def emit(self, record): lines.append([record.levelname, record.getMessage()])
logger = logging.getLogger("torch_forwardfix")
logger.addHandler(Keep())
logger.setLevel(logging.INFO)
logger.propagate = False
import torch_forwardfix
def disarm():
    sys.meta_path = [finder for finder in sys.meta_path if finder is not torch_forwardfix.watcher]
def state(id="plugged"):
    return next([row.state, row.reason] for row in torch_forwardfix.status() if row.id == id)
def ours():
    return [finder for finder in sys.meta_path if "torch_forwardfix" in
            (getattr(finder, "__module__", ""), type(finder).__module__.partition(".")[0])]
torch_forwardfix.init()
"""


class Engine:
    def __init__(self, sandbox) -> None:
        self.sandbox = sandbox
        self.points: dict[str, str] = {}
        sandbox.write(
            {
                "torch/version.py": "__version__ = '1.13.0'\n",
                "torch/_dynamo/one.py": MODULE,
                "torch/_dynamo/two.py": MODULE,
            }
        )

    def plug(self, fixes: str, name: str = "plug") -> None:
        """Register a distribution with the fixes of this expression."""
        self.sandbox.write({f"{name}.py": f"{PLUGIN}\nFIXES = ({fixes},)\n"})
        self.entry_point(f"{name}:FIXES", name)

    def entry_point(self, value: str, name: str, point: str = "") -> None:
        folder = f"{name}-1.0.dist-info"
        self.sandbox.write(
            {
                f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
                f"{folder}/entry_points.txt": f"[torch_forwardfix.fixes]\n{point or name} = {value}\n",
            }
        )

    def ask(self, code: str, **env: str) -> Any:
        variables = {"TORCH_FORWARDFIX" + name.rstrip("_"): value for name, value in env.items()}
        return self.sandbox.ask(PREAMBLE + code, env=variables)


@pytest.fixture
def engine(torch_tree) -> Engine:
    return Engine(torch_tree)


IMPORT_ONE = "import torch._dynamo.one as one\n"


def test_needed_fix_is_applied(engine) -> None:
    engine.plug("fix()")
    code = IMPORT_ONE + "say(one.f(), one.f.__name__, one.f.__wrapped__(), state(), lines)"
    assert engine.ask(code) == [
        "one!",
        "f",
        "one",
        ["applied", "patched torch._dynamo.one"],
        [["INFO", "plugged: applied to torch._dynamo.one"]],
    ]


def test_fix_waits_for_its_module(engine) -> None:
    engine.plug("fix()")
    expected = ["waiting", "for torch._dynamo.one to load; its probe decides"]
    assert engine.ask("before = state()\nimport torch._dynamo\nsay(before, state(), lines)") == [expected, expected, []]


def test_fix_of_two_modules_waits_for_the_one_that_is_missing(engine) -> None:
    engine.plug("fix(targets=BOTH, probe=lambda module: module.__name__.endswith('two'))")
    code = IMPORT_ONE + "before = state()\nimport torch._dynamo.two as two\nsay(before, state(), one.f(), two.f())"
    waiting, applied, *results = engine.ask(code)
    assert waiting == ["waiting", "for torch._dynamo.two to load; its probe decides"]
    assert applied == ["applied", "patched torch._dynamo.two"]
    assert results == ["one", "two!"]


def test_release_out_of_range_is_not_affected(engine) -> None:
    engine.plug("fix(affects='<1.13rc99')")
    code = IMPORT_ONE + "say(one.f(), state(), lines)"
    assert engine.ask(code) == ["one", ["not-affected", "torch 1.13.0 is not in <1.13rc99"], []]


def test_repaired_code_is_already_fixed(engine) -> None:
    engine.plug("fix(probe=lambda module: False)")
    code = IMPORT_ONE + "say(one.f(), state(), lines)"
    assert engine.ask(code) == ["one", ["already-fixed", "torch._dynamo.one does not have the bug"], []]


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"_DISABLE": "plugged"}, "TORCH_FORWARDFIX_DISABLE names it"),
        ({"_ONLY": "aot-builtins"}, "TORCH_FORWARDFIX_ONLY does not name it"),
        ({"_": "off"}, "TORCH_FORWARDFIX=off"),
    ],
)
def test_user_disables_a_fix(engine, env: dict[str, str], reason: str) -> None:
    engine.plug("fix()")
    assert engine.ask(IMPORT_ONE + "say(one.f(), state(), lines)", **env) == ["one", ["disabled", reason], []]


@pytest.mark.parametrize(
    ("fix", "reason"),
    [
        ("fix(probe=lambda module: 'f is not what it was')", "f is not what it was"),
        ("fix(targets=('torch._dynamo.one:gone',), apply=drift_half_way)", "torch._dynamo.one.gone is not a function"),
    ],
)
def test_code_that_is_not_as_expected_is_drifted_and_untouched(engine, fix: str, reason: str) -> None:
    engine.plug(fix)
    code = IMPORT_ONE + "say(one.f(), hasattr(one.f, '__wrapped__'), state(), lines)"
    expected = ["one", False, ["drifted", reason], [["WARNING", f"plugged: drifted: {reason}"]]]
    assert engine.ask(code) == expected


def test_target_that_another_package_patched_is_left_to_it(engine) -> None:
    engine.plug("fix()")
    engine.sandbox.write({"meddler.py": MODULE, "torch/_dynamo/one.py": "from meddler import f\n"})
    code = IMPORT_ONE + "say(one.f.__module__, hasattr(one.f, '__wrapped__'), state())"
    assert engine.ask(code) == ["meddler", False, ["foreign", "f was replaced by meddler"]]


def test_second_fix_of_a_function_is_foreign_and_names_the_first(engine) -> None:
    engine.plug("fix(), fix(id='second'), fix(id='elsewhere', targets=('torch._dynamo.one:K.m',), apply=lambda m: 0)")
    code = IMPORT_ONE + "say(one.f(), state('plugged'), state('second'), state('elsewhere')[0])"
    applied = ["applied", "patched torch._dynamo.one"]
    assert engine.ask(code) == ["one!", applied, ["foreign", "f was replaced by the fix plugged"], "applied"]


def test_wrapper_that_copies_the_name_of_the_original_is_still_foreign(engine) -> None:
    engine.plug("fix()")
    meddler = "import functools\ndef wrap(f):\n    @functools.wraps(f)\n    def g(): return f()\n    return g\n"
    one = "import meddler\n@meddler.wrap\ndef f():\n    return 'one'\n"
    engine.sandbox.write({"meddler.py": meddler, "torch/_dynamo/one.py": one})
    assert engine.ask(IMPORT_ONE + "say(one.f(), state())") == ["one", ["foreign", "f was replaced by meddler"]]


def test_proxy_that_looks_like_the_original_is_still_foreign(engine) -> None:
    engine.plug("fix()")
    proxy = "class Proxy:\n    def __init__(self, f): self.__globals__ = f.__globals__\n"
    engine.sandbox.write(
        {"meddler.py": proxy, "torch/_dynamo/one.py": MODULE + "import meddler\nf = meddler.Proxy(f)\n"}
    )
    assert engine.ask(IMPORT_ONE + "say(type(one.f).__name__, state())") == [
        "Proxy",
        ["foreign", "f was replaced by meddler"],
    ]


def test_decorator_of_the_standard_library_is_not_foreign(engine) -> None:
    engine.plug("fix(apply=lambda module: None)")
    one = "import contextlib\n@contextlib.contextmanager\ndef f():\n    yield\n"
    engine.sandbox.write({"torch/_dynamo/one.py": one})
    assert engine.ask(IMPORT_ONE + "say(state()[0])") == ["applied"]


@pytest.mark.row(
    "A module that is patched", "half initialised when we are activated: not touched, and reported as missed"
)
def test_module_that_had_begun_to_load_is_missed(engine) -> None:
    engine.plug("fix()")
    engine.sandbox.write({"torch/_dynamo/one.py": "import torch_forwardfix\ntorch_forwardfix.activate()\n" + MODULE})
    reason = "torch._dynamo.one had begun to load before the hook was there"
    expected = ["one", ["missed", reason], [["WARNING", f"plugged: missed: {reason}"]]]
    assert engine.ask("disarm()\n" + IMPORT_ONE + "say(one.f(), state(), lines)") == expected


# Ahead of all finders, it asks PathFinder alone, as typeguard's hook does.
PAST = """
from importlib.machinery import PathFinder
class Past:
    def __init__(self, *names): self.names = names
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, path, target) if name in self.names else None
"""
LATE = ["applied", "patched torch._dynamo.one, which was loaded already"]


@pytest.mark.row("A module that is patched", "loaded past us by another finder: patched when the next target loads")
def test_module_that_came_past_us_is_patched_when_the_next_one_loads(engine) -> None:
    engine.plug("fix(), fix(id='other', targets=('torch._dynamo.two:f',))")
    code = """
sys.meta_path.insert(0, Past("torch._dynamo.one"))
import torch._dynamo.one as one
before = one.f()
import torch._dynamo.two
say(before, one.f(), torch._dynamo.two.f(), state(), state("other")[0])
"""
    assert engine.ask(PAST + code) == ["one", "one!", "two!", LATE, "applied"]


def test_module_that_comes_past_us_and_loads_the_next_one_is_not_missed(engine) -> None:
    engine.plug("fix(), fix(id='other', targets=('torch._dynamo.two:f',))")
    engine.sandbox.write({"torch/_dynamo/one.py": "import torch._dynamo.two\n" + MODULE})
    code = "sys.meta_path.insert(0, Past('torch._dynamo.one'))\n" + IMPORT_ONE
    assert engine.ask(PAST + code + "say(one.f(), one.torch._dynamo.two.f(), state())") == ["one", "two!", LATE]


def test_salted_module_that_comes_past_us_and_loads_a_target_is_salted_in_time(engine) -> None:
    engine.plug("fix(changes_codegen=True)")
    with_codecache(engine, "import torch._dynamo.one\n" + CODECACHE)
    code = "sys.meta_path.insert(0, Past('torch._inductor.codecache'))\n" + IMPORT_CODECACHE + IMPORT_ONE
    assert engine.ask(PAST + code + "say(one.f(), state()[0], codecache.torch_key() != plain)") == [
        "one!",
        "applied",
        True,
    ]


@pytest.mark.row("A module that is patched", "torch's compiler is loaded past us: `status()` says so and patches it")
def test_compiler_that_came_past_us_is_patched_when_the_status_is_asked_for(engine) -> None:
    engine.plug("fix()")
    code = """
from torch_forwardfix import report
sys.meta_path.insert(0, Past("torch._dynamo", "torch._dynamo.one"))
import torch._dynamo.one as one
before = one.f()
made = report.collect()
say(before, made.active, made.reason.partition(";")[0], one.f(), state(), report.collect().active)
"""
    reason = "torch._dynamo was loaded past the hook, before it was armed or by a finder ahead of it"
    assert engine.ask(PAST + code) == ["one", False, reason, "one!", LATE, True]


@pytest.mark.parametrize(
    ("fix", "reason"),
    [
        ("fix(probe=raising)", "RuntimeError: no probe"),
        ("fix(apply=raising)", "RuntimeError: no probe"),
        ("fix(apply=break_half_way)", "RuntimeError: boom"),
    ],
)
def test_fix_that_raises_is_failed_and_rolled_back(engine, fix: str, reason: str) -> None:
    engine.plug(fix)
    code = IMPORT_ONE + "say(one.f(), hasattr(one.f, '__wrapped__'), one.K.m.__qualname__, state(), lines)"
    expected = ["one", False, "K.m", ["failed", reason], [["WARNING", f"plugged: failed: {reason}"]]]
    engine.sandbox.write({"torch/_dynamo/one.py": MODULE})
    assert engine.ask(code) == expected


def test_replaced_name_that_was_not_there_is_gone_after_the_roll_back(engine) -> None:
    engine.sandbox.write(
        {"helper.py": "from torch_forwardfix.patching import replace\ndef a(m): replace(m, 'new', 1) or m.gone\n"}
    )
    engine.plug("fix(apply=__import__('helper').a)")
    assert engine.ask(IMPORT_ONE + "say(hasattr(one, 'new'), state()[0])") == [False, "failed"]


def test_fix_of_two_modules_is_rolled_back_in_both(engine) -> None:
    engine.plug("fix(targets=BOTH, apply=raise_in_two)")
    code = IMPORT_ONE + "before = one.f()\nimport torch._dynamo.two as two\nsay(before, one.f(), two.f(), state()[0])"
    assert engine.ask(code) == ["one!", "one", "two", "failed"]


def test_plugin_with_a_taken_id_is_superseded(engine) -> None:
    engine.plug("fix(id='aot-builtins'), fix()")
    code = IMPORT_ONE + "say(state('plug:aot-builtins'), state('aot-builtins')[0], state()[0], one.f())"
    taken = ["superseded", "the id 'aot-builtins' of plug-in plug is taken"]
    assert engine.ask(code) == [taken, "not-affected", "applied", "one!"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module:FIXES", "ModuleNotFoundError"),
        ("broken:NO_SUCH_NAME", "AttributeError"),
        ("broken:NOT_A_FIX", "TypeError: 'text' is not a torch_forwardfix.Fix"),
        ("broken:NUMBER", "TypeError"),
    ],
)
def test_broken_plugin_is_one_failed_row(engine, value: str, reason: str) -> None:
    engine.plug("fix()")
    engine.sandbox.write({"broken.py": "NOT_A_FIX = ('text',)\nNUMBER = 1\n"})
    engine.entry_point(value, "broken")
    (state, said), other, result, lines = engine.ask(
        IMPORT_ONE + "say(state('broken:broken'), state()[0], one.f(), lines)"
    )
    assert state == "failed"
    assert "plug-in broken cannot be loaded" in said
    assert reason in said
    assert (other, result) == ("applied", "one!")
    assert [line[0] for line in lines] == ["WARNING", "INFO"]


def test_plugin_may_be_a_single_fix(engine) -> None:
    engine.plug("fix()")
    engine.entry_point("plug:SINGLE", "plug")
    engine.sandbox.write({"plug.py": PLUGIN + "SINGLE = fix()\n"})
    assert engine.ask(IMPORT_ONE + "say(one.f())") == ["one!"]


CODECACHE = """
def torch_key(): return b"the hash of torch's sources"
torch_key.set = torch_key.clear = lambda *key: None
"""
IMPORT_CODECACHE = 'import torch._inductor.codecache as codecache\nplain = b"the hash of torch\'s sources"\n'


def with_codecache(engine, source: str = CODECACHE) -> None:
    engine.sandbox.write({"torch/_inductor/codecache.py": source})


def test_key_of_the_compile_caches_is_salted_before_and_after_the_fix_is_applied(engine) -> None:
    engine.plug("fix(changes_codegen=True)")
    with_codecache(engine)
    code = IMPORT_CODECACHE + "key = codecache.torch_key()\n" + IMPORT_ONE
    assert engine.ask(code + "say(key != plain, codecache.torch_key() == key, one.f())") == [True, True, "one!"]
    assert engine.ask(code + "say(key == plain)", _DISABLE="plugged") == [True]


@pytest.mark.parametrize(
    "fix",
    ["fix()", "fix(changes_codegen=True, probe=lambda module: False)", "fix(changes_codegen=True, probe=raising)"],
)
def test_key_is_left_alone_where_no_fix_in_force_changes_generated_code(engine, fix: str) -> None:
    engine.plug(fix)
    with_codecache(engine)
    assert engine.ask(IMPORT_ONE + IMPORT_CODECACHE + "say(codecache.torch_key() == plain)") == [True]


def test_key_that_is_handed_over_by_a_parent_is_not_salted_again(engine) -> None:
    engine.plug("fix(changes_codegen=True)")
    with_codecache(engine)
    code = IMPORT_CODECACHE + "codecache.torch_key.set(plain)\nsay(codecache.torch_key() == plain)"
    assert engine.ask(code) == [True]


def test_module_that_holds_the_key_by_value_gets_the_salted_one(engine) -> None:
    engine.plug("fix(changes_codegen=True)")
    with_codecache(engine)
    engine.sandbox.write({"torch/_inductor/async_compile.py": "from torch._inductor.codecache import torch_key\n"})
    code = "disarm()\nimport torch._inductor.async_compile as holder\n" + IMPORT_CODECACHE
    code += "torch_forwardfix.activate()\nsay(holder.torch_key is codecache.torch_key, codecache.torch_key() != plain)"
    assert engine.ask(code) == [True, True]


@pytest.mark.parametrize("source", ["", "torch_key = 'moved'\n", "def torch_key(): return b''\n"])
@pytest.mark.parametrize("first", [IMPORT_ONE, IMPORT_CODECACHE])
def test_fix_that_changes_generated_code_is_taken_back_where_the_key_cannot_be_salted(engine, source, first) -> None:
    engine.plug("fix(changes_codegen=True), fix(id='other', targets=('torch._dynamo.two:f',))")
    with_codecache(engine, source)
    code = first + IMPORT_ONE + IMPORT_CODECACHE + "import torch._dynamo.two as two\n"
    result, other, (state, reason), lines = engine.ask(code + "say(one.f(), two.f(), state(), lines)")
    assert (result, other, state) == ("one", "two!", "drifted")
    assert "compile caches cannot be told apart" in reason
    assert "torch_key" in reason
    assert [level for level, line in lines if line == f"plugged: drifted: {reason}"] == ["WARNING"]


CATCH = """
try:
    import torch._dynamo.one as one
except Exception as error:
    say(type(error).__name__, str(error))
else:
    say("imported", state()[0])
"""


@pytest.mark.parametrize(
    ("fix", "said"),
    [
        ("fix(probe=raising)", "plugged: failed: RuntimeError: no probe"),
        ("fix(apply=break_half_way)", "plugged: failed: RuntimeError: boom"),
        ("fix(probe=lambda module: 'all is new')", "plugged: drifted: all is new"),
    ],
)
def test_strict_raises_at_import_for_what_went_wrong(engine, fix: str, said: str) -> None:
    engine.plug(fix)
    name, message = engine.ask(CATCH, _STRICT="1")
    assert name == "FixNotApplied"
    assert said in message
    assert "TORCH_FORWARDFIX_STRICT" in message


@pytest.mark.parametrize(
    ("fix", "env", "state"),
    [
        ("fix()", {}, "applied"),
        ("fix(probe=lambda module: False)", {}, "already-fixed"),
        ("fix(affects='<1.0rc99')", {}, "not-affected"),
        ("fix(probe=raising)", {"_DISABLE": "plugged"}, "disabled"),
        ("fix(targets=BOTH)", {}, "applied"),
        ("fix(targets=('torch._dynamo.two:f',))", {}, "waiting"),
    ],
)
def test_strict_does_not_raise_for_the_rest(engine, fix: str, env: dict[str, str], state: str) -> None:
    engine.plug(fix)
    assert engine.ask(CATCH, _STRICT="1", **env) == ["imported", state]


def test_strict_does_not_raise_for_what_another_package_patched(engine) -> None:
    engine.plug("fix()")
    engine.sandbox.write({"meddler.py": MODULE, "torch/_dynamo/one.py": "from meddler import f\n"})
    assert engine.ask(CATCH, _STRICT="1") == ["imported", "foreign"]


def test_unknown_id_is_logged_once(engine) -> None:
    engine.plug("fix()")
    code = "import torch._dynamo, torch._inductor\n" + IMPORT_ONE + "torch_forwardfix.activate()\nsay(one.f(), lines)"
    result, lines = engine.ask(code, _DISABLE="nonsense")
    assert result == "one!"
    assert [level for level, _ in lines] == ["WARNING", "INFO"]
    assert "'nonsense'" in lines[0][1]


@pytest.mark.row("A module that is patched", "loaded before we are activated: patched then")
def test_late_activation_patches_what_is_loaded(engine) -> None:
    engine.plug("fix(targets=BOTH)")
    code = "disarm()\n" + IMPORT_ONE + "before = one.f()\ntorch_forwardfix.activate()\nbetween = one.f()\n"
    code += "import torch._dynamo.two as two\nsay(before, between, two.f(), state()[0])"
    assert engine.ask(code) == ["one", "one!", "two!", "applied"]


def test_activation_before_torch_arms_the_watcher(engine) -> None:
    engine.plug("fix()")
    code = "disarm()\ntorch_forwardfix.activate()\ntorch_forwardfix.activate()\nfinders = len(ours())\n"
    assert engine.ask(code + IMPORT_ONE + "say(finders, one.f())") == [1, "one!"]


def test_activation_again_patches_once(engine) -> None:
    engine.plug("fix()")
    code = IMPORT_ONE + "torch_forwardfix.activate()\ntorch_forwardfix.activate()\n"
    code += "say(one.f(), len(lines), len(ours()))"
    assert engine.ask(code) == ["one!", 1, 1]


def test_activation_does_nothing_when_switched_off(engine) -> None:
    engine.plug("fix()")
    code = IMPORT_ONE + "torch_forwardfix.activate()\nsay(one.f(), ours(), lines)"
    assert engine.ask(code, _="0") == ["one", [], []]


def test_reload_is_patched_again(engine) -> None:
    engine.plug("fix()")
    assert engine.ask(IMPORT_ONE + "importlib.reload(one)\nsay(one.f(), state())") == [
        "one!",
        ["applied", "patched torch._dynamo.one"],
    ]


def test_version_that_cannot_be_read_is_a_failed_row(engine) -> None:
    engine.plug("fix()")
    engine.sandbox.write({"torch/version.py": "__version__ = 'not a version'\n"})
    result, (state, reason), builtin = engine.ask(IMPORT_ONE + "say(one.f(), state(), state('aot-builtins')[0])")
    assert (result, state, builtin) == ("one", "failed", "failed")
    assert "'not a version'" in reason


@pytest.mark.parametrize("changes_codegen", [True, False])
def test_nothing_stays_on_the_import_path_where_no_fix_is_needed(engine, changes_codegen: bool) -> None:
    engine.plug(f"fix(affects='<1.0rc99', changes_codegen={changes_codegen})")
    assert engine.ask("before = len(ours())\nimport torch._dynamo\nsay(before, ours())") == [1, []]


def test_finder_stays_while_a_fix_waits(engine) -> None:
    engine.plug("fix()")
    assert engine.ask("import torch._dynamo\nsay(len(ours()), type(ours()[0]).__name__)") == [1, "PostImportFinder"]
