"""vLLM as it is installed here: its configuration on every release, its engine where this torch is the one it pins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import result, run

from torch_forwardfix import catalog, gates, verify

FIX = catalog.load().fixes["vllm-compile-disable"]
VERSION = gates.installed_version("vllm")
AFFECTED = gates.why_not_affected(FIX.affects) is None

CONFIG = """
import json, sys
from vllm.config import CompilationConfig, DeviceConfig, VllmConfig

wanted = json.loads(sys.argv[1])
config = VllmConfig(device_config=DeviceConfig(device="cpu"), compilation_config=CompilationConfig(**wanted))
chosen = config.compilation_config
before = (getattr(chosen, "mode", None), getattr(chosen, "level", None), chosen.custom_ops)
config.__post_init__()  # the engine's own process does it again
assert before == (getattr(chosen, "mode", None), getattr(chosen, "level", None), chosen.custom_ops)
print("RESULT", json.dumps([int(chosen.level if sys.argv[2] == "level" else chosen.mode), chosen.custom_ops]))
"""

FIELD = "level" if gates.in_range(VERSION, "<0.11.1rc99") else "mode"


def config(wanted: dict, **environment: str):
    return result(run("-c", CONFIG, json.dumps(wanted), FIELD, **environment))


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_disabled_plans_no_compilation_whatever_mode_was_asked_for(wanted):
    mode, custom_ops = config({FIELD: wanted}, TORCH_COMPILE_DISABLE="1")
    assert mode == 0
    # 0.11.0 leaves the list empty, which means all for a level below PIECEWISE.
    assert custom_ops == ([] if FIELD == "level" else ["all"])


@pytest.mark.parametrize("value", [None, "0", "true"])
def test_other_values_change_nothing(value):
    environment = {} if value is None else {"TORCH_COMPILE_DISABLE": value}
    assert config({FIELD: 3}, **environment) == config({FIELD: 3}, TORCH_FORWARDFIX="0", **environment)
    assert config({FIELD: 3}, **environment)[0] != 0


def test_opt_out_ignores_the_variable_as_before():
    mode, _ = config({FIELD: 3}, TORCH_COMPILE_DISABLE="1", TORCH_FORWARDFIX="0")
    assert (mode != 0) is AFFECTED


def test_proof_holds_where_affected_and_nothing_is_applied_elsewhere():
    proof = verify.prove(FIX)
    assert proof.holds is AFFECTED, proof
    if not AFFECTED:
        assert (proof.without.verdict, proof.with_fix.verdict) == ("absent", "absent"), proof


def test_status_says_what_happens():
    report = json.loads(run("-m", "torch_forwardfix", "status", "--json", "--live").stdout)
    (row,) = (row for row in report["fixes"] if row["id"] == FIX.id)
    assert row["state"] == ("applied" if AFFECTED else "not-affected")
    if not AFFECTED:
        assert f"vllm {VERSION} is not in" in row["reason"]


def test_import_vllm_alone_does_not_load_the_config_for_us():
    program = "import sys, vllm; print('RESULT', int('vllm.config.vllm' in sys.modules))"
    assert result(run("-c", program)) == result(run("-c", program, TORCH_FORWARDFIX="0"))


ENGINE_IS_BUILT_FOR_THIS_TORCH = gates.in_range(VERSION, ">=0.19.dev0")

if ENGINE_IS_BUILT_FOR_THIS_TORCH:

    def engine(folder: Path, **environment: str):
        return result(run(str(Path(__file__).with_name("engine.py")), str(folder), **environment))

    def test_engine_generates_the_same_tokens_without_compiling(tmp_path):
        compiled = engine(tmp_path / "compiled")
        disabled = engine(tmp_path / "disabled", TORCH_COMPILE_DISABLE="1")
        assert compiled["mode"] != 0
        assert compiled["graphs"] > 0
        assert disabled["own process"]
        assert disabled["boot"]
        assert (disabled["mode"], disabled["custom_ops"], disabled["graphs"]) == (0, ["all"], 0)
        assert disabled["tokens"] == compiled["tokens"]

    def test_engine_compiles_all_the_same_without_us(tmp_path):
        unpatched = engine(tmp_path, TORCH_COMPILE_DISABLE="1", TORCH_FORWARDFIX="0")
        assert (unpatched["mode"] != 0) is AFFECTED
        assert (unpatched["graphs"] > 0) is AFFECTED
