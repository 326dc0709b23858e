"""Preferences: read from files with every flaw named, and put into token ids exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subvene.runner.data.preferences import Preference, PreferenceError, encode, preferences_sha256, read_data
from subvene.runner.data.text import TextError
from subvene.runner.data.truthfulqa.questions import Question
from subvene.specs import TriplesSpec, TruthfulPairsSpec

ROW = {"prompt": "how are you", "chosen": "i am glad", "rejected": "sad"}
USER, ASSISTANT = {"role": "user", "content": "hello"}, {"role": "assistant", "content": "i am glad"}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[Preference]]:
    def of(*rows: Any, **fields: Any) -> Any:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return read_data(TriplesSpec(file="p.jsonl", **fields), tmp_path)

    return of


def test_rows_of_text_and_of_messages(read: Callable[..., list[Preference]]) -> None:
    bad = ASSISTANT | {"content": "sad"}
    assert read(ROW, "", {"prompt": [USER], "chosen": [USER, ASSISTANT], "rejected": "sad"}) == [
        Preference("how are you", "i am glad", "sad"),
        Preference([USER], "i am glad", "sad"),
    ]
    assert read({"chosen": [USER, ASSISTANT], "rejected": [USER, bad]}) == [
        Preference([USER], "i am glad", "sad")
    ]
    named = {"q": "hello", "good": "glad", "bad": "sad"}
    assert read(named, ROW | named, prompt="q", chosen="good", rejected="bad", limit=1) == [
        Preference("hello", "glad", "sad")
    ]


def test_the_forms_that_people_have(read: Callable[..., list[Preference]]) -> None:
    told = [{"role": "system", "content": "be good"}, USER]
    answer, bad = ASSISTANT["content"], ASSISTANT | {"content": "sad"}
    share = [{"from": "human", "value": "hello"}]
    one = {"from": "gpt", "value": answer}
    for row, prompt in (
        ({"prompt": "hello", "system_prompt": "be good", "chosen": answer, "rejected": "sad"}, told),
        ({"system": "be good", "chosen": [USER, ASSISTANT], "rejected": [USER, bad]}, told),
        ({"conversations": share, "chosen": one, "rejected": one | {"value": "sad"}}, [USER]),
        ({"instruction": "hello", "input": "you", "chosen": answer, "rejected": "sad"}, "hello\n\nyou"),
        ({"question": "hello", "positive": answer, "negative": "sad"}, "hello"),
        (
            {"prompt": "hello", "messages": [USER, ASSISTANT], "score_chosen": 3}
            | {"chosen": [USER, ASSISTANT], "rejected": [USER, bad]},
            "hello",
        ),
    ):
        assert read(row) == [Preference(prompt, answer, "sad")]
    found = read({"question": "hello", "chosen": answer, "rejected": "sad", "source": "x"})
    assert found.used.in_words() == (  # type: ignore[attr-defined]
        "prompt from question; chosen from chosen; rejected from rejected; not read: source"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"response": "other"}, ":2: response: a response beside the two answers"),
        (ROW | {"tools": ["t"]}, ":2: tools: the tools that a model may call cannot be used"),
        ("{", r"p\.jsonl:2: not JSON"),
        ([1], r"p\.jsonl:2: expected an object, found \[1\]"),
        ({"prompt": "a", "chosen": "b"}, r":2: expected the field 'rejected', found: prompt, chosen"),
        ({"chosen": "b", "rejected": "c"}, r":2: expected the field 'prompt'"),
        (ROW | {"chosen": " "}, ':2: chosen: expected text or messages, found " "'),
        (ROW | {"chosen": [USER]}, ":2: chosen: expected an assistant's answer as the last message"),
        (
            ROW | {"chosen": [{"role": 1}]},
            r":2: chosen\[0\]: expected an object with the texts",
        ),
        (ROW | {"prompt": 3}, ":2: prompt: expected text or messages, found 3"),
        (ROW | {"rejected": "i am glad"}, ":2: chosen and rejected are the same answer"),
        (
            {"chosen": [USER, ASSISTANT], "rejected": [USER | {"content": "x"}, ASSISTANT]},
            ":2: chosen and rejected answer different prompts",
        ),
    ],
)
def test_flaws_are_named(read: Callable[..., Any], row: Any, message: str) -> None:
    with pytest.raises(PreferenceError, match=message):
        read(ROW, row)


def test_a_file_that_is_not_there_or_holds_nothing(read: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(PreferenceError, match="beside the spec"):
        read_data(TriplesSpec(file="no.jsonl"), tmp_path)
    with pytest.raises(PreferenceError, match=r"p\.jsonl: holds no preference"):
        read("")


def test_token_ids(loaded: Any) -> None:
    _, tokenizer = loaded

    def text(ids: Any) -> str:
        return str(tokenizer.decode(ids))

    data = [Preference("how are you", "i am glad", "sad"), Preference([USER], "good", "bad")]
    first, second = encode(TriplesSpec(file="p.jsonl"), data, tokenizer)
    assert text(first.prompt) == "<s> user : how are you <s> assistant :"
    assert (text(first.chosen), text(first.rejected)) == ("i am glad </s>", "sad </s>")
    assert text(second.prompt) == "<s> user : hello <s> assistant :"
    assert first.key != second.key
    (raw,) = encode(TriplesSpec(file="p.jsonl", chat=False, end=False), data[:1], tokenizer)
    assert (text(raw.prompt), text(raw.chosen)) == ("how are you", "i am glad")
    tokenizer.eos_token = None
    with pytest.raises(TextError, match="end: false"):
        encode(TriplesSpec(file="p.jsonl"), data, tokenizer)


def test_truthfulqa_is_the_full_product(loaded: Any) -> None:
    _, tokenizer = loaded
    questions = [
        Question("is it rain ?", "sun", ("sun", "day"), ("rain", "train", "sad"), "Weather"),
        Question("how are you ?", "glad", ("glad",), ("bad",), "People"),
    ]
    spec = TruthfulPairsSpec.model_validate({"truthfulqa": {}})
    examples = encode(spec, questions, tokenizer)
    by_key = {question.key: question for question in questions}
    assert len(examples) == 7
    assert [example.key for example in examples] == sorted(example.key for example in examples)
    for question in by_key.values():
        mine = [example for example in examples if example.key == question.key]
        assert {(tokenizer.decode(e.chosen), tokenizer.decode(e.rejected)) for e in mine} == {
            (true, false) for true in question.correct for false in question.incorrect
        }
        assert {tokenizer.decode(e.prompt) for e in mine} == {
            tokenizer.decode(tokenizer(f"Q: {question.question}\nA:")["input_ids"])
        }
    chat = encode(spec.model_copy(update={"preset": "chat", "end": True}), questions[:1], tokenizer)
    assert tokenizer.decode(chat[0].prompt) == "<s> user : is it rain ? <s> assistant :"
    assert chat[0].chosen[-1] == tokenizer.eos_token_id
    assert preferences_sha256(questions) == preferences_sha256(questions[::-1])
    assert preferences_sha256(questions) != preferences_sha256(questions[:1])


def test_fewer_questions_and_pairs_are_some_of_all(loaded: Any) -> None:
    questions = [
        Question(
            f"is {word} good", "good", ("very good", "good", "i am glad"), ("bad", "sad", "very bad"), "c"
        )
        for word in ("rain", "the sun", "the day", "the train", "the world")
    ]

    def pairs(**fields: Any) -> list[Any]:
        spec = TruthfulPairsSpec.model_validate({"truthfulqa": {}} | fields)
        return encode(spec, questions, loaded[1])

    every, two = pairs(), pairs(per_question=2)
    assert (len(every), len(two)) == (45, 10)
    assert [example for example in every if example in two] == two
    assert pairs(per_question=9) == every
    some = pairs(limit=3)
    assert len({example.key for example in some}) == 3
    assert [example for example in every if example in some] == some
    # Neither the order of the questions nor that of other questions' answers matters.
    questions.reverse()
    assert pairs(per_question=2, limit=3) == [e for e in two if e.key in {s.key for s in some}]
