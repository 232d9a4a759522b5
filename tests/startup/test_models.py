"""The models of ``torch_forwardfix startup``, and transformers' own: how much is compiled, saved and loaded.

Four models share a cold and a warm process, and so the C++ kernels that they have in common.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import start

from torch_forwardfix import startup


@dataclass(frozen=True)
class Spec:
    """``pieces`` are the graphs between the attentions of ``layers``, of which ``unique`` differ."""

    layers: int
    pieces: int
    unique: int


# The first piece, the one that repeats, and the last; in the models with experts, the one after the dense layer too.
SPECS = {
    "llama": Spec(layers=6, pieces=7, unique=3),
    "qwen3": Spec(layers=6, pieces=7, unique=3),
    "deepseek": Spec(layers=6, pieces=7, unique=4),
    "glm": Spec(layers=6, pieces=7, unique=4),
    "LlamaForCausalLM": Spec(layers=6, pieces=7, unique=3),
    "Qwen3ForCausalLM": Spec(layers=6, pieces=7, unique=3),
    "DeepseekV3ForCausalLM": Spec(layers=6, pieces=7, unique=4),
    "Glm4MoeForCausalLM": Spec(layers=6, pieces=7, unique=4),
}

PROGRAM = """
    import functools, json, sys
    from pathlib import Path
    import torch
    from torch._dynamo.utils import compilation_time_metrics, counters
    from torch_forwardfix import startup_models

    if sys.argv[1] == "ours":
        models = {name: functools.partial(startup_models.start, name) for name in startup_models.MODELS}
    else:
        sys.path.append(sys.argv[1])
        from transformers_models import MODELS as models

    def run(name, folder):
        counters.clear(), compilation_time_metrics.clear(), torch._dynamo.reset()
        made = models[name](Path(folder, name))
        groups = {"fx": ("inductor", "fxgraph_cache"), "aot": ("aot_autograd", "autograd_cache")}
        for label, (group, prefix) in groups.items():
            made[label] = [counters[group][f"{prefix}_{what}"] for what in ("hit", "miss", "bypass")]
        return {**made, "aot_total": counters["aot_autograd"]["total"],
                "compiled": len(compilation_time_metrics.get("GraphLowering.run", ()))}

    print(json.dumps({folder: {name: run(name, folder) for name in models} for folder in sys.argv[2:]}))
"""


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """A cold start; a warm one; and, in the process of that, one with nothing but the caches that the cold one left."""

    def of(models):
        folder = tmp_path_factory.mktemp("starts")
        cold = start(PROGRAM, folder, models, "saved")["saved"]
        later = start(PROGRAM, folder, models, "saved", "new")
        return {"cold": cold, "warm": later["saved"], "again": later["new"]}

    with ThreadPoolExecutor() as pool:
        ours, theirs = pool.map(of, ("ours", str(Path(__file__).parent)))
    return {which: ours[which] | theirs[which] for which in ours}


def test_the_command_knows_the_names_of_the_models(starts):
    assert list(startup.MODELS) == [name for name in starts["cold"] if name.islower()]
    assert list(starts["cold"]) == list(SPECS)


@pytest.mark.parametrize(("name", "spec"), SPECS.items())
def test_a_cold_start_compiles_and_saves_each_kind_of_piece_once(starts, name, spec):
    repeated = spec.pieces - spec.unique
    assert starts["cold"][name] == {
        "layers": spec.layers,
        "pieces": spec.pieces,
        "saved": spec.unique,
        "loaded": 0,
        "fx": [repeated, spec.unique, 0],
        "aot": [repeated, spec.unique, 0],
        "aot_total": spec.pieces,
        "compiled": spec.unique,
    }


@pytest.mark.parametrize(("name", "spec"), SPECS.items())
def test_a_warm_start_loads_everything_and_compiles_and_saves_nothing(starts, name, spec):
    assert starts["warm"][name] == {
        "layers": spec.layers,
        "pieces": spec.pieces,
        "saved": 0,
        "loaded": spec.unique,
        "fx": [spec.unique, 0, 0],
        "aot": [0, 0, 0],
        "aot_total": 0,
        "compiled": 0,
    }


@pytest.mark.parametrize(("name", "spec"), SPECS.items())
def test_every_piece_has_the_same_key_in_a_later_process(starts, name, spec):
    # vLLM's warm start relies on it: it saves one artifact of each kind, and finds the kind of a piece by its key.
    again = starts["again"][name]
    assert [again[what] for what in ("saved", "loaded", "compiled")] == [spec.unique, 0, 0]
    assert again["fx"] == again["aot"] == [spec.pieces, 0, 0]
