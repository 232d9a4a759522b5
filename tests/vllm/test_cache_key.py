"""vLLM's own compile cache hashes torch's key: what it holds is not loaded under other fixes than it was made with."""

from __future__ import annotations

from programs import result, run

FACTORS = """
import json
from vllm.compilation.compiler_interface import get_inductor_factors
print("RESULT", json.dumps([str(factor) for factor in get_inductor_factors()]))
"""


def factors(**environment: str) -> list[str]:
    return result(run("-c", FACTORS, **environment))


def test_key_of_vllms_cache_is_another_one_under_other_fixes_and_the_same_under_the_same():
    with_us, without = factors(), factors(TORCH_FORWARDFIX="0")
    assert with_us != without
    assert with_us == factors()
