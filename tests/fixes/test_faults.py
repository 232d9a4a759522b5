"""Faults of every kind, in every fix that this torch needs: torch stays as it was, and the other fixes are applied."""

import json

import pytest
from conftest import FIXES, check, in_range

NEEDED = [id for id in FIXES if in_range(id)]

# Each case is a fork of one process, in which torch's compiler is loaded and unpatched: the fixes are applied late.
PROGRAM = r"""
import dataclasses, functools, importlib, json, logging, os, random, sys, types

from torch_forwardfix import catalog, engine, patching
from torch_forwardfix.fix import Drifted

needed = json.loads(sys.argv[1])
known = catalog.load().fixes
modules = [importlib.import_module(name) for id in needed for name in known[id].modules]
import torch._dynamo, torch._inductor, torch._inductor.codecache, torch._inductor.compile_fx

def owners():
    # The modules of the targets, and every class of torch's that they name.
    found = {id(module): module for module in modules}
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__.startswith("torch"):
                found[id(value)] = value
    return list(found.values())

places = owners()
names = [getattr(place, "__qualname__", place.__name__) for place in places]

def snapshot():
    return [dict(vars(place)) for place in places]

def changed(before, after):
    found = set()
    for name, old, new in zip(names, before, after):
        for key in {*old, *new}:
            if old.get(key) is not new.get(key) and key != "__warningregistry__":
                found.add(f"{name}.{key}")
    return sorted(found)

def boom(*args):
    raise RuntimeError("boom")

def with_fault(fix, fault):
    # A fix in which one step fails.
    def apply_and(raise_it):
        def apply(module):
            fix.apply(module)
            raise_it()
        return apply
    def drift():
        raise Drifted("it was gone")
    return dataclasses.replace(fix, **{
        "probe": {"is_present": boom},
        "probe drifts": {"is_present": lambda module: "it has changed"},
        "apply": {"apply": boom},
        "half applied": {"apply": apply_and(boom)},
        "drifted half-way": {"apply": apply_and(drift)},
    }[fault])

def target_of(fix):
    # The first target that is patched on this release.
    for target in fix.targets:
        home, _, qualname = target.partition(":")
        owner, _, name = qualname.rpartition(".")
        if f"{owner or home}.{name}" in patched():
            return target
    return fix.targets[0]

def spoil(fix, fault):
    # Another torch: without the fix's target, or with something else in its place.
    home, _, qualname = target_of(fix).partition(":")
    module = sys.modules[home]
    *path, name = qualname.split(".")
    owner = module
    for part in path:
        owner = vars(owner)[part]
    if fault == "missing":
        return delattr(owner, name)
    code = (lambda *args, **kwargs: None).__code__
    world = vars(module) if fault == "changed" else {"__name__": "meddler.patches"}
    old = vars(owner)[name]
    new = types.FunctionType(code, world, name)
    setattr(owner, name, type(old)(new) if isinstance(old, (staticmethod, classmethod)) else new)

def child(faults, environment):
    os.environ.update(environment)
    del os.environ["TORCH_FORWARDFIX"]
    lines = []
    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
            if "log" in faults.values():
                boom()
    logger = logging.getLogger("torch_forwardfix")
    logger.handlers, logger.propagate = [Keep()], False
    logger.setLevel(logging.INFO)
    fixes = dict(known)
    for id, fault in faults.items():
        if fault in ("missing", "changed", "foreign"):
            spoil(known[id], fault)
        elif fault == "gate":
            real = engine.why_not_affected
            engine.why_not_affected = lambda affects, *versions: (
                boom() if affects is known[id].affects else real(affects, *versions))
        elif fault == "rollback":
            fixes[id] = with_fault(known[id], "half applied")
            def refuse(undo):
                undo.clear()
                raise patching.NotTakenBack("it stays")
            patching.roll_back = refuse
        elif fault != "log":
            fixes[id] = with_fault(known[id], fault)
    real_load = catalog.load
    catalog.load = lambda: dataclasses.replace(real_load(), fixes=fixes)
    before = snapshot()
    raised = None
    try:
        engine.activate()
    except engine.FixNotApplied as error:
        raised = str(error)
    plan = engine.current_plan()
    outcomes = {id: engine.outcome_of(plan, id) for id in needed}
    return {
        "raised": raised,
        "states": {id: [outcome.state, outcome.reason] for id, outcome in outcomes.items()},
        "changed": changed(before, snapshot()),
        "lines": lines,
    }

def fork(faults, **environment):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        status = 1
        try:
            answer = json.dumps(child(faults, environment))
            with os.fdopen(writer, "w") as file:
                file.write(answer)
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    assert os.waitpid(pid, 0)[1] == 0, faults
    return json.loads(text)

@functools.cache
def switched_off(ids):
    return fork({}, TORCH_FORWARDFIX_DISABLE=ids)

@functools.cache
def patched():
    return set(fork({})["changed"])

patched()

def expect(faults):
    # All but the faulty are applied, and torch is as it is when the faulty are switched off.
    got = fork(faults)
    not_applied = {id: outcome for id, outcome in got["states"].items() if outcome[0] != "applied"}
    assert not_applied.keys() >= faults.keys() - {id for id in faults if faults[id] == "log"}, (faults, not_applied)
    spoiling = [id for id, fault in faults.items() if fault in ("missing", "changed", "foreign")]
    spoilt = {target_of(known[id]).partition(":")[0] for id in spoiling}
    for id in not_applied.keys() - faults.keys():
        # Another fix may look at what is spoilt.
        assert spoilt & set(known[id].modules), (faults, id, not_applied[id])
    off = switched_off(",".join(not_applied))
    assert all(off["states"][id][0] == "disabled" for id in not_applied)
    assert got["changed"] == off["changed"], (faults, set(got["changed"]) ^ set(off["changed"]))
    assert got["raised"] is None
    return got
"""

