from conftest import check, in_range

ID = "config-thread-visibility"

THREAD = """
import threading

def thread(function):
    found = []
    worker = threading.Thread(target=lambda: found.append(function()), daemon=True)
    worker.start()
    worker.join()
    return found[0]
"""

USE = (
    THREAD
    + """
import os, sys
import torch, torch._dynamo
from torch._dynamo.utils import counters

config = torch._dynamo.config
x = torch.arange(3.0)

def scale(x, factor):
    return x * factor

def compilations():
    for factor in range(12):
        try:
            assert torch.equal(compiled(x, factor), x * factor)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            return factor
    return 12

class Nested(torch.autograd.Function):
    seen = []

    @staticmethod
    def forward(ctx, x, depth):
        ctx.depth = depth
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.depth:
            with torch.enable_grad():
                Nested.apply(torch.ones(1, requires_grad=True), ctx.depth - 1).sum().backward()
        else:
            Nested.seen.append((threading.get_ident(), config.recompile_limit))
        return gradient, None

config.recompile_limit = 16
if sys.argv[1] == "True":
    # From the 60th backward within a backward on, autograd takes threads of its own on CPU, too.
    Nested.apply(torch.ones(1, requires_grad=True), 70).sum().backward()
    (home, limit), = Nested.seen
    assert home != threading.get_ident()
    print("backward", limit)

# Code that reads configs and is compiled: what dynamo makes of it.
def reads(x):
    return x * config.recompile_limit

def writes(x):
    config.recompile_limit = 5
    return x * 2

def patches(x):
    with config.patch(recompile_limit=3):
        return x * config.recompile_limit

@config.patch(recompile_limit=9)
def patched(x):
    return x * config.recompile_limit

def condition(x):
    return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

for function in (reads, writes, patches, patched, condition):
    torch._dynamo.reset()
    counters.clear()
    config.recompile_limit = 8
    compiled = torch.compile(function, backend="eager")
    first, limit = compiled(x), config.recompile_limit
    for value in (8, 11, 8, 11, 8) if function is not patched else (8, 8):
        config.recompile_limit = value
        last = compiled(x)
        config.recompile_limit = value
        assert torch.equal(last, function(x)), (function, value)
    breaks = sum(counters["graph_break"].values())
    print("traced", function.__name__, first.tolist(), limit, counters["stats"]["unique_graphs"], breaks)
assert torch.equal(condition(x), x + 1)

torch._dynamo.reset()
config.recompile_limit = 16
compiled = torch.compile(scale, backend="eager", dynamic=False, fullgraph=True)
print("worker", thread(compilations))  # at the end: torch 2.11 crashes where it compiles in another thread thereafter
sys.stdout.flush()
os._exit(0)  # now and then torch aborts at the exit of a process that has autograd threads
"""
)


def test_what_one_thread_assigns_holds_in_workers_and_in_the_backward_and_traces_as_before(python):
    lines = check(python(USE, str(in_range(ID)))).splitlines()
    unpatched = check(python(USE, str(in_range(ID)), TORCH_FORWARDFIX="0")).splitlines()
    if in_range(ID):
        assert [lines.pop(0), unpatched.pop(0)] == ["backward 16", "backward 8"]
    assert [lines.pop(), unpatched.pop()] == ["worker 12", "worker 8" if in_range(ID) else "worker 12"]
    assert len(lines) == 5
    assert lines == unpatched


