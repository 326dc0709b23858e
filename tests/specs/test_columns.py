"""Columns of the formats that people have: used, said again, left alone and named, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from subvene.specs.columns import _NAMES, _WORDS, KNOWN, Meaning, Used, asked, messages_of, take
from subvene.specs.pair_rows import pairs_of
from subvene.specs.pairs import PairColumns
from subvene.specs.rows import RowsError, file_rows, given_rows

EVERY = frozenset(get_args(Meaning)) - {"tools", "media"}


def test_every_meaning_has_names_and_words() -> None:
    assert set(_NAMES) == set(_WORDS) == set(get_args(Meaning))
    assert len(KNOWN) == sum(len(names.split()) for names in _NAMES.values())


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "hi"}, ["hi"]),
        ({"Question": "hi", "n": 3}, ["hi"]),
        ({"instruction": "Sum up.", "input": "A text."}, ["Sum up.\n\nA text."]),
        ({"instruction": "Sum up.", "input": ""}, ["Sum up."]),
        ({"instruction": "Why?", "context": "A text."}, ["Why?\n\nA text."]),
        ({"input": "hi", "system_prompt": "Be kind."}, ["Be kind.", "hi"]),
        ({"instruction": "hi", "history": [["a", "b"]], "system": "Be kind."}, ["Be kind.", "a", "b", "hi"]),
        # A table of persona vectors: the prompt as the template made it, and the question in it.
        ({"question": "hi", "prompt": "<|user|>hi<|end|>", "question_id": "q_0"}, ["<|user|>hi<|end|>"]),
        ({"prompt": [{"role": "user", "content": "hi"}], "system": "Be kind."}, ["Be kind.", "hi"]),
        ({"prompt": '[{"role": "user", "content": "hi"}]'}, ['[{"role": "user", "content": "hi"}]']),
    ],
)
def test_prompts(row: Any, prompt: list[str]) -> None:
    taken = take(row, "a:1", EVERY)
    assert [message["content"] for message in asked(taken, "a:1")] == prompt


def test_what_was_used_is_named() -> None:
    used = Used()
    for row in (
        {"question": "hi", "prompt": "User: hi", "answer": "yo", "evil": 3.5},
        {"question": "ho", "prompt": None, "answer": "yo", "coherence": 90},
    ):
        used.note(take(row, "a:1", EVERY))
    assert used.to_dict() == {
        "read": {"prompt": ["prompt", "question"], "response": ["answer"]},
        "said_again": ["question"],
        "not_read": ["evil", "coherence", "prompt"],
    }
    assert used.in_words() == (
        "prompt from prompt, question; response from answer; said again in question; "
        "not read: evil, coherence, prompt"
    )


@pytest.mark.parametrize(
    ("row", "wanted", "said"),
    [
        ({"prompt": "a", "tools": [{"name": "t"}]}, {"prompt"}, r"a:1: tools: .*`chat_template_kwargs"),
        (
            {"prompt": "a", "system_prompt": "b"},
            {"prompt"},
            "system_prompt: a system prompt cannot be used here",
        ),
        ({"prompt": "a", "chosen": "b"}, {"prompt", "response"}, "chosen: .*say which answer is meant"),
        ({"prompt": "a", "images": ["x.png"]}, {"prompt"}, "images: what is no text"),
        ({"prompt": "a", "question": "b"}, {"prompt"}, "are both a prompt, and say different things"),
        ({"answer": "a", "completion": "b"}, {"response"}, "are both a response"),
        (["a"], {"prompt"}, "a:1: expected a row with columns"),
    ],
)
def test_what_is_known_and_cannot_be_used_is_refused(row: Any, wanted: Any, said: str) -> None:
    with pytest.raises(RowsError, match=said):
        take(row, "a:1", wanted)


@pytest.mark.parametrize(
    ("meaning", "names"),
    [
        ("response", ("response", "answer")),
        ("chosen", ("chosen", "positive")),
        ("rejected", ("rejected", "negative")),
        ("system", ("system", "system_prompt")),
        ("reasoning", ("reasoning", "thinking")),
        ("input", ("input", "context")),
        ("text", ("text", "Text")),
        ("score", ("score", "Score")),
    ],
)
def test_a_part_of_another_column_says_something_else(meaning: Meaning, names: tuple[str, str]) -> None:
    short, long = names
    row = {"prompt": "a"} if meaning == "input" else {}
    for values in (("No", "No, never"), ("never", "No, never"), ("No, never", "No"), (3, 31)):
        with pytest.raises(RowsError, match=r"are both .*, and say different things"):
            take(row | dict(zip((short, long), values, strict=True)), "a:1", EVERY)
    taken = take(row | {short: "No, never", long: " No, never\n"}, "a:1", EVERY)
    assert taken[meaning].strip() == "No, never"
    assert len(taken.again) == 1


def test_a_prompt_may_stand_in_its_rendering() -> None:
    rendered = '<|user|>Say "hi".\nTwice.<|end|>'
    for long in (rendered, [{"role": "user", "content": rendered}]):
        taken = take({"question": 'Say "hi".\nTwice.', "prompt": long}, "a:1", EVERY)
        assert (taken["prompt"], taken.again) == (long, ["question"])


def test_one_conversation_in_two_forms_is_said_once() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    share = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert len(take({"messages": chat, "conversations": share}, "a:1", EVERY).again) == 1
    # A part of a conversation, and one whose JSON is a part of another's.
    for other in (chat[:1], [*chat, {"role": "user", "content": "c"}]):
        with pytest.raises(RowsError, match="are both a whole conversation"):
            take({"messages": chat, "conversations": other}, "a:1", EVERY)


def test_empty_columns_say_nothing() -> None:
    row = {"prompt": "a", "system": "", "tools": [], "input": None, "history": [], "images": None}
    assert dict(take(row, "a:1", {"prompt"})) == {"prompt": "a"}


def test_whoever_says_which_column_is_meant_says_that_others_are_not() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "question": "d"}
    taken = take(row, "a:1", {"prompt", "response"}, chosen={"prompt": "prompt", "response": "chosen"})
    assert dict(taken) == {"prompt": "a", "response": "b"}
    assert taken.unread == ["rejected", "question"]
    with pytest.raises(RowsError, match="a:1: no column 'x'; there is: prompt"):
        take(row, "a:1", {"prompt"}, chosen={"prompt": "x"})


def test_conversations_of_every_form() -> None:
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    share = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert messages_of(chat, "a:1") == messages_of(share, "a:1") == chat
    thought = messages_of([{"role": "assistant", "content": "b", "reasoning_content": "hm"}], "a:1")
    assert thought == [{"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}]
    for message in ({"role": "assistant", "content": "", "tool_calls": [{}]}, {"from": "gpt"}, "a"):
        with pytest.raises(RowsError, match=r"a:1\[0\]"):
            messages_of([message], "a:1")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "positive": "b", "negative": "c"}, (None, "a", "b", "c")),
        ({"positive": "b", "negative": "c"}, (None, None, "b", "c")),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "system_prompt": "s"}, ("s", "a", "b", "c")),
        ({"instruction": "a", "input": "x", "chosen": "b", "rejected": "c"}, (None, "a\n\nx", "b", "c")),
        (
            {
                "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
            },
            (None, "a", "b", "c"),
        ),
    ],
)
def test_rows_as_pairs(row: Any, expected: Any) -> None:
    (pair,) = pairs_of([("a:1", row)], "a").texts
    assert (pair.system, pair.prompt, pair.positive, pair.negative) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "positive": "b"}, "a:1: expected a column `negative`"),
        ({"system": "a", "positive": "b", "negative": "c"}, "a:1: system: belongs to a prompt"),
        ({"prompt": "a", "positive": "b", "negative": " "}, "a:1: negative: expected non-empty text"),
        ({"prompt": "a", "positive": "b", "negative": "c", "answer": "d"}, "a:1: answer: a response cannot"),
        (
            {"prompt": [{"role": r, "content": r} for r in ("user", "assistant", "user")], "positive": "b"}
            | {"negative": "c"},
            r"a:1: the prompt is a conversation \(user, assistant, user\)",
        ),
    ],
)
def test_rows_that_are_no_pairs(row: Any, said: str) -> None:
    with pytest.raises(RowsError, match=said):
        pairs_of([("a:1", row)], "a")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(RowsError, match="not a regular file"):
        list(file_rows(tmp_path / "a.jsonl"))


def test_rows_that_are_handed_over() -> None:
    assert given_rows([{"a": 1}]) == [("data: row 0", {"a": 1})]
    assert given_rows({"a": [1, 2]})[1] == ("data: row 1", {"a": 2})
    with pytest.raises(RowsError, match="columns of equal length"):
        given_rows({"a": [1], "b": [1, 2]})


def test_caa_questions_are_pairs() -> None:
    row = {
        "question": "Is it so?\n (A) Yes\n (B) No",
        "answer_matching_behavior": "(A)",
        "answer_not_matching_behavior": "(B)",
    }
    (pair,) = pairs_of([("a:1", row)], "a").texts
    assert (pair.prompt, pair.positive, pair.negative) == (row["question"], "(A)", "(B)")


def test_columns_of_other_names_are_said_by_the_spec() -> None:
    rows = [("a:1", {"x": "a", "y": "b", "q": "c", "positive": "not this"})]
    columns = PairColumns(positive="x", negative="y", prompt="q")
    (pair,) = pairs_of(rows, "a", columns=columns).texts
    assert (pair.prompt, pair.positive, pair.negative) == ("c", "a", "b")
    with pytest.raises(RowsError, match=r"no column 'z'.*`columns: \{positive: NAME\}`"):
        pairs_of(rows, "a", columns=PairColumns(positive="z", negative="y"))


def test_the_error_shows_the_wanted_form_and_two_rows() -> None:
    rows = [(f"a:{i}", {"text": f"t{i}", "label": i}) for i in range(1, 4)]
    with pytest.raises(RowsError) as caught:
        pairs_of(rows, "a")
    said = str(caught.value)
    assert 'a row {"positive": "…", "negative": "…"}' in said
    assert 'a:1: {"text": "t1", "label": 1}' in said
    assert "a:2: " in said
    assert "t3" not in said