# fault: the state that it leads to, and what the reason says.
FAULTS = {
    "gate": (("failed",), "boom"),
    "probe": (("failed",), "RuntimeError: boom"),
    "probe drifts": (("drifted",), "it has changed"),
    "apply": (("failed",), "RuntimeError: boom"),
    "half applied": (("failed",), "RuntimeError: boom"),
    "drifted half-way": (("drifted",), "it was gone"),
    "missing": (("drifted", "failed"), ""),
    "changed": (("drifted", "already-fixed", "failed"), ""),
    "foreign": (("foreign",), "meddler.patches"),
}

EACH = """
faults = json.loads(sys.argv[2])
faulty = []
for fault, (states, reason) in faults.items():
    for id in needed:
        try:
            got = expect({id: fault})
            state, why = got["states"][id]
            assert state in states and reason in why, (state, why)
            if state in ("failed", "drifted"):
                assert len([line for line in got["lines"] if line.startswith(f"{id}: {state}: ")]) == 1, got["lines"]
        except AssertionError as error:
            faulty.append([fault, id, str(error)])
print(json.dumps(faulty))
"""


@pytest.mark.row(
    "Faults with a real torch",
    "every fix and every step (gate, probe, patch, roll-back), a target that is gone, changed or somebody else's: "
    "torch stays as it was, the state says why, all other fixes are applied",
)
def test_fault_in_one_fix_leaves_torch_as_it_was_and_the_other_fixes_applied(python):
    process = python(PROGRAM + EACH, json.dumps(NEEDED), json.dumps(FAULTS), TORCH_FORWARDFIX="0")
    assert json.loads(check(process)) == []


OTHERS = """
# Whatever combination of faults.
numbers = random.Random(20)
for _ in range(12):
    chosen = numbers.sample(needed, numbers.randint(2, len(needed) // 2))
    steps = "probe", "probe drifts", "apply", "half applied", "drifted half-way"
    expect({id: numbers.choice(steps) for id in chosen})

# A logging handler that raises.
got = expect({needed[0]: "log"})
assert {state for state, _ in got["states"].values()} == {"applied"}
assert len(got["lines"]) >= len(needed)

# What refuses to be put back.
for id in needed:
    got = fork({id: "rollback"})
    state, reason = got["states"].pop(id)
    assert state == "failed" and "RuntimeError: boom; then it stays" in reason, (id, state, reason)
    assert {state for state, _ in got["states"].values()} == {"applied"}

# The user asked for it.
strict = {"probe": "failed", "probe drifts": "drifted", "half applied": "failed", "missing": "drifted"}
for fault, state in strict.items():
    got = fork({needed[-1]: fault}, TORCH_FORWARDFIX_STRICT="1")
    assert got["raised"].startswith(f"{needed[-1]}: {state}: "), got["raised"]
print("as expected")
"""


@pytest.mark.row(
    "Faults with a real torch",
    "combinations of faults, a logging handler that raises, a patch that cannot be taken back, "
    "`TORCH_FORWARDFIX_STRICT=1`",
)
def test_combinations_of_faults_and_those_of_logging_rollback_and_strict_mode(python):
    assert check(python(PROGRAM + OTHERS, json.dumps(NEEDED), TORCH_FORWARDFIX="0")) == "as expected\n"
