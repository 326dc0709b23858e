"""Sequence classifiers of decoder language models: sources and sites as ever, logits of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from source_specs import output_of, spec_of, swap, written

from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.edits.refusals import NoGenerationError
from subvene.runner.intervened.model import IntervenedModel

BASE = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 0]])
SOURCE = torch.tensor([[21, 22, 23], [24, 25, 26]])
_COMMON: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "initializer_range": 0.3, "num_labels": 3}
_LLAMA = _COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**_LLAMA),
    "gemma": transformers.GemmaConfig(**_LLAMA, num_key_value_heads=4, head_dim=8),
    "gpt2": transformers.GPT2Config(**_COMMON, n_embd=32, n_layer=2, n_head=4),
    "neox": transformers.GPTNeoXConfig(**_LLAMA),
}
PATHS = {"llama": "model.layers", "gemma": "model.layers", "gpt2": "transformer.h", "neox": "gpt_neox.layers"}
OTHER = {"other": {"input_ids": SOURCE}}


def classifier(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto = transformers.AutoModelForSequenceClassification
        return auto.from_config(CONFIGS[name], dtype=torch.float32).eval()


def interchanged(model: Any, **fields: Any) -> IntervenedModel:
    at = {"positions": {"indices": [2]}, "source": {"from": "other", "positions": {"indices": [1]}}}
    return IntervenedModel.from_spec(
        spec_of({"other": {"column": "o"}}, swap(0, **at, **fields)), model=model
    )


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_an_interchange_gives_the_logits_of_plain_hooks(name: str, tmp_path: Path) -> None:
    model = classifier(name)
    m = interchanged(model)
    mask = (BASE != 0).long()
    found = m(BASE, mask, prompt_lengths=mask.sum(1), sources=OTHER).logits
    assert found.shape == (2, 3)
    block = model.get_submodule(f"{PATHS[name]}.0")
    for row, ids in enumerate(BASE):
        real = ids[ids != 0][None]
        with written(block, {2: output_of(model, block, SOURCE[row].tolist())[1]}):
            torch.testing.assert_close(found[row], model(real).logits[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found[row], model(real).logits[0], atol=1e-3)
    assert m.receipt is not None
    assert m.receipt["swap"].source.rows_fed == 2
    with m.disabled():
        assert torch.equal(m(BASE, mask).logits, model(BASE, attention_mask=mask).logits)
    m.save_pretrained(tmp_path / "artifact")
    again = IntervenedModel.from_pretrained(tmp_path / "artifact", model=model)
    assert torch.equal(again(BASE, mask, prompt_lengths=mask.sum(1), sources=OTHER).logits, found)


def test_generation_is_refused_by_name() -> None:
    m = interchanged(classifier("gpt2"))
    for call in (
        lambda: m.generate("x"),
        lambda: m.generate_ids(BASE, max_new_tokens=2),
        lambda: m.intervenable.generate({"input_ids": BASE}),
    ):
        with pytest.raises(NoGenerationError, match="GPT2ForSequenceClassification generates no text"):
            call()


@torch.no_grad()
def test_a_row_that_is_no_longer_finite_is_named() -> None:
    m = interchanged(classifier("llama"))
    with pytest.raises(NotFiniteError, match="swap"):
        m(BASE, (BASE != 0).long(), prompt_lengths=[5, 4], sources=OTHER, strengths=1e38)


@torch.no_grad()
def test_logits_of_a_row_that_are_not_finite_are_the_untouched_models_own() -> None:
    model = classifier("llama")
    model.score.weight.data[0] = float("inf")
    with pytest.raises(NotFiniteError, match="untouched"):
        interchanged(model)(BASE, (BASE != 0).long(), prompt_lengths=[5, 4], sources=OTHER)
