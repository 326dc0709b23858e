from __future__ import annotations

import pytest

from subvene.runner.cli._words import positions_in_words, receipt_in_words
from subvene.specs import FirstTokens, LastTokens, Positions, TokenIndices


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("all", "every token"),
        ("prompt", "every prompt token"),
        ("response", "the last prompt token and every generated token"),
        ("last_prompt_token", "the last prompt token"),
        (FirstTokens(first=1), "the first prompt token"),
        (FirstTokens(first=3, of="response"), "the first 3 generated tokens"),
        (LastTokens(last=2), "the last 2 prompt tokens"),
        (LastTokens(last=2, of="response"), "the last 2 generated tokens (in scoring only)"),
        (TokenIndices(indices=(4,)), "prompt token 4, counted from 0"),
        (TokenIndices(indices=(0, 2, -1)), "prompt tokens 0, 2 and -1, counted from 0; -1 is the last"),
    ],
)
def test_positions_in_words(rule: Positions, words: str) -> None:
    assert positions_in_words(rule) == words


RECEIPT = {
    "name": "glad",
    "sites": ("block_output[1]",),
    "strengths": (2.0,),
    "edited": {"prompt": 1, "cursor": 2, "response": 3},
    "changed": 6,
    "mean_relative": 0.123,
    "max_relative": 0.5,
    "first": 4,
    "last": 9,
    "rows": 1,
    "rows_edited": 1,
}


def test_receipt_in_words() -> None:
    said = receipt_in_words(RECEIPT)
    assert said == (
        "glad at block_output[1]: edited 6 tokens (1 prompt, 2 cursor, 3 response; positions 4 to 9), "
        "‖Δ‖ 12.3% of ‖h‖ on average, at most 50.0%"
    )
    assert "in 2 of 5 rows" in receipt_in_words(RECEIPT | {"rows": 5, "rows_edited": 2})
    assert receipt_in_words(RECEIPT | {"changed": 2}).endswith("; 2 of them changed")
    assert receipt_in_words(RECEIPT | {"strengths": (0.0, 0.0)}).endswith("strength 0, nothing edited")
    assert "), strength 1.23 on average, ‖Δ‖ 12.3%" in receipt_in_words(RECEIPT | {"mean_strength": 1.2345})
    nowhere = dict.fromkeys(RECEIPT["edited"], 0)
    assert receipt_in_words(RECEIPT | {"edited": nowhere}).endswith("edited no token")
