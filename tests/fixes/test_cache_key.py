"""What was compiled without a fix is never loaded with it, nor the other way round.

The fix is a plug-in made up for the purpose: it swaps the operands of every matrix product, on every release, so that a
stale artifact shows in the result.
"""

import os

import pytest
from conftest import check

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
    from torch._inductor.codecache import torch_key
    return torch_key()
"""

COMPILE = """
import os
import torch
from torch._dynamo.utils import counters

if tag := os.environ.get("TAG"):
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

print(compiled(3, enable_autograd_cache=True), compiled(4, enable_autograd_cache=False), sep=", ")
"""

OFF = {"TORCH_FORWARDFIX_DISABLE": "swap-operands"}


@pytest.fixture
def plugged(python, tmp_path):
    """Run programs with the plug-in; its file changes between two runs where ``edit`` says so."""
    info = tmp_path / "swap_operands-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: swap-operands\nVersion: 1\n")

    def run(program, fix="SALTED", edit="", **environment):
        (tmp_path / "swap_operands.py").write_text(PLUGIN + edit)
        (info / "entry_points.txt").write_text(f"[torch_forwardfix.fixes]\nswap = swap_operands:{fix}\n")
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        return check(python(program, PYTHONPATH=path, **environment)).strip()

    return run


def both(verdict):
    return f"{verdict}, {verdict}"


def test_artifacts_with_and_without_a_fix_are_kept_apart_and_both_stay_warm(plugged):
    assert plugged(COMPILE, **OFF) == both("right")
    assert plugged(COMPILE) == both("swapped")
    assert plugged(COMPILE) == both("swapped from cache")
    assert plugged(COMPILE, **OFF) == both("right from cache")
    # A tag of the user works, and does not drop the salt.
    assert plugged(COMPILE, TAG="mine") == both("swapped")
    assert plugged(COMPILE, TAG="mine", **OFF) == both("right")
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


WORKERS = """
import swap_operands, torch, torch._inductor.config, torch._inductor.codecache as codecache
from torch._inductor.async_compile import AsyncCompile

plain = codecache.torch_key.__wrapped__()
assert codecache.torch_key() != plain
torch._inductor.config.compile_threads = 2
pool = AsyncCompile.process_pool()
print(pool.submit(swap_operands.key_of_worker).result() == codecache.torch_key())
codecache.torch_key.clear()
codecache.torch_key.set(b"handed over")
print(codecache.torch_key())
"""


def test_compile_workers_agree_with_their_parent(plugged):
    assert plugged(WORKERS).splitlines() == ["True", "b'handed over'"]


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
