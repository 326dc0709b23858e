"""The words of a text, and what a question asks for: what features and generated answers are made of."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def listed(words: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(words.split())


NEGATIONS = listed(
    "no not never none nothing nobody neither nor cannot nowhere without false myth incorrect wrong untrue"
)
HEDGES = listed(
    """may might could some sometimes depends depending possibly perhaps usually often varies vary many
    unclear unknown likely probably generally most typically believed evidence proof scientific studies
    research"""
)
FUNCTION_WORDS = listed(
    """the a an of in on at to for and or is are was were be been it its that this these those with by from as
    do does did you your i they them their he his she her we our what which who when where why how if can will
    would"""
)
# A question that opens so is answered with yes or no.
YES_NO_OPENERS = listed("is are do does did can will was were has have should could")
QUESTION_WORDS = ("what", "who", "where", "when", "why", "how", "which")
_POLAR = listed("yes no nope not nothing none never nobody nowhere neither")


def normalise(text: str) -> str:
    """A text's words alone: what two answers share that say the same thing word for word."""
    return " ".join(re.findall(r"[a-z0-9]+", re.sub(r"['’]", "", text.lower())))


def words_of(text: str) -> list[str]:
    """Its words in lower case, contractions whole."""
    return _WORD.findall(text.lower().replace("’", "'"))


def content_words(text: str) -> frozenset[str]:
    """Its words that are no function words."""
    return frozenset(words_of(text)) - FUNCTION_WORDS


def negations(words: Sequence[str]) -> int:
    """How many words deny."""
    return sum(word in NEGATIONS or word.endswith("n't") for word in words)


def polarity(words: Sequence[str]) -> int:
    """1 for an answer that opens with yes, −1 with no."""
    return {"yes": 1, "no": -1, "nope": -1}.get(words[0], 0) if words else 0


def is_polar(word: str) -> bool:
    """Whether a word alone may be an answer: yes, no, nothing, none."""
    return normalise(word) in _POLAR


def is_yes_no(question: str) -> bool:
    """Whether a question opens as those do that are answered with yes or no."""
    return words_of(question)[:1] != [] and words_of(question)[0] in YES_NO_OPENERS


def closed(text: str) -> str:
    """With a period, so that it makes no difference which of two texts was written with one."""
    text = text.strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def together(question: str, answer: str) -> str:
    """A question and an answer as one text."""
    return f"{question.strip()} {closed(answer)}"


def sentences(text: str, most: int) -> list[str]:
    """Its first sentences, each closed; the text itself where it is one."""
    parts = [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if normalise(part)]
    return [closed(part) for part in parts[:most]] or [closed(text)]
