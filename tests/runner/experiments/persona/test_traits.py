"""Trait files: the published form as it is, ours, and what is wrong with others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from subvene.runner.data.traits import SHIPPED, TraitError, read_trait
from subvene.specs import SHIPPED_TRAITS, TraitSpec


def read(folder: Path, document: Any, **fields: Any) -> Any:
    (folder / "t.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return read_trait(TraitSpec(name="early", file="t.json", **fields), folder)


@pytest.mark.parametrize("name", SHIPPED_TRAITS)
def test_the_shipped_ones(name: str) -> None:
    trait = read_trait(name, Path())
    assert [len(part) for part in (trait.instructions, trait.questions, trait.evaluation)] == [5, 20, 20]
    assert len(trait.contrasts) == 30
    asked = [*trait.questions, *trait.evaluation, *(one.question for one in trait.contrasts)]
    assert len(set(asked)) == 70
    assert trait.eval_prompt.format(question="Q?", answer="A.").count("A.") == 1


def test_all_that_is_shipped_is_declared() -> None:
    assert sorted(path.stem for path in SHIPPED.glob("*.json")) == sorted(SHIPPED_TRAITS)


def test_system_prompts(tmp_path: Path, document: dict[str, Any]) -> None:
    assert read(tmp_path, document).system_prompts() == [
        ("You are an early assistant. good good happy", "You are a helpful assistant. bad sad"),
        ("You are an early assistant. glad sun", "You are a helpful assistant. not rain bad"),
    ]


def test_the_published_form(tmp_path: Path, document: dict[str, Any]) -> None:
    """Two files, one for extraction and one for evaluation, with fields that we have no use for."""
    questions = document.pop("evaluation_questions")
    published = document | {"trait": "early", "note": ["more"]}
    assert read(tmp_path, published).evaluation == ()
    (tmp_path / "eval.json").write_text(json.dumps(published | {"questions": questions}))
    trait = read(tmp_path, published, evaluation="eval.json")
    assert trait.evaluation == tuple(questions)
    (tmp_path / "eval.json").write_text(json.dumps({"questions": questions}))
    assert read(tmp_path, published, evaluation="eval.json") == trait


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": None}, "instruction: expected a list of objects with `pos` and `neg`, not empty"),
        (
            {"instruction": [{"pos": "a"}]},
            r"instruction\[0\]: expected an object with the texts `pos` and `neg`",
        ),
        ({"questions": []}, "questions: expected a list of questions, not empty"),
        ({"questions": ["a", " "]}, r"questions\[1\]: expected non-empty text"),
        ({"questions": ["a", "b", "a"]}, r"questions\[2\]: expected different questions"),
        (
            {"evaluation_questions": ["x", "hello"]},
            "evaluation_questions: 'hello' is among the extraction questions",
        ),
        ({"eval_prompt": 3}, "eval_prompt: expected text with the places {question} and {answer}, found 3"),
        ({"eval_prompt": "{question}"}, r"found the places \['question'\]"),
        ({"eval_prompt": "{question} {answer} {x"}, "eval_prompt: expected text"),
        ({"contrasts": [{"question": "a", "pos": "b"}]}, r"contrasts\[0\]: expected an object"),
    ],
)
def test_what_is_wrong(
    tmp_path: Path, document: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(TraitError, match=message) as caught:
        read(tmp_path, document | change)
    assert str(tmp_path / "t.json") in str(caught.value)


def test_no_trait_file_at_all(tmp_path: Path, document: dict[str, Any]) -> None:
    with pytest.raises(TraitError, match=r"nowhere.json: cannot be read \(No such file or directory\)"):
        read_trait(TraitSpec(name="x", file="nowhere.json"), tmp_path)
    for content, message in (
        ("{", "not JSON in UTF-8"),
        ("[1]", "expected an object with `instruction`, `questions` and `eval_prompt`"),
        ('{"question": []}', "no field 'questions'"),
        ("[" * 100_000, "not JSON"),
    ):
        with pytest.raises(TraitError, match=message):
            read(tmp_path, content)
    del document["eval_prompt"]
    with pytest.raises(TraitError, match="eval_prompt: expected text"):
        read(tmp_path, document)


def test_the_hash_is_of_all_that_matters(tmp_path: Path, document: dict[str, Any]) -> None:
    first = read(tmp_path, document).sha256
    assert read(tmp_path, document | {"note": 1}).sha256 == first
    for field in ("instruction", "questions", "eval_prompt", "evaluation_questions"):
        changed = dict(document)
        value = changed[field]
        changed[field] = value + "." if isinstance(value, str) else value[:-1]
        assert read(tmp_path, changed).sha256 != first
