"""Tokenizers that write more ids than a model has rows for are refused before anything is read by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from odd_templates import CHATML, SPECIAL, tokenizer

from subvene.runner import IntervenedModel
from subvene.runner.models.loading import ModelError, load_model
from subvene.runner.models.vocabulary import TokenError
from subvene.runner.recipes.fitting import fit
from subvene.specs import parse_spec

SPEC = """\
subvene: 1
model: {name: user/tiny}
fit: {recipe: mean_difference, key: k, pairs: {texts: [{positive: a, negative: b}]}}
interventions: [{kind: steering, name: s, layer: 1, vector: {key: k}, coefficient: 1}]
"""


def model(rows: int) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=rows, **sizes)).eval()


def saved(folder: Path, rows: int, tokens: Any) -> str:
    model(rows).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return str(folder)


def test_an_ordinary_token_without_a_row(tmp_path: Path) -> None:
    tokens = tokenizer()
    rows = len(tokens) - 7
    with pytest.raises(
        ModelError, match=rf"has {rows} rows, ids 0 to {rows - 1}.* \({rows}\), .* and 2 more"
    ):
        load_model(saved(tmp_path / "m", rows, tokens), device="cpu")


def test_more_rows_than_tokens_are_padding(tmp_path: Path) -> None:
    tokens = tokenizer()
    for rows in (len(tokens), len(tokens) + 50):
        load_model(saved(tmp_path / str(rows), rows, tokens), device="cpu")


@pytest.mark.parametrize("use", ["pad", "template", "text"])
def test_added_tokens_that_are_written(tmp_path: Path, use: str) -> None:
    tokens = tokenizer()
    rows = len(tokens)
    if use == "pad":
        tokens.add_special_tokens({"pad_token": "<new>"})
    elif use == "template":
        tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<new>"]})
        tokens.chat_template = CHATML.replace("<|im_start|>", "<new>")
    else:
        tokens.add_tokens(["<new>"])
    with pytest.raises(ModelError, match=rf"writes '<new>' \({rows}\); .*resize_token_embeddings"):
        load_model(saved(tmp_path / "m", rows, tokens), device="cpu")


def test_special_tokens_that_nobody_writes_are_harmless(tmp_path: Path) -> None:
    # Gemma 3's text models: their tokenizer knows a token for images.
    tokens = tokenizer()
    rows = len(tokens)
    tokens.add_special_tokens({"additional_special_tokens": [*SPECIAL[1:2], "<image>"]})
    assert max(tokens.get_vocab().values()) == rows
    loaded, read = load_model(saved(tmp_path / "m", rows, tokens), device="cpu")
    m = IntervenedModel.plain(loaded, read)
    m.generate(["hi"], max_new_tokens=1)
    # Raw text may spell it.
    names_it = rf"'<image>' \({rows}\), and the model's embedding has {rows} rows"
    with pytest.raises(TokenError, match=names_it):
        m.generate(["hi <image>"], chat=False, max_new_tokens=1)
    ids = torch.tensor([[1, rows]])
    with pytest.raises(TokenError, match=names_it):
        m(ids)
    edited = fit(parse_spec(SPEC), model=loaded, tokenizer=read)
    with (
        pytest.raises(TokenError),
        edited.attached() as attached,
        pytest.raises(TokenError, match=f"hold {rows}, "),
    ):
        attached.generate(input_ids=ids, max_new_tokens=1)
    declared = parse_spec(SPEC.replace("positive: a", "positive: <image>"))
    with pytest.raises(TokenError, match=f"hold {rows}, "):
        fit(declared, model=loaded, tokenizer=read)


def test_a_model_that_is_given_is_checked_too() -> None:
    tokens = tokenizer()
    small, spec = model(len(tokens) - 1), parse_spec(SPEC)
    with pytest.raises(ModelError, match=r"model 'user/tiny': its embedding has"):
        fit(spec, model=small, tokenizer=tokens)
    m = fit(spec, model=model(len(tokens)), tokenizer=tokens)
    with pytest.raises(ModelError, match="its embedding has"):
        IntervenedModel.from_spec(spec, model=small, tokenizer=tokens, tensors=m.tensors)
    IntervenedModel.from_spec(spec, model=small, tensors=m.tensors)  # token ids are the caller's
