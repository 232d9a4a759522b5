"""A fix with two modules is applied to both or to none, whatever happens to which of them, and when."""

import importlib
import sys
import threading
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from torch_forwardfix import engine, patching, settings
from torch_forwardfix.fix import Fix, Outcome
from torch_forwardfix.hook import PostImportFinder


def make(monkeypatch, **per_module):
    """A plan with one fix; ``per_module`` names what is_present and apply do on each: a verdict, or an exception."""
    modules = {}
    for name in per_module:
        module = modules[name] = ModuleType(name)
        exec("def function(): return 'original'", vars(module))
        monkeypatch.setitem(sys.modules, name, module)

    def is_present(module):
        verdict = per_module[module.__name__]
        return verdict if isinstance(verdict, str) else True

    def apply(module):
        patching.wrap(module, "function", lambda function: lambda: "patched")
        if isinstance(per_module[module.__name__], Exception):
            raise per_module[module.__name__]

    fix = Fix(
        id="two-modules",
        title="a fix of two modules",
        kind="crash",
        upstream=(),
        affects={"torch": ">=2.9.dev0"},
        fixed_in=None,
        targets=tuple(f"{name}:function" for name in per_module),
        changes_codegen=False,
        is_present=is_present,
        apply=apply,
        reproduce=lambda: None,
    )
    plan = engine.Plan(settings.Settings(True, False, {}, ()), {}, {fix.id: fix})
    return plan, list(modules.values())


@pytest.mark.parametrize("bad", [RuntimeError("boom"), "code has changed"], ids=["failed", "drifted"])
@pytest.mark.parametrize("first_is_bad", [True, False])
def test_neither_module_is_patched_where_one_cannot_be(monkeypatch, bad, first_is_bad):
    verdicts = {"one": bad, "two": True} if first_is_bad else {"one": True, "two": bad}
    plan, modules = make(monkeypatch, **verdicts)
    for module in modules:
        engine._module_loaded(plan, module)
    assert [module.function() for module in modules] == ["original", "original"]
    outcome = engine.outcome_of(plan, "two-modules")
    assert outcome.state == ("drifted" if isinstance(bad, str) else "failed")
    assert str(bad) in outcome.reason


def test_a_reload_does_not_bring_half_of_a_failed_fix_back(monkeypatch):
    plan, modules = make(monkeypatch, one=True, two=RuntimeError("boom"))
    for module in modules:
        engine._module_loaded(plan, module)
    engine._module_loaded(plan, modules[0])
    assert modules[0].function() == "original"


def test_what_a_second_look_leaves_alone_can_still_be_taken_back(monkeypatch):
    plan, (one, _) = make(monkeypatch, one=True, two=True)
    engine._module_loaded(plan, one)
    engine._module_loaded(plan, one)
    assert one.function() == "patched"
    assert engine.outcome_of(plan, "two-modules").state == "applied"
    engine._take_back(plan, plan.pending["two-modules"], Outcome("missed", "too late", "two"))
    assert one.function() == "original"


def test_both_modules_are_patched_where_both_can_be(monkeypatch):
    plan, modules = make(monkeypatch, one=True, two=True)
    engine._module_loaded(plan, modules[0])
    assert engine.outcome_of(plan, "two-modules").state == "applied"
    engine._module_loaded(plan, modules[1])
    assert [module.function() for module in modules] == ["patched", "patched"]
    assert "one" in engine.outcome_of(plan, "two-modules").reason


def test_a_module_that_is_missed_takes_the_other_one_back(monkeypatch):
    plan, (one, two) = make(monkeypatch, one=True, two=True)
    finder = PostImportFinder(plan.modules, lambda module: None)
    monkeypatch.setitem(engine._started, "plan", (plan, finder))
    two.__spec__ = SimpleNamespace(_initializing=True)
    engine._module_loaded(plan, one)
    assert one.function() == "patched"
    engine.catch_up()
    assert engine.outcome_of(plan, "two-modules").state == "missed"
    assert [one.function(), two.function()] == ["original", "original"]


def test_threads_that_import_do_not_disturb_each_other(monkeypatch):
    names = [f"number{number}" for number in range(60)]
    plan, modules = make(monkeypatch, **{name: True for name in names})
    (fix,) = plan.pending.values()
    fixes = {name: replace(fix, id=name, targets=(f"{name}:function",)) for name in names}
    plan = engine.Plan(plan.settings, {}, fixes)
    finder = PostImportFinder(plan.modules, lambda module: None)
    monkeypatch.setitem(engine._started, "plan", (plan, finder))
    errors = []

    def load(some):
        for module in some:
            try:
                engine._module_loaded(plan, module)
            except Exception as error:
                errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=load, args=(modules[number::3],)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    assert {outcome.state for outcome in plan.outcomes.values()} == {"applied"}


def test_a_plugin_that_exits_is_one_failed_row(tmp_path, monkeypatch):
    (tmp_path / "leaver.py").write_text("raise SystemExit(3)\n")
    info = tmp_path / "leaver-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaver\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[torch_forwardfix.fixes]\naot-builtins = leaver\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    from torch_forwardfix import catalog

    known = catalog.load()
    assert "SystemExit: 3" in known.broken["leaver:aot-builtins"].reason
    assert "aot-builtins" in known.fixes
