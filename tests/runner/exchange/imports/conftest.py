"""A tiny model that imported files are laid over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from subvene.runner.exchange.imports import Options, import_foreign
from subvene.runner.intervened.model import IntervenedModel


@pytest.fixture
def llama() -> Callable[..., Any]:
    def llama(**changes: Any) -> Any:
        torch.manual_seed(0)
        sizes = {
            "vocab_size": 64,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,  # o_proj maps 32 to 24: its heads are wider than the residual stream
            "initializer_range": 0.2,
            "pad_token_id": 0,
        }
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()

    return llama


@pytest.fixture
def imported(llama: Callable[..., Any], tmp_path: Path) -> Callable[..., IntervenedModel]:
    """Imports, saves, and gives what the artifact reloads to."""

    def imported(
        source: Path, model: Any = None, format: str | None = None, **options: Any
    ) -> IntervenedModel:
        model = llama() if model is None else model
        name = options.pop("name", "user/tiny")
        m = import_foreign(source, name, format=format, options=Options(**options), loaded=(model, None))
        folder = m.save_pretrained(tmp_path / "artifact")
        return IntervenedModel.from_pretrained(folder, model=model)

    return imported
