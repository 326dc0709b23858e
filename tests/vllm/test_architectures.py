"""Every architecture that is served, with random weights: token for token what transformers says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_model import WORDS, write_tokenizer
from vllm_cases import Job, Reference, check, prompt, requests

from subvene.runner.engines.vllm.sites import LAYOUTS, TRANSFORMERS_LAYOUTS

COMMON: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Heads that are not a share of the width, where a config can say so.
WIDE = COMMON | {"head_dim": 64}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
GEMMA = WIDE | {"query_pre_attn_scalar": 64, "sliding_window": 16}
t = transformers
CONFIGS: dict[str, Any] = {
    "LlamaForCausalLM": lambda: t.LlamaConfig(**WIDE),
    "MistralForCausalLM": lambda: t.MistralConfig(**WIDE, sliding_window=16),
    "Qwen2ForCausalLM": lambda: t.Qwen2Config(**COMMON),
    "Qwen3ForCausalLM": lambda: t.Qwen3Config(**WIDE),
    "Qwen3MoeForCausalLM": lambda: t.Qwen3MoeConfig(
        **WIDE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
    ),
    "GemmaForCausalLM": lambda: t.GemmaConfig(**WIDE),
    "Gemma2ForCausalLM": lambda: t.Gemma2Config(**GEMMA),
    "Gemma3ForCausalLM": lambda: t.Gemma3TextConfig(**GEMMA),
    "Phi3ForCausalLM": lambda: t.Phi3Config(**COMMON),
    "MixtralForCausalLM": lambda: t.MixtralConfig(**WIDE, **EXPERTS),
    "GptOssForCausalLM": lambda: t.GptOssConfig(**WIDE, **EXPERTS, sliding_window=16),
    "Olmo2ForCausalLM": lambda: t.Olmo2Config(**COMMON),
}


def random_model(folder: Path, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            # Biases are born zero, norms as the identity: a test should notice when they are lost.
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
            elif not torch.isfinite(parameter).all() or not parameter.any():
                parameter.data = 0.12 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    write_tokenizer(folder)
    # Eager: transformers' sdpa leaves out the softcap of Gemma 2's attention.
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def test_every_layout_is_held_against_transformers() -> None:
    assert set(CONFIGS) == {*LAYOUTS, *TRANSFORMERS_LAYOUTS}


@pytest.mark.parametrize("architecture", CONFIGS)
def test_an_architecture(engines: Any, tmp_path: Path, architecture: str) -> None:
    import vllm

    reference = Reference(tmp_path, random_model(tmp_path / "model", CONFIGS[architecture]()))
    folders = reference.artifacts
    ids = tuple(prompt(21, seed=1))
    names = ("steering", "mlp", "attention", "heads", "low_rank", "many")
    jobs = [Job(ids, name, None, rule) for name in names for rule in ("all", "response")] + [Job(ids)]
    for job in jobs:  # before vLLM starts, which puts methods of its own into classes of transformers
        reference.answer(job)
    llm = engines(reference.path, folders)
    assert llm.llm_engine.model_config.architectures == [architecture]
    check(reference, jobs, llm.generate(*requests(vllm, jobs), use_tqdm=False))
