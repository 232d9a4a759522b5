"""A tiny random Llama in vLLM's engine on a CPU. Prints, as JSON, what the process of the engine planned and compiled.

The first argument is a folder for the model and all caches.
"""

from __future__ import annotations

import json
import os
import sys


def look(worker):
    """Runs in the engine's process."""
    import os
    import sys

    from torch._dynamo.utils import counters

    config = worker.vllm_config.compilation_config
    return {
        "pid": os.getpid(),
        "boot": "torch_forwardfix" in sys.modules,
        "mode": int(config.mode),
        "custom_ops": list(config.custom_ops),
        "graphs": counters["stats"]["unique_graphs"],
    }


def main(folder: str) -> None:
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # collective_rpc of a function
        "VLLM_CACHE_ROOT": f"{folder}/vllm",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(f"{folder}/model")

    from vllm import LLM, SamplingParams

    llm = LLM(
        model=f"{folder}/model",
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=64,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        seed=0,
    )
    prompts = [{"prompt_token_ids": ids} for ids in ([1, 5, 9, 17], [1, 33, 77, 120, 200, 3], [1, 250])]
    greedy = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, detokenize=False)
    tokens = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, greedy, use_tqdm=False)]
    (seen,) = llm.collective_rpc(look)
    print("RESULT " + json.dumps({**seen, "own process": seen["pid"] != os.getpid(), "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
