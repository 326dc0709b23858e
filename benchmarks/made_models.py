"""Models with random weights, made on the spot: for what can be measured on any machine, without a file."""

from __future__ import annotations

from typing import Any

import torch
import transformers

# Llama's shape at the sizes of SmolLM2-135M, and at published ones between 1B and 8B.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


def made(size: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", **changes: int) -> Any:
    """A Llama of these sizes whose weights are random, the same each time; no token ends its answers.

    `changes` are made to the sizes.
    """
    sizes = {"vocab_size": 1024, **SIZES[size], **changes}
    config = transformers.LlamaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=None)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return model


def prompts(rows: int, tokens: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Token ids and their mask, [rows, tokens], without padding."""
    ids = (torch.arange(rows * tokens, device=device) % 1000 + 2).view(rows, tokens)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
