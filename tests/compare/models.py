"""Cases with models of transformers and diffusers, built from small configs: inference, and training with AdamW."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from measure import Compiler, Program, leaves

Inputs = Callable[[int], dict[str, torch.Tensor]]
WORDS = 64


@dataclass(frozen=True)
class Model:
    """``inputs`` takes a length: where inference is run with two of them, there is a recompilation."""

    build: Callable[[], torch.nn.Module]
    inputs: Inputs
    lengths: tuple[int, ...] = (6,)
    # Compiling AdamW for every parameter takes longer than the model: one case does.
    compile_optimizer: bool = False


def _words(length: int) -> torch.Tensor:
    return torch.randint(1, WORDS, (2, length))


def _text(length: int) -> dict[str, torch.Tensor]:
    words = _words(length)
    return {"input_ids": words, "labels": words}


def _of(name: str, **more: Any) -> Callable[[], torch.nn.Module]:
    """A language model of transformers."""

    def build() -> torch.nn.Module:
        model = getattr(transformers, name)
        sizes = {"vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 4, "max_position_embeddings": 64}
        special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        return model(model.config_class(**{**sizes, **heads, **special, "use_cache": False, **more}))

    return build


def _t5() -> torch.nn.Module:
    sizes = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0, use_cache=False)
    return transformers.T5ForConditionalGeneration(config)


def _whisper() -> torch.nn.Module:
    sizes = {"vocab_size": WORDS, "d_model": 32, "num_mel_bins": 8, "max_source_positions": 12}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(
        **sizes, **layers, **special, encoder_ffn_dim=64, decoder_ffn_dim=64, use_cache=False
    )
    return transformers.WhisperForConditionalGeneration(config)


def _vit() -> torch.nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=8
    )
    return transformers.ViTForImageClassification(config)


def _unet() -> torch.nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def _dit() -> torch.nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=1, sample_size=8, norm_num_groups=8
    )


def _images(batch: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 16, 16), "labels": torch.randint(0, 2, (batch,))}


def _speech(length: int) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(2, 8, 24), "labels": _words(length)}


def _latents(batch: int) -> dict[str, torch.Tensor]:
    return {
        "sample": torch.randn(batch, 4, 8, 8),
        "timestep": torch.arange(batch),
        "encoder_hidden_states": torch.randn(batch, 5, 16),
    }


def _labelled_latents(batch: int) -> dict[str, torch.Tensor]:
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8),
        "timestep": torch.arange(batch),
        "class_labels": torch.arange(batch),
    }


MODELS = {
    "llama": Model(_of("LlamaForCausalLM", num_key_value_heads=2), _text, (6, 9), compile_optimizer=True),
    "qwen3": Model(_of("Qwen3ForCausalLM", num_key_value_heads=2, head_dim=8), _text),
    "mixtral": Model(_of("MixtralForCausalLM", num_key_value_heads=2, num_local_experts=4), _text, (6, 9)),
    "gpt-oss": Model(
        _of("GptOssForCausalLM", num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2), _text
    ),
    "gemma": Model(_of("GemmaForCausalLM", num_key_value_heads=1, head_dim=8), _text),
    "bert": Model(_of("BertForMaskedLM"), _text, (6, 9)),
    "opt": Model(_of("OPTForCausalLM", ffn_dim=64, word_embed_proj_dim=32), _text),
    "t5": Model(_t5, _text),
    "whisper": Model(_whisper, _speech, (6, 9)),
    "vit": Model(_vit, _images, (2, 3)),
    "mamba": Model(_of("MambaForCausalLM", state_size=4), _text, (4,)),
    "unet": Model(_unet, _latents, (2, 3)),
    "dit": Model(_dit, _labelled_latents, (2,)),
}

# This is compiled with the C++ compiler and run.
RUN = ("vit.training",)


def names() -> list[str]:
    return [f"{model}.{part}" for model in MODELS for part in ("inference", "training")]


def program(name: str) -> Program:
    model_name, part = name.split(".")
    run = {"inference": _inference, "training": _training}[part]
    return Program(lambda compile: run(MODELS[model_name], compile), fullgraph=False, eager_random=True)


def _inference(case: Model, compile: Compiler) -> list[Any]:
    model = case.build().eval()
    forward = compile(model)
    with torch.no_grad():
        return leaves([dict(forward(**case.inputs(length))) for length in case.lengths])


def _training(case: Model, compile: Compiler) -> list[Any]:
    """Two steps: the second one must find what the first one compiled."""
    model = case.build().train()
    forward = compile(model)
    # With the usual eps a gradient that is zero but for rounding moves its parameter as far as any other.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-3)
    step = compile(optimizer.step) if case.compile_optimizer else optimizer.step
    losses = []
    inputs = case.inputs(case.lengths[0])
    for _ in range(2):
        output = forward(**inputs)
        loss = output.loss if "loss" in output else output.sample.square().mean()
        loss.backward()
        step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [*losses, *(parameter.detach() for parameter in model.parameters())]
