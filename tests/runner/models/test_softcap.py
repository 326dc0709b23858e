"""Attention with a softcap runs in code that has it, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from subvene.runner import load_model
from subvene.runner.models.loading import ModelError, check_given


@pytest.fixture
def gemma2(loaded: tuple[Any, Any], tmp_path: Path) -> Path:
    """A tiny Gemma 2 whose softcap is low enough to matter, with the tests' tokenizer."""
    torch.manual_seed(0)
    tokenizer = loaded[1]
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_logit_softcapping=0.001,
        query_pre_attn_scalar=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_model_with_a_softcap_is_loaded_with_attention_that_has_it(gemma2: Path) -> None:
    model, _ = load_model(str(gemma2))
    assert model.config._attn_implementation == "eager"
    ids = torch.arange(3, 11)[None]
    capped = model(ids).logits
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert not torch.allclose(model(ids).logits, capped, atol=1e-4), "the softcap does not matter here"


def test_attention_that_leaves_it_out_is_refused(gemma2: Path) -> None:
    with pytest.raises(ModelError, match="attn_implementation"):
        load_model(str(gemma2), attn_implementation="sdpa")


def test_so_is_a_model_that_was_loaded_elsewhere(gemma2: Path) -> None:
    model, tokenizer = load_model(str(gemma2))
    model.config._attn_implementation_internal = "sdpa"
    with pytest.raises(ModelError, match="leaves out the softcap"):
        check_given(model, tokenizer, "gemma")


def test_other_models_keep_their_attention(loaded: tuple[Any, Any]) -> None:
    check_given(*loaded, "tiny")
    assert loaded[0].config._attn_implementation == "sdpa"
