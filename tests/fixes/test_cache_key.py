"""What was compiled without a fix is never loaded with it, nor the other way round.

The fix is a plug-in made up for the purpose: it swaps the operands of every matrix product, on every release, so that a
stale artifact shows in the result.
"""

import functools
import os

import pytest
from conftest import FIXES, check, in_range

from torch_forwardfix import gates

PLUGIN = """
from torch_forwardfix import Fix
from torch_forwardfix.patching import wrap

def apply(module):
    def make(original):
        def run(self, *args):
            for node in self.graph.find_nodes(op="call_function", target=module.torch.ops.aten.mm.default):
                node.args = node.args[::-1]
            return original(self, *args)
        return run
    # It runs after the key of the FX graph cache has been made, so that nothing of it is in the graph that is hashed.
    wrap(module.GraphLowering, "run", make)

def fix(changes_codegen):
    return Fix(id="swap-operands", title="made up", kind="wrong-result", upstream=(), fixed_in=None,
               affects={"torch": ">=2.9.0.dev0"}, targets=("torch._inductor.graph:GraphLowering.run",),
               changes_codegen=changes_codegen, is_present=lambda module: True, apply=apply, reproduce=lambda: None)

SALTED, UNSALTED = fix(True), fix(False)

def key_of_worker():
    import os, time
    from torch._inductor.codecache import torch_key
    time.sleep(0.3)  # for the other workers to get a part of the work
    return os.getpid(), torch_key()
"""

DEFINITIONS = """
import os
import torch
if tag := os.environ.get("TAG_BEFORE"):
    torch.compiler.config.cache_key_tag = tag
from torch._dynamo.utils import counters
if tag := os.environ.get("TAG_AFTER"):
    torch.compiler.config.cache_key_tag = tag

def compiled(size, **config):
    x, y = torch.randn(2, size, size, dtype=torch.float64).unbind()
    counters.clear()
    torch._dynamo.reset()
    with torch._functorch.config.patch(**config):
        z = torch.compile(lambda x, y: x @ y)(x, y)
    result = "right" if torch.equal(z, x @ y) else "swapped" if torch.equal(z, y @ x) else "wrong"
    hit = counters["aot_autograd"]["autograd_cache_hit"] or counters["inductor"]["fxgraph_cache_hit"]
    return result + (" from cache" if hit else "")
"""

COMPILE = f"""{DEFINITIONS}
print(compiled(3, enable_autograd_cache=True), compiled(4, enable_autograd_cache=False), sep=", ")
"""

# torch 2.9 hardly asks who made what it loads: of an artifact not even which release of torch it was.
ASKS = gates.why_not_affected({"torch": ">=2.10.0.dev0"}) is None
OFF = {"TORCH_FORWARDFIX_DISABLE": "swap-operands"}


@pytest.fixture
def plugged(python, tmp_path):
    """Run programs with the plug-in; its file changes between two runs where ``edit`` says so."""
    info = tmp_path / "swap_operands-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: swap-operands\nVersion: 1\n")

    def run(program, *arguments, fix="SALTED", edit="", **environment):
        (tmp_path / "swap_operands.py").write_text(PLUGIN + edit)
        (info / "entry_points.txt").write_text(f"[torch_forwardfix.fixes]\nswap = swap_operands:{fix}\n")
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        return check(python(program, *arguments, PYTHONPATH=path, **environment)).strip()

    return run


def both(verdict):
    return f"{verdict}, {verdict}"


def test_artifacts_with_and_without_a_fix_are_kept_apart_and_both_stay_warm(plugged):
    assert plugged(COMPILE, **OFF) == both("right")
    assert plugged(COMPILE) == both("swapped")
    assert plugged(COMPILE) == both("swapped from cache")
    assert plugged(COMPILE, **OFF) == both("right from cache")
    # Nobody's cache is the user's who sets a tag, wherever that is done, and the salt stays beside it.
    assert plugged(COMPILE, TORCH_COMPILE_CACHE_KEY_TAG="mine") == both("swapped")
    assert plugged(COMPILE, TAG_BEFORE="mine") == both("swapped from cache")
    assert plugged(COMPILE, TAG_AFTER="mine") == both("swapped from cache")
    assert plugged(COMPILE, TAG_AFTER="mine", **OFF) == both("right")
    # Another revision of the fix loads nothing of the first.
    assert plugged(COMPILE, edit="# revised\n") == both("swapped")
    # A fix that says it does not change code leaves the caches as they are. This one lies about it, and the stale
    # result shows that it is the salt that keeps the artifacts apart.
    assert plugged(COMPILE, fix="UNSALTED") == both("right from cache")


LATE = """
import sys
import torch_forwardfix
sys.meta_path.remove(torch_forwardfix.watcher)
import torch._inductor.async_compile, torch._inductor.codecache
""" + COMPILE + """
torch_forwardfix.activate()
print(compiled(3, enable_autograd_cache=True), compiled(4, enable_autograd_cache=False), sep=", ")
print(torch._inductor.async_compile.torch_key is torch._inductor.codecache.torch_key)
"""  # fmt: skip


def test_a_process_that_is_patched_late_does_not_load_what_it_compiled_before(plugged):
    assert plugged(LATE).splitlines() == [both("right"), both("swapped"), "True"]


