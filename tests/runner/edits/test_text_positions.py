"""Which tokens a text has, whatever the tokenizer makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
import transformers

from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.text_positions import places_of
from subvene.specs import FieldTokens, LastOf, SpanTokens


@pytest.fixture(scope="module")
def byte_level() -> Any:
    """Bytes are tokens, but for two words with a space; letters beyond ASCII are several tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("Ġ", "e"), ("Ġe", "n"), ("Ġen", "d")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("the", [4]),
        (" the", [4]),
        ("the end", [4, 5]),
        ("é", [2, 3]),
        ("€", [6, 7, 8]),
    ],
)
def test_tokens_that_share_a_character_belong_to_the_text(
    byte_level: Any, span: str, expected: list[int]
) -> None:
    ids = byte_level("xfé the end€")["input_ids"]
    assert places_of(SpanTokens(span=span), byte_level, ids, None, "row 0") == expected
    assert places_of(LastOf(last_of=SpanTokens(span=span)), byte_level, ids, None, "row 0") == expected[-1:]
    data = {"what": span}
    assert places_of(FieldTokens(field="what"), byte_level, ids, data, "row 0") == expected


@pytest.mark.parametrize(("span", "words"), [("café", "does not stand"), ("e", "stands 2 times")])
def test_a_text_that_does_not_stand_there_once(byte_level: Any, span: str, words: str) -> None:
    ids = byte_level("xfé the end€")["input_ids"]
    with pytest.raises(PositionError, match=f"row 3: .* {words} in the prompt"):
        places_of(SpanTokens(span=span), byte_level, ids, None, "row 3")
