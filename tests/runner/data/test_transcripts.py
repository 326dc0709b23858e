"""Transcripts: every form is read alike, what is wrong is named, and statistics are the textbook's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from subvene.runner.data.span import Text
from subvene.runner.data.text import TextError, prompt_ids, response_ids
from subvene.runner.data.transcripts import (
    Columns,
    Transcript,
    TranscriptError,
    read_transcripts,
)
from subvene.runner.data.turn_statistics import against_scores, drift
from subvene.runner.data.turns import Turn, refuse_long, turns_of
from subvene.runner.files.statistics import correlation

TOLD = {"role": "system", "content": "be good"}
CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hello you"},
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": "i am glad"},
]


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def file(name: str, content: Any) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            lines = [row if isinstance(row, str) else json.dumps(row) for row in content]
            content = "\n".join(lines) if name.endswith(".jsonl") else f"[{', '.join(lines)}]"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return file


def pairs(transcripts: list[Transcript]) -> list[Any]:
    return [([m["content"] for m in t.messages], t.score) for t in transcripts]


def test_every_form_gives_the_same(file: Any) -> None:
    rows = [
        {"prompt": "hello, you", "response": "hello\nworld", "score": 3},
        {"prompt": "how", "response": "", "score": None},
    ]
    expected = [(["hello, you", "hello\nworld"], 3.0), (["how", ""], None)]
    table = 'prompt,response,score\n"hello, you","hello\nworld",3\nhow,,\n'
    for path in (file("a.jsonl", rows), file("a.json", rows), file("a.csv", table)):
        assert pairs(read_transcripts(path)) == expected
    renamed = [
        {"q": "hello, you", "completion": "hello\nworld", "judged": "3"},
        {"q": "how", "completion": ""},
    ]
    columns = Columns(prompt="q", score="judged")
    assert pairs(read_transcripts(file("b.jsonl", renamed), columns)) == expected
    marked = "\ufeff" + table.replace("\n", "\r\n")
    assert pairs(read_transcripts(file("c.csv", marked)))[0][1] == 3.0
    assert pairs(read_transcripts(file("d.jsonl", rows), limit=1)) == expected[:1]


def test_conversations_and_scores_of_turns(file: Any) -> None:
    scored = [*CHAT[:3], {**CHAT[3], "score": 70}]
    path = file("a.jsonl", [{"messages": CHAT, "score": "12.5"}, {"messages": scored, "prompt": "hello"}])
    first, second = read_transcripts(path)
    assert (first.score, dict(first.scores), first.turns) == (12.5, {}, [1, 3])
    assert (second.score, dict(second.scores)) == (None, {3: 70.0})
    assert first.where == f"{path}:1"
    in_csv = file("a.csv", 'messages,n\n"' + json.dumps(CHAT).replace('"', '""') + '",1\n')
    assert read_transcripts(in_csv)[0].messages == first.messages
    told = file("b.jsonl", [{"system": "be good", "question": "hello", "answer": "hello"}])
    assert [m["role"] for m in read_transcripts(told)[0].messages] == ["system", "user", "assistant"]
    of_messages = file("c.jsonl", [{"prompt": CHAT[:3], "response": "i am glad"}])
    assert [m["content"] for m in read_transcripts(of_messages)[0].messages] == [m["content"] for m in CHAT]


def test_the_forms_that_people_have(file: Any) -> None:
    """Each column that means something is in the conversation; the others are named."""
    share = [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in CHAT]
    rows = {
        "system_prompt": {"system_prompt": "be good", "question": "hello", "answer": "hello you"},
        "messages": {"messages": CHAT[:2], "system": "be good", "prompt_id": "x"},
        "sharegpt": {"conversations": share[:2], "system": "be good"},
        "alpaca": {"instruction": "hello", "input": "", "output": "hello you", "system": "be good"},
    }
    for name, row in rows.items():
        (found,) = read_transcripts(file(f"{name}.jsonl", [row]))
        assert list(found.messages) == [TOLD, *CHAT[:2]], name
    (both,) = read_transcripts(file("b.jsonl", [{"instruction": "hello", "input": "world", "output": "you"}]))
    assert both.messages[0]["content"] == "hello\n\nworld"
    (whole,) = read_transcripts(file("c.jsonl", [{"conversations": share}]))
    assert list(whole.messages) == CHAT
    read = read_transcripts(file("d.jsonl", [{"question": "a", "answer": "b", "topic": 1, "score": 2}]))
    assert read.used.to_dict() == {
        "read": {"prompt": ["question"], "response": ["answer"], "score": ["score"]},
        "said_again": [],
        "not_read": ["topic"],
    }


def test_a_text_that_the_template_made_is_its_conversation(loaded: Any, file: Any) -> None:
    tokenizer = loaded[1]
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    of_text = turns_of(tokenizer, read_transcripts(file("a.jsonl", [{"text": text, "n": 1}])))
    of_messages = turns_of(tokenizer, read_transcripts(file("b.jsonl", [{"messages": CHAT}])))
    assert [turn.read for turn in of_text] == [turn.read for turn in of_messages]
    with pytest.raises(TranscriptError, match=r"a.jsonl:1: the text is no conversation"):
        turns_of(tokenizer, read_transcripts(file("a.jsonl", [{"text": "hello world"}])))


WRONG = [
    ("a.jsonl", [{"prompt": "a", "response": "b"}, "{"], {}, r"a.jsonl:2: not JSON"),
    ("a.jsonl", [["a"]], {}, r"a.jsonl:1: expected a row with columns, found \[\"a\"\]"),
    ("a.jsonl", [{"words": "b"}], {}, r"a.jsonl:1: expected `messages`.*the columns are: words"),
    ("a.jsonl", [{"messages": CHAT, "prompt": "other"}], {}, r"a.jsonl:1: prompt: says what the conv"),
    ("a.jsonl", [{"prompt": "a", "response": "b", "text": "c"}], {}, r"text: says what prompt and resp"),
    ("a.jsonl", [{"messages": CHAT, "response": "i am glad. More."}], {}, "response: says what the"),
    ("a.jsonl", [{"messages": CHAT, "response": "how are you"}], {}, "response: says what the"),
    ("a.jsonl", [{"messages": CHAT, "reasoning": "i am glad"}], {}, "reasoning: says what the"),
    ("a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}], {}, r"chosen: .*say which answer"),
    ("a.jsonl", [{"messages": [TOLD, *CHAT], "system": "b"}], {}, r"another system"),
    ("a.jsonl", [{"prompt": "a", "response": 3}], {}, r"a.jsonl:1: response: expected text, found 3"),
    ("a.jsonl", [{"prompt": " ", "response": "b"}], {}, r"a.jsonl:1: prompt: expected non-empty text"),
    ("a.jsonl", [{"prompt": "a", "response": "b"}], {"prompt": "q"}, r"a.jsonl:1: no column 'q'; there is"),
    ("a.jsonl", [{"prompt": "a", "response": "b"}], {"system": "s"}, r"a.jsonl:1: no column 's'"),
    ("a.jsonl", [{"prompt": "a", "response": "b"}], {"score": "s"}, r"no row has a number in the column 's'"),
    ("a.jsonl", [{"prompt": "a", "response": "b", "score": "high"}], {}, r"a.jsonl:1: score: .* \"high\""),
    ("a.jsonl", [{"messages": [{"role": "user"}]}], {}, r"messages\[0\]: expected an object with the texts"),
    ("a.jsonl", [{"messages": [{"role": "user", "content": None}]}], {}, r"a.jsonl:1: messages\[0\]"),
    ("a.json", "{}", {}, r"a.json: expected a list of rows"),
    ("a.json", [{"prompt": "a"}], {}, r"a.json: \[0\]: expected"),
    ("a.csv", "prompt,response\nx,y\n\na,b,c\n", {}, r"a.csv:4: expected 2 fields, .* found 3"),
    ("a.csv", "prompt,response\na\n", {}, r"a.csv:2: expected 2 fields, .* found 1"),
    ("a.csv", 'prompt,response\na,"b\nc\n', {}, r"a.csv:2: not CSV"),
    ("a.csv", "prompt,prompt,response\na,b,c\n", {}, r"a.csv:1: there are two columns called 'prompt'"),
    ("a.csv", b"prompt,response\n\xff,b\n", {}, r"a.csv: not UTF-8"),
    ("a.jsonl", "\n", {}, r"a.jsonl: holds no row"),
    ("a.txt", "x", {}, r"a.txt: expected a file that ends in"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "columns", "said"), WRONG)
def test_what_is_wrong_is_named(file: Any, name: str, content: Any, columns: Any, said: str) -> None:
    with pytest.raises(TranscriptError, match=said):
        read_transcripts(file(name, content), Columns(**columns))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match=r"none.csv: cannot be read"):
        read_transcripts(tmp_path / "none.csv")


def test_turns_are_read_after_what_the_model_had_read(loaded: Any, file: Any) -> None:
    tokenizer = loaded[1]
    transcripts = read_transcripts(
        file("a.jsonl", [{"messages": CHAT}, {"prompt": "hello world", "response": "good day"}])
    )
    turns = turns_of(tokenizer, transcripts)
    assert [(turn.transcript, turn.turn, turn.text) for turn in turns] == [
        (0, 0, "hello you"),
        (0, 1, "i am glad"),
        (1, 0, "good day"),
    ]
    for turn, before in zip(turns, (CHAT[:1], CHAT[:3], "hello world"), strict=True):
        read = turn.read
        assert list(read.ids[: read.start]) == prompt_ids(tokenizer, before)
        assert list(read.ids[read.start : read.end]) == response_ids(tokenizer, turn.text)
        assert read.end == len(read.ids)
    raw = turns_of(tokenizer, transcripts[1:], chat=False)[0].read
    assert list(raw.ids[: raw.start]) == tokenizer("hello world")["input_ids"]


def test_conversations_that_have_no_turn_to_read(loaded: Any, file: Any) -> None:
    tokenizer = loaded[1]
    for messages, said in [
        (CHAT[:1], "there is no turn of the role `assistant`"),
        (CHAT[1:], "begins with the assistant"),
    ]:
        with pytest.raises(TranscriptError, match=rf"a.jsonl:1: .*{said}"):
            turns_of(tokenizer, read_transcripts(file("a.jsonl", [{"messages": messages}])))
    with pytest.raises(TranscriptError, match=r"a.jsonl:1: .*chat template"):
        turns_of(tokenizer, read_transcripts(file("a.jsonl", [{"messages": CHAT}])), chat=False)
    tokenizer.chat_template = "{{ raise_exception('not so') }}"
    with pytest.raises(TranscriptError, match=r"a.jsonl:1: .*not so"):
        turns_of(tokenizer, read_transcripts(file("a.jsonl", [{"messages": CHAT}])))


# Statistics -----------------------------------------------------------------------------------------------


def of(*conversations: int, scores: Any = None) -> list[Turn]:
    """So many turns in each conversation."""
    turns = [
        Turn(c, n, "", Text((1, 2), 1, 2), None)
        for c, count in enumerate(conversations)
        for n in range(count)
    ]
    if scores is None:
        return turns
    return [Turn(t.transcript, t.turn, "", t.read, s) for t, s in zip(turns, scores, strict=True)]


def test_drift_is_the_least_squares_slope_of_each_conversation() -> None:
    values = [1.0, 2.0, 4.0, 5.0, 3.0, 7.0, math.nan, 9.0]
    found = drift(values, of(3, 2, 1, 2))
    slopes = [np.polyfit(range(3), values[:3], 1)[0], -2.0]
    assert list(found["slopes"]) == [0, 1]  # one turn, and one with an empty turn, have none
    assert list(found["slopes"].values()) == pytest.approx(slopes)
    assert found["mean_slope"] == pytest.approx(np.mean(slopes))
    assert found["standard_error"] == pytest.approx(np.std(slopes, ddof=1) / math.sqrt(2))
    assert found["conversations"] == 2
    assert found["by_turn"] == [
        {"turn": 0, "n": 3, "mean": pytest.approx((1 + 5 + 7) / 3)},
        {"turn": 1, "n": 3, "mean": pytest.approx((2 + 3 + 9) / 3)},
        {"turn": 2, "n": 1, "mean": 4.0},
    ]
    nothing = drift([1.0], of(1))
    assert (nothing["mean_slope"], nothing["standard_error"], nothing["conversations"]) == (None, None, 0)


def test_correlation_with_scores_of_rows_or_of_turns() -> None:
    def rows(*scores: float | None) -> list[Transcript]:
        return [Transcript("", (), score, {}) for score in scores]

    values = [1.0, 3.0, 10.0, 0.0, math.nan, 5.0]
    by_row = against_scores(values, of(2, 1, 1, 1, 1), rows(1.0, 2.0, 0.5, 9.0, None))
    means, scores = [2.0, 10.0, 0.0], [1.0, 2.0, 0.5]
    assert by_row == {
        "unit": "row",
        "pearson": pytest.approx(np.corrcoef(means, scores)[0, 1]),
        "spearman": pytest.approx(1.0),
        "n": 3,
    }
    turns = of(2, 1, 1, 1, 1, scores=[3, 2, 1, None, 5, 4])
    by_turn = against_scores(values, turns, rows(1.0, 2.0, 0.5, 9.0, None))
    assert (by_turn["unit"], by_turn["n"]) == ("turn", 4)  # type: ignore[index]
    assert against_scores(values, of(2, 1, 1, 1, 1), rows(*[None] * 5)) is None
    assert correlation([1, 2], [1, 2]) == {"pearson": None, "spearman": None, "n": 2}
    assert correlation([1, 1, 1], [1, 2, 3])["pearson"] is None


def test_turns_beyond_the_context_are_refused_with_a_count(loaded: Any, file: Any) -> None:
    model, tokenizer = loaded
    rows = [
        {"prompt": "hello", "response": "you"},
        {"prompt": "hello " * 40, "response": "you"},
        {"messages": [*CHAT[:2], {"role": "user", "content": "how " * 40}, CHAT[3]]},
    ]
    transcripts = read_transcripts(file("a.jsonl", rows))
    turns = turns_of(tokenizer, transcripts)
    refuse_long(model, turns, transcripts)
    model.config.max_position_embeddings = 32
    with pytest.raises(
        TextError, match=r"a.jsonl:2: turn 0 ends at token 47 .*at most 32; so do 1 further turns of 4"
    ):
        refuse_long(model, turns, transcripts)
    refuse_long(model, turns, transcripts, [len(turn.read.ids[:32]) for turn in turns])
