"""One intervention of every kind with a float64 reference beside it, and a tiny model to put them on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kind_cases import SIZES, Case, cases_in

from subvene.interventions import Sizes, TensorTable


def tiny_llama(dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=SIZES.width,
        intermediate_size=32,
        num_hidden_layers=SIZES.n_layers,
        num_attention_heads=SIZES.n_heads,
        num_key_value_heads=2,
        head_dim=SIZES.head_dim,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval().to(dtype)


CASES = cases_in(Path(__file__).parent)


@pytest.fixture(params=CASES, ids=repr)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def llama() -> Callable[..., Any]:
    return tiny_llama


@pytest.fixture
def sizes() -> Sizes:
    return SIZES


@pytest.fixture
def table() -> Callable[..., TensorTable]:
    return lambda **tensors: TensorTable(tensors, "t.safetensors")


@pytest.fixture
def cases() -> list[Case]:
    return CASES
