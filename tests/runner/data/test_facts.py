"""Facts as tokens: the subject's, the answer's first, and what each token is to the fact."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
import transformers

from subvene.runner.data.facts import fact_tokens, roles_of
from subvene.runner.data.text import TextError
from subvene.specs import Fact

WORDS = ["<unk>", "<s>", "the", "sun", "moon", "big", "is", "very", "bright", "dark", "new", "ly"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Whole words, `newly` in two, `<s>` in front."""
    words = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(
            {word if word != "ly" else "##ly": i for i, word in enumerate(WORDS)}, unk_token="<unk>"
        )
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", WORDS.index("<s>"))]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>")


def test_tokens_and_their_roles(tokenizer: Any) -> None:
    fact = Fact(
        prompt="the newly big sun is very", subject="newly big sun", answer="bright dark", foil="dark"
    )
    found = fact_tokens(tokenizer, fact, "fact 0", foil=True)
    assert found.pieces == ("<s>", "the", "new", "ly", "big", "sun", "is", "very")
    assert (found.start, found.end) == (2, 6)
    assert (WORDS[found.answer], WORDS[found.foil or 0]) == ("bright", "dark")
    assert found.roles == (
        "before",
        "before",
        "first_subject",
        "middle_subject",
        "middle_subject",
        "last_subject",
        "first_after",
        "last",
    )
    assert found.swapped is None


def test_roles_where_there_are_few_tokens() -> None:
    assert roles_of(2, 0, 1) == ("last_subject", "last")
    assert roles_of(1, 0, 1) == ("last_subject",)
    assert roles_of(4, 0, 2) == ("first_subject", "last_subject", "first_after", "last")
    assert roles_of(5, 1, 2) == ("before", "last_subject", "first_after", "further", "last")
    assert roles_of(3, 0, 3) == ("first_subject", "middle_subject", "last_subject")


def test_another_subject_of_as_many_tokens(tokenizer: Any) -> None:
    fact = Fact(prompt="the sun is", subject="sun", answer="bright", swap="moon")
    found = fact_tokens(tokenizer, fact, "fact 0", swap=True)
    assert found.swapped is not None
    assert [WORDS[token] for token in found.swapped] == ["<s>", "the", "moon", "is"]


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        (
            {"swap": "newly", "foil": "dark"},
            "swap: expected a subject of 1 tokens, as the fact's has, found 2 ('newly')",
        ),
        ({"foil": "bright dark"}, "foil: 'bright dark' and the answer 'bright' begin with the same token"),
        ({"foil": "dark"}, "expected a `swap`, since the corruption is `swap`"),
        ({"swap": "moon"}, "expected a `foil`, since `metrics` has logit_difference"),
        ({"prompt": "<s> the sun is"}, "holds special tokens"),
        ({"answer": "green"}, "answer: 'green' begins with what the tokenizer does not know (<unk>)"),
        (
            {"prompt": "the star is", "subject": "star", "swap": "comet", "foil": "dark"},
            "swap: 'comet' has the subject's own tokens",
        ),
    ],
)
def test_what_cannot_be_traced_is_refused(tokenizer: Any, fact: dict[str, str], expected: str) -> None:
    declared = Fact.model_validate({"prompt": "the sun is", "subject": "sun", "answer": "bright"} | fact)
    with pytest.raises(TextError) as caught:
        fact_tokens(tokenizer, declared, "fact 3", swap=True, foil=True)
    assert "fact 3: " in str(caught.value)
    assert expected in str(caught.value)


def test_an_answer_that_the_tokenizer_joins_to_the_prompt_is_refused(tokenizer: Any) -> None:
    glued = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, " ": 1, " a": 2, "b": 3}, [(" ", "a")]))
    joining = transformers.PreTrainedTokenizerFast(tokenizer_object=glued)
    with pytest.raises(TextError, match="answer: behind the prompt, 'a' is no token of its own"):
        fact_tokens(joining, Fact(prompt="b ", subject="b", answer="a"), "fact 0")


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(TextError, match="use a fast tokenizer"):
        fact_tokens(Slow(), Fact(prompt="a b", subject="a", answer="c"), "fact 0")
