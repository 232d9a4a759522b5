"""The same four kinds of models, of transformers' own classes, built from small configs; no hub is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from torch_forwardfix import startup_models

LAYERS = 6
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
TOKENS = {"max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, scaling: float, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention of one sequence by the operator at which the graph is split."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    query = query * scaling * query.shape[-1] ** 0.5
    mixed = startup_models.attention(*(x.squeeze(0).transpose(0, 1) for x in (query, key, value)))
    return mixed.unsqueeze(0), None


transformers.AttentionInterface.register("split", attend)


def start(name: str, more: dict[str, int], folder: Path) -> dict[str, int]:
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    config = kind.config_class(**SIZES, **TOKENS, **more)
    config._attn_implementation = "split"
    config._experts_implementation = "batched_mm"  # the others ask for values while they are traced
    model = kind(config).eval().requires_grad_(False)
    tokens = torch.randint(config.vocab_size, (1, 8))
    return startup_models.run(lambda tokens: model(tokens).logits, tokens, startup_models.Start(LAYERS), folder)


# No two have the same vocabulary: one model's last piece is not to come from what another one has compiled.
MODELS: dict[str, Callable[[Path], dict[str, int]]] = {
    name: partial(start, name, more)
    for name, more in {
        "LlamaForCausalLM": {"vocab_size": 64, **HEADS},
        "Qwen3ForCausalLM": {"vocab_size": 80, **HEADS},
        "DeepseekV3ForCausalLM": {"vocab_size": 96, **LATENT, **EXPERTS, "n_group": 2, "topk_group": 1},
        "Glm4MoeForCausalLM": {"vocab_size": 112, **HEADS, **EXPERTS},
    }.items()
}