MEANING = (
    THREAD
    + """
import asyncio, contextvars, pickle, sys, time, unittest.mock, warnings
import torch

early = torch.compiler.config
early.cache_key_tag = "early"

import torch._dynamo, torch._inductor.config as inductor
from torch.utils._config_module import ConfigModule

warnings.simplefilter("ignore", FutureWarning)
config = torch._dynamo.config
LOCAL = sys.argv[1] == "True"

def limits():
    return config.recompile_limit, thread(lambda: config.recompile_limit)

# Assigned before the compiler was loaded; threads from before and after; aliases.
assert thread(lambda: early.cache_key_tag) == "early"
read, assigned, seen = threading.Event(), threading.Event(), []

def old_worker():
    seen.append(config.recompile_limit)
    read.set()
    assigned.wait()
    seen.append(config.recompile_limit)
    config.recompile_limit = 77

worker = threading.Thread(target=old_worker, daemon=True)
worker.start()
read.wait()
config.recompile_limit = 55
assigned.set()
worker.join()
assert seen == [8, 55] and limits() == (77, 77) and config.cache_size_limit == 77
config.cache_size_limit = 21
assert limits() == (21, 21)
inductor.triton.cudagraphs = True
assert thread(lambda: inductor.triton.cudagraphs)
inductor.triton.cudagraphs = False

# In place, mock.patch, deletion, unknown names.
config.reorderable_logging_functions.add(print)
assert thread(lambda: print in config.reorderable_logging_functions)
config.reorderable_logging_functions.clear()
with unittest.mock.patch.object(config, "recompile_limit", 4):
    assert limits() == (4, 4)
assert limits() == (21, 21)
del config.recompile_limit
assert not hasattr(config, "recompile_limit") and not thread(lambda: hasattr(config, "recompile_limit"))
config.recompile_limit = 21
for wrong in (lambda: setattr(config, "no_such", 1), lambda: config.patch(no_such=1).__enter__()):
    try:
        wrong()
    except (AttributeError, KeyError) as error:
        assert "no_such" in str(error)
    else:
        raise AssertionError("accepted")

if LOCAL:
    name = next(name for name, entry in config._config.items() if entry.deprecated and not entry._deprecation_warned)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        setattr(config, name, config._config[name].default)
    assert [warning.filename for warning in caught] == ["<string>"]

# Environment variables: one is a default, the other wins over everything.
assert inductor.fx_graph_cache is False
inductor.fx_graph_cache = True
assert inductor.fx_graph_cache is False
if hasattr(early, "sticky_pgo_read"):
    assert early.sticky_pgo_read is True and thread(lambda: early.sticky_pgo_read) is True
    early.sticky_pgo_read = None
    assert thread(lambda: early.sticky_pgo_read) is None

# Snapshots, cache keys.
blob = config.save_config()
config.recompile_limit, config.verbose = 51, True
assert thread(lambda: pickle.loads(config.save_config()))["recompile_limit"] == 51
assert "recompile_limit = 51" in thread(config.codegen_config)
for snapshot in (config.get_config_copy, config.shallow_copy_dict):
    assert thread(snapshot)["recompile_limit"] == 51
config.load_config(blob)
assert thread(lambda: (config.recompile_limit, config.verbose)) == (21, False)
inductor.load_config({"max_autotune": True, "triton.cudagraphs": True})
assert thread(lambda: (inductor.max_autotune, inductor.triton.cudagraphs)) == (True, True)
inductor.load_config({"max_autotune": False, "triton.cudagraphs": False})

config.dead_code_elimination = True
before, computed, changed, seen = config.get_hash(), threading.Event(), threading.Event(), []

def hashes():
    seen.extend([config.get_hash(), config.save_config(), inductor.save_config_portable()])
    computed.set()
    changed.wait()
    seen.extend([config.get_hash(), config.save_config(), inductor.save_config_portable()])

worker = threading.Thread(target=hashes, daemon=True)
worker.start()
computed.wait()
config.dead_code_elimination = False
inductor.max_fusion_size = 3
changed.set()
worker.join()
after = config.get_hash()
assert seen[0] == before != after == seen[3] and seen[1] != seen[4] == config.save_config()
assert seen[2]["max_fusion_size"] == 64 and seen[5]["max_fusion_size"] == 3
assert seen[5] == inductor.save_config_portable()
config.dead_code_elimination = True
assert config.get_hash() == thread(config.get_hash) == before
inductor.max_fusion_size = 64

# config.patch: its values end with it, whatever is assigned within.
@config.patch(recompile_limit=9)
def decorated(depth):
    return decorated(depth - 1) if depth else limits()

assert decorated(3 if LOCAL else 0) == (9, 21 if LOCAL else 9) and limits() == (21, 21)
same = config.patch("recompile_limit", 11)
with same:
    config.recompile_limit = 12
    with same if LOCAL else config.patch("recompile_limit", 11):  # until 2.11, a patch could not be entered twice
        assert config.recompile_limit == 11
    assert config.recompile_limit == 12
assert limits() == (21, 21)
with config.patch(dead_code_elimination=False):
    assert config.get_hash() == after
assert config.get_hash() == before
change = config._make_closure_patcher(assume_static_by_default=False)
revert = change()
assert not config.assume_static_by_default and thread(lambda: config.assume_static_by_default) is LOCAL
revert()
config.assume_static_by_default = False
assert not thread(lambda: config.assume_static_by_default)
config.assume_static_by_default = True
if not LOCAL:
    sys.exit()

# Since 2.12 it is local as well.
with config.patch(recompile_limit=1):
    with config.patch({"recompile_limit": 2, "verbose": True}):
        assert limits() == (2, 21) and thread(lambda: config.verbose) is False
        thread(lambda: setattr(config, "recompile_limit", 30))
        assert limits() == (2, 30)
        config.recompile_limit = 3
        assert limits() == (3, 30)
    assert limits() == (1, 30)
    thread(lambda: setattr(config, "recompile_limit", 31))
    assert limits() == (1, 31)
assert limits() == (31, 31)
for name in "recompile_limit", "cache_size_limit":
    with config.patch({name: 5}), config.patch(cache_size_limit=6):
        assert limits() == (6, 31)
try:
    with config.patch(recompile_limit=1):
        raise KeyError
except KeyError:
    assert limits() == (31, 31)
with config.patch(reorderable_logging_functions={print}):
    assert thread(lambda: not config.reorderable_logging_functions)
assert not config.reorderable_logging_functions

with config.patch(recompile_limit=1):
    copied = contextvars.copy_context()
    assert copied.run(lambda: config.recompile_limit) == 1
    copied.run(lambda: setattr(config, "recompile_limit", 2))
    assert limits() == (1, 31) and copied.run(lambda: config.recompile_limit) == 2
copied = contextvars.copy_context()
config.recompile_limit = 40
assert copied.run(lambda: config.recompile_limit) == 40
copied.run(lambda: setattr(config, "recompile_limit", 41))
assert limits() == (41, 41)

async def tasks():
    entered = asyncio.Event()

    async def patching():
        with config.patch(recompile_limit=3):
            entered.set()
            await asyncio.sleep(0.05)
            assert config.recompile_limit == 3
        assert config.recompile_limit == 50

    async def assigning():
        await entered.wait()
        assert config.recompile_limit == 41
        config.recompile_limit = 50

    await asyncio.gather(patching(), assigning())
    assert await asyncio.to_thread(lambda: config.recompile_limit) == 50

asyncio.run(tasks())
assert limits() == (50, 50)

# Patches that end out of order, or in a copy of the context, do not take later assignments from the others.
one, two = config.patch(recompile_limit=1), config.patch(recompile_limit=2)
one.__enter__(), two.__enter__(), one.__exit__(None, None, None), two.__exit__(None, None, None)
config.recompile_limit = 60
assert limits() == (60, 60)
one.__enter__()
contextvars.copy_context().run(one.__exit__, None, None, None)
assert config.recompile_limit == 1
one.__exit__(None, None, None)
assert limits() == (60, 60)

# Settings that torch sets for a while, in two threads that overlap.
from torch._dynamo.utils import disable_cache_limit
inside, leave = threading.Event(), threading.Event()

def unlimited():
    with disable_cache_limit():
        inside.set()
        leave.wait()
        return config.recompile_limit

worker = threading.Thread(target=unlimited, daemon=True)
worker.start()
inside.wait()
assert config.recompile_limit == 60
with disable_cache_limit():
    leave.set()
    worker.join()
    assert limits() == (sys.maxsize, 60)
assert limits() == (60, 60)

if hasattr(ConfigModule, "_set_raw_values"):
    strict = lambda: (inductor.numerics, inductor.emulate_precision_casts)
    inductor.numerics = "strict"
    assert thread(strict) == ("strict", True)
    with inductor.patch(numerics="default"):
        assert strict() == ("default", False) and thread(strict) == ("strict", True)
    try:
        inductor.numerics = []
    except TypeError:
        pass
    assert strict() == thread(strict) == ("strict", True)
    inductor.load_config({"numerics": "default"})
    assert strict() == thread(strict) == ("default", False)

# Nothing is left behind, and nothing piles up.
entry = config._config["recompile_limit"]
assert type(entry.user_override) is contextvars.ContextVar
assert not hasattr(ConfigModule.__getattr__, "__wrapped__")
before = len(contextvars.copy_context())
for value in range(1000):
    config.recompile_limit = value
    config.debug_dir_root = str(value)
assert len(contextvars.copy_context()) == before

# Many threads at a time.
config.recompile_limit, wrong, end = 1000, [], time.monotonic() + 1
sys.setswitchinterval(1e-5)

def patching(value):
    while time.monotonic() < end:
        with config.patch(recompile_limit=value):
            wrong.extend(limit for _ in range(20) if (limit := config.recompile_limit) != value)
        if config.recompile_limit < 1000:
            wrong.append(value)

def assigning():
    while time.monotonic() < end:
        for value in range(1000, 1007):
            config.recompile_limit = value
            if config.recompile_limit != value:
                wrong.append(value)

workers = [threading.Thread(target=patching, args=(value,), daemon=True) for value in (1, 2, 3)]
workers.append(threading.Thread(target=assigning, daemon=True))
[worker.start() for worker in workers]
[worker.join() for worker in workers]
assert not wrong, wrong
assert limits() == (1006, 1006) and type(entry.user_override) is contextvars.ContextVar
"""
)


def test_assignments_are_shared_patches_are_local_and_snapshots_see_both(python):
    variables = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCH_COMPILE_STICKY_PGO_READ": "1"}
    check(python(MEANING, str(in_range(ID)), **variables))


LOADED_IN_A_WORKER = (
    THREAD
    + """
import torch

early = torch.compiler.config
early.cache_key_tag = "main"
thread(lambda: setattr(early, "job_id", "worker"))

def load():
    early.job_id = "loader"
    import torch._dynamo, torch._inductor.config
    return torch._dynamo.config

config = thread(load)
assert (early.cache_key_tag, early.job_id) == ("main", "loader"), (early.cache_key_tag, early.job_id)
early.cache_key_tag = "again"
assert thread(lambda: early.cache_key_tag) == "again"
config.recompile_limit = 16
assert thread(lambda: config.recompile_limit) == 16
names = "__setattr__", "__delattr__", "patch", "_make_closure_patcher"
print([hasattr(vars(torch.utils._config_module.ConfigModule)[name], "__wrapped__") for name in names])
"""
)


def test_works_where_a_worker_loads_the_compiler_and_patches_no_other_release(python):
    assert check(python(LOADED_IN_A_WORKER)) == f"{[in_range(ID)] * 4}\n"
