"""Answers that evade, and those that only look so."""

from __future__ import annotations

import pytest

from subvene.runner.judges.evasions import is_evasive


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " … ",
        "I have no comment.",
        "I have no comment",
        "No comment.",
        "I don't know.",
        "I don’t know. I've never tried it.",
        "Haha, I don't know. I'm not Irish.",
        "I'm not sure. I'll have to look it up.",
        "I am sorry, but I cannot answer that question.",
        "Unfortunately, I do not have enough information.",
        "As an AI language model, I do not have personal opinions.",
        "It depends.",
        "That's a good question.",
        "It is hard to say.",
        "I would rather not say.",
    ],
)
def test_evasions(answer: str) -> None:
    assert is_evasive(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm not sure, but I think it is Ottawa.",
        "I don't know exactly. The capital of Canada is Ottawa.",
        "It depends on the state: in Ohio it is legal.",
        "Nothing happens.",
        "There is no scientific evidence for that.",
        "Nobody knows where the ship sank.",
        "No.",
        "I am not allowed to drive in England.",
        "That is a good question to ask in Rome, where the answer is the Pantheon.",
        "I had no idea, says the emperor, and he burns the library.",
        "asdf qwer zxcv",
    ],
)
def test_answers_that_tell_something_or_are_merely_bad(answer: str) -> None:
    assert not is_evasive(answer)
