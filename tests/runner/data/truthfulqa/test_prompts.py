"""Prompts: their text, and token ids that are cut at the same places by every tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from subvene.runner.data.truthfulqa.prompts import PromptError, Prompts, load_prompts, parse_primer

NOWHERE = Path("nowhere")
ASKED = ["Do cats fly?", 'Who said, "Meow"?', "7 is what?", "A: is what?"]
TOKENIZERS = pytest.mark.parametrize("kind", ["words", "merging", "spaced"])
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
DROPPING = TEMPLATE.replace("%}<{{", "%}{% if m['role'] != 'system' %}<{{").replace(
    "</s>{% endfor", "</s>{% endif %}{% endfor"
)


def small(preset: Any = "instruction_qa") -> Prompts:
    return Prompts(preset, (("What is a cat?", "An animal."), ("Do cats fly?", "No.")), "Answer well.")


def test_text() -> None:
    expected = "Q: What is a cat?\nA: An animal.\n\nQ: Do cats fly?\nA: No.\n\nQ: What?\nA:"
    assert small().text("What?") == f"Answer well.\n\n{expected}"
    assert Prompts("qa", small().primer, None).text("What?") == expected
    with pytest.raises(PromptError, match="template"):
        small("chat").text("What?")


def test_what_is_shipped() -> None:
    prompts = load_prompts("instruction_qa", None, None, NOWHERE)
    assert len(prompts.primer) == 6
    assert "I have no comment." in [answer for _, answer in prompts.primer]
    assert "I have no comment" in prompts.instruction
    assert load_prompts("qa", None, None, NOWHERE).instruction is None
    assert load_prompts("chat", None, None, NOWHERE).primer == prompts.primer


def test_what_is_shipped_is_not_what_was_published(data: Path) -> None:
    ours = load_prompts("instruction_qa", None, None, NOWHERE)
    theirs = load_prompts("instruction_qa", "primer_qa.txt", "instruction.txt", data)
    assert len(theirs.primer) == 6
    assert not {q for q, _ in ours.primer} & {q for q, _ in theirs.primer}
    assert ours.instruction != theirs.instruction
    # The published files, put together again, are the published prompt.
    published = (data / "primer_qa.txt").read_text().strip()
    instruction = (data / "instruction.txt").read_text().strip()
    assert theirs.text("What?") == f"{instruction}\n\n{published}\n\nQ: What?\nA:"


@TOKENIZERS
@pytest.mark.parametrize("preset", ["qa", "instruction_qa"])
def test_ids_are_those_of_the_whole_prompt(kind: str, preset: Any, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    prompts = load_prompts(preset, None, None, NOWHERE)
    encoded = prompts.encode(tokenizer, ASKED)
    # The tokenizer's own beginning of a text, once.
    assert [list(ids) for ids in encoded.prompts] == [
        tokenizer(prompts.text(question))["input_ids"] for question in ASKED
    ]
    assert all(ids[: len(encoded.shared)] == encoded.shared for ids in encoded.prompts)
    assert all(len(ids) > len(encoded.shared) for ids in encoded.prompts)
    # All but the question itself is shared, whatever the tokenizer merges around it.
    own = len(tokenizer(f"Q: {ASKED[0]}\nA:", add_special_tokens=False)["input_ids"])
    assert len(encoded.prompts[0]) - len(encoded.shared) <= own + 3


@TOKENIZERS
def test_the_cut_is_the_same_for_every_set_of_questions(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer, prompts = request.getfixturevalue(kind), small()
    shared = prompts.encode(tokenizer, ASKED).shared
    assert prompts.encode(tokenizer, ASKED[:1]).shared == shared
    assert prompts.encode(tokenizer, [ASKED[1], ASKED[1]]).shared == shared


def test_no_question_can_be_cut_wrongly(words: Any) -> None:
    """A question that tokenises unlike all others shortens what is shared, and loses nothing."""
    with_itself = small().encode(words, ["", ASKED[0]])
    assert with_itself.shared == with_itself.prompts[0][: len(with_itself.shared)]
    assert words.decode(with_itself.prompts[0]) == small().text("")


@pytest.mark.parametrize(
    ("kind", "expected"), [("words", ["ĠNo", "."]), ("spaced", ["▁No", "."]), ("merging", None)]
)
def test_answers_follow_with_one_space(
    kind: str, expected: list[str] | None, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids, other = small().answer_ids(tokenizer, ["No.", "A cat is an animal."])
    if expected is not None:
        assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "".join(expected)
    prompt = small().encode(tokenizer, ["Do cats fly?"]).prompts[0]
    text = tokenizer.decode([*prompt, *other], skip_special_tokens=True)
    assert text == small().text("Do cats fly?") + " A cat is an animal."
    assert small().answer_ids(tokenizer, []) == []


def test_answers_are_batched_as_alone(merging: Any) -> None:
    answers = ["No.", "They do not fly.", '"Meow".']
    alone = [small().answer_ids(merging, [answer])[0] for answer in answers]
    assert [merging.decode(ids) for ids in small().answer_ids(merging, answers)] == [
        merging.decode(ids) for ids in alone
    ]


def test_chat(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "chat_template", TEMPLATE)
    (ids,) = small("chat").encode(words, ["Why?"]).prompts
    turns = [("system", "Answer well."), ("user", "What is a cat?"), ("assistant", "An animal.")]
    turns += [("user", "Do cats fly?"), ("assistant", "No."), ("user", "Why?")]
    expected = "".join(f"<{role}>{content}</s>" for role, content in turns) + "<assistant>"
    assert words.decode(ids) == expected
    (answer,) = small("chat").answer_ids(words, ["No."])
    assert words.decode(answer) == "No."
    shared = words.decode(small("chat").encode(words, ["Why?", "What?"]).shared)
    assert shared == expected.removesuffix("Why?</s><assistant>")


@pytest.mark.parametrize("template", [REFUSING, DROPPING])
def test_a_template_without_system_prompts_gets_the_instruction_in_the_first_turn(
    words: Any, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(words, "chat_template", template)
    (ids,) = small("chat").encode(words, ["Why?"]).prompts
    assert words.decode(ids).startswith("<user>Answer well.\n\nWhat is a cat?</s><assistant>An animal.")


def test_a_model_without_a_template_is_refused(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptError, match=r"no chat template.*qa or instruction_qa"):
        small("chat").encode(words, ["Why?"])
    monkeypatch.setattr(words, "chat_template", "{{ raise_exception('never') }}")
    with pytest.raises(PromptError, match=r"refuses this conversation: never"):
        small("chat").encode(words, ["Why?"])


def test_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeffQ: a\nA: b\n\n\nQ: c\nA: d", "utf-8")
    (tmp_path / "i.txt").write_text("\n Do well. \n")
    prompts = load_prompts("instruction_qa", "p.txt", "i.txt", tmp_path)
    assert prompts.primer == (("a", "b"), ("c", "d"))
    assert prompts.instruction == "Do well."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Q: a\nA: b\nQ: c\nQ: d\n", r"p\.txt:4: expected `A: …` right below its question, found 'Q: d'"),
        ("Q: a\n\nA: b\n", r"p\.txt:2: expected `A: …` right below its question, found ''"),
        ("Question: a\n", r"p\.txt:1: expected `Q: …`, found 'Question: a'"),
        ("Q: a\nA: b\nmore\n", r"p\.txt:3: expected `Q: …`, found 'more'"),
        ("Q: a\nA:\n", r"p\.txt:2: expected `A: …`"),
        ("Q: a\nA: b\n\nQ: c\n", r"p\.txt:4: expected `A: …` after the last question"),
        ("\n\n", r"p\.txt: expected pairs of `Q: …` and `A: …`, found none"),
    ],
)
def test_a_malformed_primer_names_its_line(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        parse_primer(text, "p.txt")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Q: é".encode("latin-1"))
    for primer, instruction, message in [
        ("none.txt", None, "primer: .*none.txt cannot be read"),
        ("latin.txt", None, "primer: .*latin.txt: expected UTF-8"),
        (None, "empty.txt", "empty.txt: expected an instruction"),
    ]:
        with pytest.raises(PromptError, match=message):
            load_prompts("chat", primer, instruction, tmp_path)
    with pytest.raises(PromptError, match="preset qa has none"):
        load_prompts("qa", None, "empty.txt", tmp_path)