ARTIFACTS = DEFINITIONS + """
import sys
action, folder = sys.argv[1], sys.argv[2]
x, y = torch.randn(2, 5, 5, dtype=torch.float64).unbind()

def product(x, y):
    return x @ y

def verdict(load):
    try:
        z = load()(x, y)
    except (AssertionError, RuntimeError) as error:
        # What torch says of an artifact that another torch has made.
        assert "different PyTorch version" in str(error) or "read_bytes() == torch_key()" in trace(error) or (
            "torch_key mismatch" in str(error)), trace(error)
        return "refused"
    z = z[0] if isinstance(z, (list, tuple)) else z
    return "right" if torch.equal(z, x @ y) else "swapped" if torch.equal(z, y @ x) else "wrong"

def trace(error):
    import traceback
    return "".join(traceback.format_exception(error))

torch._dynamo.config.enable_aot_compile = True
if action == "save":
    compiled(3, enable_autograd_cache=True), compiled(4, enable_autograd_cache=False)
    torch.compile(product, fullgraph=True).aot_compile(((x, y), {})).save_compiled_function(folder + "/aot")
    graph = torch.fx.symbolic_trace(product)
    graph.graph.output_node().args = ((graph.graph.output_node().args[0],),)
    made = torch._inductor.standalone_compile(graph, [x, y], dynamic_shapes="from_example_inputs")
    made.save(path=folder + "/standalone", format="binary")
    with open(folder + "/mega", "wb") as file:
        file.write(torch.compiler.save_cache_artifacts()[0])
else:
    with open(folder + "/aot", "rb") as file:
        print(verdict(lambda: torch.compiler.load_compiled_function(file)))
    print(verdict(lambda: torch._inductor.CompiledArtifact.load(path=folder + "/standalone", format="binary")))
    with open(folder + "/mega", "rb") as file:
        torch.compiler.load_cache_artifacts(file.read())
    print(compiled(3, enable_autograd_cache=True), compiled(4, enable_autograd_cache=False), sep=", ")
"""  # fmt: skip


@pytest.mark.parametrize("saving", [{}, OFF], ids=["with", "without"])
def test_artifacts_that_were_saved_are_loaded_under_the_fixes_that_they_were_made_with(plugged, tmp_path, saving):
    def run(action, **environment):
        cache = tmp_path / f"cache-{action}-{len(environment)}"
        return plugged(ARTIFACTS, action, tmp_path, TORCHINDUCTOR_CACHE_DIR=str(cache), **environment).splitlines()

    result, other, loading = ("right", "swapped", {}) if saving else ("swapped", "right", OFF)
    run("save", **saving)
    assert run("load", **saving) == [result, result, both(f"{result} from cache")]
    assert run("load", **loading) == ["refused" if ASKS else result, "refused", both(other)]


PRECOMPILE = """
import torch
from torch._dynamo.utils import counters
from torch._dynamo.precompile_context import PrecompileContext

@torch.compile
def square(x):
    return x @ x

square(torch.ones(3, 3))
PrecompileContext.save_to_dynamo_cache()
print(counters["frames"]["total"])
"""


@pytest.mark.skipif(not ASKS, reason="NO PRECOMPILED PACKAGES: torch 2.9 saves them otherwise, and asks for no fixes")
def test_precompiled_packages_are_used_under_the_fixes_that_they_were_made_with(plugged):
    def compiled(**environment):
        return int(plugged(PRECOMPILE, TORCH_CACHING_PRECOMPILE="1", **environment))

    assert [compiled(**OFF), compiled(**OFF)] == [1, 0]
    assert [compiled(), compiled()] == [1, 0]
    assert compiled(**OFF) == 1


UNPATCHED = {"TORCH_FORWARDFIX": "0"}
# It mends the keys themselves, which are new up to torch 2.12.
MENDS_KEYS = "aot-cache-key-dtypes"


def test_caches_of_an_unpatched_process_are_warm_where_no_fix_changes_generated_code(python):
    needed = [fix for fix in FIXES.values() if in_range(fix.id)]
    harmless = ",".join(fix.id for fix in needed if not fix.changes_codegen and fix.id != MENDS_KEYS)
    assert harmless
    assert len(harmless.split(",")) < len(needed)
    run = functools.partial(python, COMPILE + "import torch_forwardfix; print(*torch_forwardfix.status(), sep='\\n')")
    assert check(run(**UNPATCHED)).splitlines()[0] == both("right")
    verdict, *said = check(run(TORCH_FORWARDFIX_ONLY=harmless)).splitlines()
    assert verdict == both("right from cache")
    assert "state='applied'" in "".join(said)
    assert check(run()).splitlines()[0] == both("right")


WORKERS = """
import os, swap_operands, torch, torch._inductor.config, torch._inductor.codecache as codecache
from torch._inductor.async_compile import AsyncCompile

plain = codecache.torch_key.__wrapped__()
assert codecache.torch_key() != plain
torch._inductor.config.compile_threads = 2
pool = AsyncCompile.process_pool()
answers = [job.result() for job in [pool.submit(swap_operands.key_of_worker) for _ in range(6)]]
pids, keys = map(set, zip(*answers))
print(len(pids), os.getpid() in pids, keys == {codecache.torch_key()})
codecache.torch_key.clear()
codecache.torch_key.set(b"handed over")
print(codecache.torch_key())
"""


def test_compile_workers_agree_with_their_parent(plugged):
    assert plugged(WORKERS).splitlines() == ["2 False True", "b'handed over'"]


WAITING = """
import torch, torch._inductor.codecache as codecache
from torch_forwardfix import engine
original = codecache.torch_key
waiting = []

def spy():
    plan = engine.current_plan()
    waiting.append([fix.id for fix in plan.changing_codegen() if engine.outcome_of(plan, fix.id).state != "applied"])
    return original()

codecache.torch_key = spy
""" + COMPILE + """
assert waiting
print(*filter(None, waiting))
"""  # fmt: skip


def test_no_fix_is_still_waiting_for_its_module_when_a_key_is_made(plugged):
    assert plugged(WAITING) == both("swapped")
