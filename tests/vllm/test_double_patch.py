"""vLLM patches some of the functions that we patch. Whoever comes first: nobody is undone, and the bugs are gone."""

from __future__ import annotations

import json

import pytest
from programs import result, run

from torch_forwardfix import catalog, gates

# What vLLM's env_override patches, by the fix of ours that patches the same function.
SHARED = {
    "aot-builtins": "torch._dynamo.convert_frame:GraphCaptureOutput.get_runtime_env",
    "fx-strides-opaque": "torch._inductor.lowering:constrain_to_fx_strides",
    "fxgraph-cache-valueerror": "torch._inductor.codecache:FxGraphCachePickler.dumps",
    "pattern-custom-op-dtype": "torch._inductor.pattern_matcher:fallback_node_due_to_unsupported_type",
}

THEIRS = """
import importlib, json, os, sys
import torch
from torch_forwardfix import catalog, patching

def live(target):
    home, _, qualname = target.partition(":")
    return patching.lookup(importlib.import_module(home), qualname).__globals__["__name__"]

def theirs():
    import vllm.env_override
    # Finders of vLLM's patch some modules when they are loaded.
    import torch._inductor.compile_fx, torch._inductor.pattern_matcher
    getattr(vllm.env_override, "_apply_constrain_to_fx_strides_patch", lambda: None)()

def answer(shared, ids):
    import torch_forwardfix
    states = {fix.id: [fix.state, fix.reason] for fix in torch_forwardfix.status()}
    known = catalog.load().fixes
    for id in ids:
        known[id].reproduce()
    print("RESULT", json.dumps({id: [*states[id], live(target)] for id, target in shared.items()}))

shared = json.loads(sys.argv[1])
"""

OURS_FIRST = """
theirs()
answer(shared, shared)
"""

THEIRS_FIRST = """
theirs()
before = {id: live(target) for id, target in shared.items()}
assert set(before.values()) == {"vllm.env_override"}, before
del os.environ["TORCH_FORWARDFIX"]
import torch_forwardfix
torch_forwardfix.activate()
answer(shared, [])
"""


@pytest.fixture(scope="module")
def shared():
    """What this vLLM patches on this torch."""
    fixes = catalog.load().fixes
    affected = {id: target for id, target in SHARED.items() if gates.why_not_affected(fixes[id].affects) is None}
    ask = "theirs()\nprint('RESULT', json.dumps({id: live(target) for id, target in shared.items()}))"
    seen = result(run("-c", THEIRS + ask, json.dumps(affected), TORCH_FORWARDFIX="0"))
    found = {id: affected[id] for id, home in seen.items() if home == "vllm.env_override"}
    if not found:
        pytest.skip(f"vLLM {gates.installed_version('vllm')} patches nothing that we patch")
    return found


@pytest.mark.row("vLLM", "vLLM's patches after ours, on the same functions: nobody is undone, the bugs are gone")
def test_vllm_after_us_wraps_ours_and_the_bugs_are_gone(shared):
    seen = result(run("-c", THEIRS + OURS_FIRST, json.dumps(shared)))
    assert {id: (state, home) for id, (state, _, home) in seen.items()} == dict.fromkeys(
        shared, ("applied", "vllm.env_override")
    )


@pytest.mark.row("vLLM", "vLLM's patches before ours: left in place, and named as `foreign`")
def test_vllm_before_us_is_named_and_left_in_place(shared):
    seen = result(run("-c", THEIRS + THEIRS_FIRST, json.dumps(shared), TORCH_FORWARDFIX="0"))
    for id, (state, reason, home) in seen.items():
        assert (state, home) == ("foreign", "vllm.env_override"), (id, state, reason)
        assert "was replaced by vllm.env_override" in reason
