"""unsloth patches torch's compiler and whole models when it is imported; on a CPU, with a real torch."""

import functools
import json

import pytest

row = functools.partial(pytest.mark.row, "unsloth")

# The first release that trains on a CPU. It has no use for a GPU's packages there, and torch is there already.
UNSLOTH = "unsloth>=2026.10.9"
LEFT_OUT = ("torch", "torchvision", "torchao", "triton", "xformers", "bitsandbytes")

# What of torch is unsloth's after its import: functions of modules and methods of classes.
THEIRS = """
import json, sys
from types import FunctionType

def theirs():
    found = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "torch":
            continue
        for key, value in list(getattr(module, "__dict__", {}).items()):
            inside = vars(value).items() if isinstance(value, type) and value.__module__ == name else ()
            for path, object in [(key, value), *((f"{key}.{key2}", value2) for key2, value2 in inside)]:
                home = object.__globals__.get("__name__", "") if isinstance(object, FunctionType) else ""
                if home.startswith("unsloth"):
                    found.add(f"{name}:{path}")
    return sorted(found)
"""

# One training step of a compiled model, as eager does it.
STEP = """
import torch, torch_forwardfix

def loss_and_gradient(compile):
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(32, 16)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = torch.nn.Sequential(embedding, layer, torch.nn.Linear(16, 32))
    words = torch.randint(0, 32, (2, 8))
    run = torch.compile(model, backend="aot_eager") if compile else model
    loss = torch.nn.functional.cross_entropy(run(words).flatten(0, 1), words.flatten())
    loss.backward()
    return loss, embedding.weight.grad

for eager, compiled in zip(loss_and_gradient(False), loss_and_gradient(True)):
    torch.testing.assert_close(compiled, eager)
import torch._inductor.compile_fx
states = {fix.id: [fix.state, fix.reason] for fix in torch_forwardfix.status()}
print("RESULT", json.dumps([theirs(), states]))
"""

FIRST = "import unsloth\n" + THEIRS + STEP
LATE = f"""
import os
import unsloth, torch._inductor.compile_fx
del os.environ["TORCH_FORWARDFIX"]
import torch_forwardfix
torch_forwardfix.activate()
{THEIRS}{STEP}"""


@pytest.fixture(scope="module")
def run(torch_venv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unsloth")
    overrides = folder / "overrides.txt"
    # The certifi that it asks for is newer than some package indexes have.
    overrides.write_text("certifi\n" + "".join(f"{name} ; python_version < '3'\n" for name in LEFT_OUT))
    torch_venv.uv("install", UNSLOTH, "--override", overrides)

    @functools.cache
    def run(program, **variables):
        done = torch_venv.run("-c", program, cwd=folder, OMP_NUM_THREADS="1", **variables)
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        return json.loads(line.removeprefix("RESULT"))

    return run


@row("unsloth: it patches what it patches without us, a training step is right, and every fix is in force")
def test_unsloth_after_us(run):
    patched_without, _ = run(FIRST, TORCH_FORWARDFIX="0")
    patched, states = run(FIRST)
    assert patched == patched_without
    assert patched, "unsloth patches nothing of torch any more"
    assert {state for state, _ in states.values()} <= {"applied", "waiting", "not-affected"}, states
    assert "applied" in {state for state, _ in states.values()}


@row("unsloth, and we are activated after it: the same, late")
def test_unsloth_before_us(run):
    patched_without, _ = run(FIRST, TORCH_FORWARDFIX="0")
    patched, states = run(LATE, TORCH_FORWARDFIX="0")
    assert patched == patched_without
    assert {state for state, _ in states.values()} <= {"applied", "waiting", "not-affected"}, states
    assert any("loaded already" in reason for state, reason in states.values() if state == "applied")
