"""`fit(spec, data=…)`: rows as people hold them give what the same rows give from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch

from subvene.runner.recipes import RECIPES
from subvene.runner.recipes.fitting import fit
from subvene.specs import SubveneError

STEER = "interventions: [{kind: steering, layer: 1, vector: {key: k}, coefficient: 1, positions: response}]\n"
EDIT = "interventions: [{kind: low_rank_edit, factors: {key: k}}]\n"
HEADS = "interventions: [{kind: head_direction, directions: {key: k}, strength: 1, positions: response}]\n"
PAIRS = [
    {"question": "how are you", "positive": "i am very happy", "negative": "i am very gloomy", "id": 1},
    {"question": "tell me about the day", "positive": "the sun is good", "negative": "rain is bad", "id": 2},
]
PREFERENCES = [
    {"prompt": text, "chosen": "i am glad", "rejected": "sad"}
    for text in ("how are you", "hello world", "tell me", "the day", "the sun", "rain", "good", "train")
]
QUESTIONS = [
    {
        "Category": "a",
        "Question": f"is it {word} ?",
        "Best Answer": "it is good",
        "Correct Answers": "it is good; very good",
        "Incorrect Answers": "it is bad; gloomy",
    }
    for word in ("rain", "sun", "day", "train", "world", "bad")
]
REFUSED = [
    {"positive": refused, "negative": followed}
    for refused, followed in zip(
        ("bad rain", "tell me bad", "gloomy day", "sad train", "not good"),
        ("how are you", "hello world", "the sun", "good day", "tell me"),
        strict=True,
    )
]
CASES = {
    "mean_difference": (
        "fit: {recipe: mean_difference, key: k, pairs: {file: rows.jsonl}}\n" + STEER,
        PAIRS,
        "rows.jsonl",
    ),
    "localized_edit": (
        "fit: {recipe: localized_edit, key: k, data: {file: rows.jsonl}, heads: {rule: random, k: 2}, "
        "epochs: 1, learning_rate: 0.01}\n" + EDIT,
        PREFERENCES,
        "rows.jsonl",
    ),
    "experts": (
        "fit: {recipe: experts, key: k, pairs: {file: rows.jsonl}}\n"
        "interventions: [{kind: scaling, gains: {key: k}}]\n",
        PAIRS,
        "rows.jsonl",
    ),
    **{
        recipe: (
            f"fit: {{recipe: {recipe}, key: k, pairs: {{file: rows.jsonl}}}}\n" + STEER,
            PAIRS,
            "rows.jsonl",
        )
        for recipe in ("pca", "logistic")
    },
    **{
        recipe: (
            f"fit: {{recipe: {recipe}, key: k, pairs: {{file: rows.jsonl}}}}\n" + edit,
            PAIRS,
            "rows.jsonl",
        )
        for recipe, edit in (
            ("angular", "interventions: [{kind: rotation, plane: {key: k}, angle: 90.0}]\n"),
            ("affine_map", "interventions: [{kind: affine, map: {key: k}, form: diagonal}]\n"),
        )
    },
    "localized_edit of TruthfulQA": (
        "fit: {recipe: localized_edit, key: k, data: {truthfulqa: {file: rows.csv}}, heads: {rule: random, "
        "k: 2}, epochs: 1}\n" + EDIT,
        QUESTIONS,
        "rows.csv",
    ),
    "refusal": (
        "fit: {recipe: refusal, key: k, pairs: {file: rows.jsonl}, filter: false, max_kl: 100.0, "
        "min_induced: -100.0, refusal_words: [i]}\n"
        "interventions: [{kind: ablation, site: block_input, layer: 1, direction: {key: k}}]\n",
        REFUSED,
        "rows.jsonl",
    ),
    "iti of JSONL": (
        "fit: {recipe: iti, key: k, data: {file: rows.jsonl}, select: {rule: top_k, k: 2},"
        " ranking_folds: 2, validation: 0.4}\n" + HEADS,
        QUESTIONS,
        "rows.jsonl",
    ),
    "iti": (
        "fit: {recipe: iti, key: k, data: {file: rows.csv}, select: {rule: top_k, k: 2},"
        " ranking_folds: 2, validation: 0.4}\n" + HEADS,
        QUESTIONS,
        "rows.csv",
    ),
}
FORMS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "rows": list,
    "a DataFrame": pandas.DataFrame,
    "a Dataset": datasets.Dataset.from_list,
    "columns": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "an iterator": iter,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_rows_give_what_their_file_gives(case: str, write: Callable[..., Path], loaded: Any) -> None:
    lines, rows, name = CASES[case]
    spec = write(lines)
    path = spec.parent / name
    if name.endswith(".csv"):
        pandas.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    model, tokenizer = loaded
    of_file = fit(spec, model=model, tokenizer=tokenizer)
    path.unlink()
    for form, make in FORMS.items():
        given = fit(spec, model=model, tokenizer=tokenizer, data=make(rows))
        assert given.tensors.keys() == of_file.tensors.keys(), form
        for key, tensor in of_file.tensors.items():
            assert torch.equal(given.tensors[key], tensor), (form, key)
        digests = ("pairs_sha256", "data_sha256", "columns")
        for digest in digests:
            assert given.provenance.get(digest) == of_file.provenance.get(digest), form


def test_preferences_may_be_tuples(write: Callable[..., Path], loaded: Any) -> None:
    model, tokenizer = loaded
    spec = write(CASES["localized_edit"][0])
    rows = fit(spec, model=model, tokenizer=tokenizer, data=PREFERENCES)
    tuples = [(row["prompt"], row["chosen"], row["rejected"]) for row in PREFERENCES]
    given = fit(spec, model=model, tokenizer=tokenizer, data=tuples)
    for key, tensor in rows.tensors.items():
        assert torch.equal(given.tensors[key], tensor), key
    with pytest.raises(SubveneError, match=r"row 1: expected \(prompt, chosen, rejected\), found \[\"a\""):
        fit(spec, model=model, tokenizer=tokenizer, data=[tuples[0], ("a", "b")])


def test_provenance_names_the_columns(write: Callable[..., Path], loaded: Any) -> None:
    m = fit(write(CASES["mean_difference"][0]), model=loaded[0], tokenizer=loaded[1], data=PAIRS)
    assert m.provenance["columns"] == {
        "read": {"prompt": ["question"], "chosen": ["positive"], "rejected": ["negative"]},
        "said_again": [],
        "not_read": ["id"],
    }


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("rows.jsonl", "expected a datasets.Dataset, a DataFrame or a list of rows, found str"),
        (3, "found int"),
        ([], "holds no row"),
        (["a"], r"data: row 0: expected a row with columns, found \"a\""),
        ({"prompt": "a"}, "expected columns of equal length"),
        ([{"prompt": "a", "positive": "b"}], "data: row 0: expected a column `negative`"),
        (
            [{"prompt": "a", "positive": "b", "negative": "c", "tools": ["t"]}],
            "tools: .* cannot be used",
        ),
    ],
)
def test_what_is_no_data_is_said_before_a_model_is_loaded(
    write: Callable[..., Path], data: Any, said: str
) -> None:
    spec = write(CASES["mean_difference"][0].replace("model", "nowhere"))
    with pytest.raises(SubveneError, match=said):
        fit(spec, data=data)


def test_every_recipe_says_what_it_takes(write: Callable[..., Path]) -> None:
    assert {case.split()[0] for case in CASES} == set(RECIPES) - {
        "cast",  # test_cast.py
        "das",
        "persona",
        "random_direction",
        "reft",  # test_reft.py
        "transfer",  # test_transfer.py
    }
    persona = "fit: {recipe: persona, traits: [formal]}\n" + STEER.replace("key: k", "key: formal")
    with pytest.raises(SubveneError, match=r"persona vectors are made of .* found list; declare traits"):
        fit(write(persona), data=PAIRS)
