"""Text to token ids: templates, the boundary between prompt and response, padding."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from subvene.runner.data.text import TextError, by_length, pad, pad_id_of, prompt_ids, response_ids


@pytest.fixture
def tokenizer(loaded: tuple[Any, Any]) -> Any:
    return loaded[1]


@pytest.fixture
def plain(tokenizer: Any) -> Any:
    """The same tokenizer without a chat template."""
    without = copy.deepcopy(tokenizer)
    without.chat_template = None
    return without


def words(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


# Prompts --------------------------------------------------------------------------------------------------


def test_a_string_is_put_into_the_template_and_raw_text_is_not(tokenizer: Any) -> None:
    chat = "<s> user : hello world <s> assistant :"
    assert words(tokenizer, prompt_ids(tokenizer, "hello world")) == chat
    assert words(tokenizer, prompt_ids(tokenizer, "hello world", chat=True)) == chat
    assert words(tokenizer, prompt_ids(tokenizer, "hello world", chat=False)) == "hello world"


def test_without_a_template_a_string_is_raw_text(plain: Any) -> None:
    assert words(plain, prompt_ids(plain, "hello world")) == "hello world"


def test_a_system_prompt_comes_first(tokenizer: Any) -> None:
    ids = prompt_ids(tokenizer, "hello", system="not happy")
    assert words(tokenizer, ids) == "<s> system : not happy <s> user : hello <s> assistant :"


def test_messages_keep_their_roles_and_are_not_changed(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "good day"},
        {"role": "user", "content": "how are you"},
    ]
    given = copy.deepcopy(messages)
    ids = prompt_ids(tokenizer, messages, system="sad")
    assert words(tokenizer, ids) == (
        "<s> system : sad <s> user : hello <s> assistant : good day <s> user : how are you <s> assistant :"
    )
    assert messages == given


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("hello", {"chat": True}),
        ("hello", {"system": "sad"}),
        ([{"role": "user", "content": "hello"}], {}),
    ],
    ids=["chat", "system", "messages"],
)
def test_a_chat_without_a_template_is_refused(plain: Any, prompt: Any, options: dict[str, Any]) -> None:
    with pytest.raises(TextError, match="no chat template"):
        prompt_ids(plain, prompt, **options)


def test_a_system_prompt_for_raw_text_is_refused_and_not_a_chat_after_all(tokenizer: Any) -> None:
    with pytest.raises(TextError, match="chat=False"):
        prompt_ids(tokenizer, "hello", system="sad", chat=False)


def test_an_empty_prompt_is_refused(tokenizer: Any) -> None:
    with pytest.raises(TextError, match="prompt '' is empty"):
        prompt_ids(tokenizer, "", chat=False)
    # In a chat there is always something to continue.
    assert words(tokenizer, prompt_ids(tokenizer, "")) == "<s> user : <s> assistant :"


# The boundary ---------------------------------------------------------------------------------------------


class _AddsSpecials:
    """A tokenizer that puts 1 before and 2 behind whatever it is given, as Llama's does with its BOS."""

    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text]
        return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}


def test_a_response_gets_no_special_tokens_and_a_prompt_does() -> None:
    assert prompt_ids(_AddsSpecials(), "ab") == [1, 97, 98, 2]
    assert response_ids(_AddsSpecials(), "cd") == [99, 100]
    assert response_ids(_AddsSpecials(), "") == []


@pytest.mark.slow
@pytest.mark.parametrize("response", ["ing is fun", " and on", "\n"])
def test_the_boundary_of_a_real_tokenizer_is_exact(smollm2: Any, response: str) -> None:
    """Tokenised together, `Swimm` + `ing` would merge across the boundary."""
    tokenizer = smollm2[1]
    prompt, reply = prompt_ids(tokenizer, "Swimm", chat=False), response_ids(tokenizer, response)
    assert tokenizer.decode(prompt) == "Swimm"
    assert tokenizer.decode(reply) == response
    chat = prompt_ids(tokenizer, "Swimm")
    assert tokenizer.decode(chat).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode([*chat, *reply]) == tokenizer.decode(chat) + response


# Padding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("left", [[5, 6, 7], [9, 9, 8], [9, 0, 9]], [[1, 1, 1], [0, 0, 1], [0, 1, 1]]),
        ("right", [[5, 6, 7], [8, 9, 9], [0, 9, 9]], [[1, 1, 1], [1, 0, 0], [1, 1, 0]]),
    ],
)
def test_padding(side: str, ids: list[list[int]], mask: list[list[int]]) -> None:
    """The id that pads may be a real token too: the mask tells, not the id."""
    batch = pad([[5, 6, 7], [8], [0, 9]], [2, 1, 1], 9, side)
    assert batch.input_ids.tolist() == ids
    assert batch.attention_mask.tolist() == mask
    assert batch.prompt_lengths.tolist() == [2, 1, 1]


def test_a_batch_moves_as_a_whole() -> None:
    moved = pad([[5, 6], [8]], [1, 1], 0, "left").to("meta")
    assert {t.device.type for t in (moved.input_ids, moved.attention_mask, moved.prompt_lengths)} == {"meta"}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}, 0),
        ({"pad_token_id": None, "eos_token_id": 2, "bos_token_id": 1}, 2),
        ({"pad_token_id": None, "eos_token_id": None, "bos_token_id": 1}, 1),
        ({"pad_token_id": None, "eos_token_id": None, "bos_token_id": None}, 0),
        ({}, 0),
    ],
)
def test_the_id_that_pads(ids: dict[str, Any], expected: int) -> None:
    assert pad_id_of(SimpleNamespace(**ids)) == expected


def test_by_length() -> None:
    assert by_length([3, 9, 1, 9, 5], 2) == [[1, 3], [4, 0], [2]]
    assert by_length([3, 1], 8) == [[0, 1]]
    assert by_length([], 4) == []
