"""What a unit of work depends on: how texts are read, beside the weights."""

from __future__ import annotations

import copy
from typing import Any

import odd_templates as odd
import oracle
import pytest

from subvene.runner.models.chat_settings import with_chat
from subvene.runner.models.identity import reading_sha256
from subvene.specs import ModelSpec


def _template(tokenizer: Any, model: Any) -> Any:
    tokenizer.chat_template = tokenizer.chat_template + " "
    return tokenizer


def _fold(tokenizer: Any, model: Any) -> Any:
    return with_chat(tokenizer, ModelSpec(name="tiny", system="fold"))


def _token(tokenizer: Any, model: Any) -> Any:
    tokenizer.add_tokens(["<another>"])
    return tokenizer


def _end(tokenizer: Any, model: Any) -> Any:
    model.generation_config.eos_token_id = [3, 4]
    return tokenizer


@pytest.mark.parametrize("change", [_template, _fold, _token, _end])
def test_another_reading_is_another_unit(change: Any) -> None:
    model, tokenizer = oracle.tiny("llama"), odd.tokenizer(odd.NO_SYSTEM)
    before = reading_sha256(model, tokenizer)
    assert reading_sha256(model, copy.deepcopy(tokenizer)) == before
    assert reading_sha256(model, change(tokenizer, model)) != before
