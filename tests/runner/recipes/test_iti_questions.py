"""The questions that ITI is fitted on: those of a file, test questions that change nothing, and bad ones."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from iti_by_hand import HEAD_DIM, HEADS, LAYERS, QUESTIONS, fitted, question_of

from subvene.runner import fit
from subvene.runner.data.truthfulqa.questions import Question, load_questions
from subvene.runner.data.truthfulqa.splits import fold_of, validation_keys
from subvene.runner.edits.compile import CompileError
from subvene.runner.passes.collector import Collected
from subvene.runner.passes.shards import Index, Store
from subvene.runner.recipes import iti
from subvene.runner.recipes.iti import ITIError, _shifted
from subvene.runner.recipes.iti_passages import passages
from subvene.runner.recipes.probes import Probes
from subvene.specs import ExperimentSpec, ITISpec, SubveneError, load_spec

SPEC = """\
fit:
  recipe: iti
  key: iti
  data: {file: questions.csv}
  select: {rule: top_k, k: 5}
  ranking: split
interventions:
- kind: head_direction
  name: truthful
  directions: {key: iti}
  strength: 3.0
seed: 4
"""


def write_csv(path: Path, questions: Sequence[Question]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
        )
        for q in questions:
            rows.writerow(["", q.category, q.question, q.best, *map(_cell, (q.correct, q.incorrect)), ""])


def _cell(answers: Sequence[str]) -> str:
    return "; ".join(answer.removesuffix(".") for answer in answers)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_test_question_changes_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    """Other questions and answers in the test fold: the artifact is the same, file by file, bit by bit."""
    path = write(SPEC)
    tuning = [q for q in QUESTIONS if fold_of(q, 2) == 0]
    tested = [q for q in QUESTIONS if fold_of(q, 2) == 1]
    others = [q for q in map(question_of, range(1000, 1100)) if fold_of(q, 2) == 1][: len(tested) + 3]
    assert len(tuning) > 5
    assert len(tested) > 5

    def artifact(name: str, questions: Sequence[Question], fold: int = 0, **options: Any) -> dict[str, bytes]:
        write_csv(tmp_path / "questions.csv", questions)
        spec = load_spec(path)
        data = load_questions(spec.fit.data, tmp_path)
        m = fit(spec, folder=tmp_path, data=[q for q in data if fold_of(q, 2) == fold], **options)
        return files_of(m.save_pretrained(tmp_path / name))

    expected = artifact("a", QUESTIONS)
    assert artifact("b", [*others, *tuning]) == expected
    assert artifact("c", tuning) == expected
    # With a folder that has seen other folds, too.
    artifact("d", QUESTIONS, fold=1, work=tmp_path / "work")
    assert artifact("e", [*tuning[::-1], *others], work=tmp_path / "work") == expected
    # The other way round: a tuning question that changes is noticed.
    assert artifact("f", [*tuning[1:], *tested])["tensors.safetensors"] != expected["tensors.safetensors"]
    assert artifact("g", QUESTIONS, seed=5)["tensors.safetensors"] != expected["tensors.safetensors"]


def test_sigma_reads_tuning_questions_alone(loaded: Any) -> None:
    tuning = QUESTIONS[:10]
    seen: list[list[str]] = []

    class Recording:
        def __call__(self, texts: list[str], **options: Any) -> Any:
            seen.append(texts)
            return loaded[1](texts, **options)

    answers = iti.answers_of(tuning)
    passages(answers, Recording(), ITISpec(key="iti"))
    texts = " ".join(itertools.chain(*seen))
    assert all(question.question in texts for question in tuning)
    assert not any(question.question in texts for question in QUESTIONS[10:])
    for answer, whole in zip(answers, seen[2], strict=True):
        own, other = whole.removeprefix("Q: ").split(" A: ")[0], whole.split(" Q: ")[1]
        assert own == answer.question.question
        assert other != own


def test_fit_reads_the_questions_of_the_file(write: Callable[..., Path], loaded: Any, tmp_path: Path) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    path = write(SPEC)
    m = fit(path, work=tmp_path / "work")
    expected = fitted(loaded, seed=4)
    assert all(torch.equal(m.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert m.provenance == {"model": m.spec.model.name, **expected.provenance}
    ids = torch.tensor([[1, 7, 8, 9]])
    with torch.no_grad():
        shifted = m(ids).logits
        with m.disabled():
            assert (shifted - m(ids).logits).abs().max() > 1e-3
    # By hand: the shift that the tensors say, at the chosen heads.
    for block, layer in zip(loaded[0].model.layers, range(LAYERS), strict=True):
        name = f"iti.attention_heads[{layer}]"
        if name in expected.tensors:
            shift = 3.0 * expected.tensors[f"{name}.sigma"].unsqueeze(1) * expected.tensors[name]
            flat = shift.flatten()
            block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args, flat=flat: (args[0] + flat,))
    with torch.no_grad():
        torch.testing.assert_close(loaded[0](ids).logits, shifted, atol=1e-4, rtol=1e-4)


def test_the_seed_is_the_specs_unless_another_is_given(write: Callable[..., Path], tmp_path: Path) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    path = write(SPEC)
    assert fit(path).provenance["seed"] == 4
    assert fit(path, seed=9).provenance["seed"] == 9


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "subvene.runner.recipes.fitting.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )


def only(questions: Sequence[Question], correct: bool) -> list[Question]:
    return [
        Question(q.question, q.best, q.correct if correct else (), () if correct else q.incorrect, q.category)
        for q in questions
    ]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "expected at least 2 questions to fit on, found 0"),
        (QUESTIONS[:1], "expected at least 2 questions to fit on, found 1"),
        ([*QUESTIONS, QUESTIONS[3]], "expected every question once"),
        (only(QUESTIONS, True), r"train the probes need true and false answers, found \d+ true and 0 false"),
        (only(QUESTIONS, False), r"found 0 true and \d+ false"),
        (QUESTIONS[:2], r"rank the heads \(fit.validation\) need true and false answers, found 0 true and 0"),
    ],
    ids=["none", "one", "twice", "no false", "no true", "no validation"],
)
def test_questions_that_cannot_be_fitted_on(
    write: Callable[..., Path], questions: list[Question], message: str
) -> None:
    with pytest.raises(ITIError, match=message):
        fit(write(SPEC), data=questions)


@pytest.mark.usefixtures("no_model")
def test_validation_questions_of_one_kind(write: Callable[..., Path]) -> None:
    held_out = validation_keys(QUESTIONS, 0.2, 4)
    mixed = [only([q], True)[0] if q.key in held_out else q for q in QUESTIONS]
    with pytest.raises(
        ITIError, match=r"rank the heads \(fit.validation\) need .*, found \d+ true and 0 false"
    ):
        fit(write(SPEC), data=mixed)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "k: 5",
            "k: 13",
            r"fit\.select\.k: expected at most 12 for this model's 3 layers of 4 heads, found 13",
        ),
        ("rule: top_k, k: 5", "rule: random, k: 13", r"fit\.select\.k: .* found 13"),
        (
            "rule: top_k, k: 5",
            "rule: list, heads: {3: [0]}",
            r"fit\.select\.heads: .* from 0 to 2 .* found 3",
        ),
        ("rule: top_k, k: 5", "rule: list, heads: {1: [0, 4]}", r"heads\[1\]: .* from 0 to 3 .* found 4"),
        ("name: truthful", "heads: {3: [0]}", r"interventions\[0\]\.heads: expected a layer from 0 to 2"),
        (
            "kind: head_direction\n  name: truthful\n  directions",
            "kind: steering\n  layer: 1\n  vector",
            r"interventions\[0\]\.kind: `fit:` gives tensors for head_direction, found steering",
        ),
    ],
    ids=["k", "random k", "layer", "head", "edited layer", "kind"],
)
def test_what_the_model_does_not_have(
    write: Callable[..., Path], tmp_path: Path, old: str, new: str, message: str
) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    assert old in SPEC
    text = SPEC.replace(old, new)
    if "steering" in text:
        text = text.replace("strength", "coefficient")
    with pytest.raises(CompileError, match=f"(?s){message}"):
        fit(write(text))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("{1: [0], 2: [1]}", r"interventions\[0\]\.heads: `fit:` gives layers 0, 1, found 2"),
        ("{1: [0, 2]}", r"interventions\[0\]\.heads\[1\]: `fit:` gives heads 0, 3, found 2"),
    ],
)
def test_edited_heads_must_be_fitted(
    write: Callable[..., Path], tmp_path: Path, heads: str, message: str
) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    text = SPEC.replace("rule: top_k, k: 5", "rule: list, heads: {0: [1], 1: [0, 3]}")
    with pytest.raises(CompileError, match=message):
        fit(write(text.replace("  strength", f"  heads: {heads}\n  strength")))


@pytest.mark.usefixtures("no_model")
def test_a_file_that_is_not_there(write: Callable[..., Path]) -> None:
    with pytest.raises(SubveneError, match=r"questions\.csv: no such file"):
        fit(write(SPEC))


def test_edited_heads_of_a_list(write: Callable[..., Path], tmp_path: Path) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    text = SPEC.replace("rule: top_k, k: 5", "rule: list, heads: {0: [1], 1: [0, 3]}")
    m = fit(write(text.replace("  strength", "  heads: {1: [3]}\n  strength")))
    assert isinstance(m.spec, ExperimentSpec)
    (edit,) = m.intervenable.interventions.values()
    assert edit.directions.any(dim=1).tolist() == [False, False, False, True]


def test_no_head_is_better_than_chance(loaded: Any) -> None:
    swapped = [
        Question(q.question, q.best, q.incorrect, q.correct, q.category)
        if q.key in validation_keys(QUESTIONS, 0.2, 1)
        else q
        for q in QUESTIONS
    ]
    with torch.no_grad():
        for block in loaded[0].model.layers:
            block.self_attn.v_proj.weight.zero_()
    with pytest.raises(ITIError, match="no head's probe is better than chance"):
        fitted(loaded, swapped, select={"rule": "soft"})
    with pytest.raises(ITIError, match=r"heads \[.*\] do the same in true and in false answers"):
        fitted(loaded, select={"rule": "list", "heads": {1: [2]}})
    with pytest.raises(ITIError, match="no head that all chooses has a direction"):
        fitted(loaded, select={"rule": "all"})


def test_a_head_without_a_direction_is_left_out_of_all(loaded: Any) -> None:
    with torch.no_grad():
        loaded[0].model.layers[1].self_attn.v_proj.weight[:HEAD_DIM] = 0  # read by the first two heads
    found = fitted(loaded, select={"rule": "all"})
    assert found.provenance["heads"]["1"] == [2, 3]
    assert not found.tensors["iti.attention_heads[1]"][:2].any()
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())


@pytest.mark.parametrize("rule", ["list", "all"])
def test_heads_that_do_not_spread(tmp_path: Path, rule: str) -> None:
    """σ = 0: no strength would move them. What is asked for is refused, of the rest it is left out."""
    at_end, after = torch.randn(2, 6, HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(1))
    after[:, :HEAD_DIM] = 1.0  # the first head is the same after every question
    rows = torch.stack([at_end, after], 1).flatten(0, 1)
    index = Index("content", "attention_heads", (0,), HEADS * HEAD_DIM, (12,), "whole", None)
    store = Store.create(tmp_path / "rows", index)
    store.put(0, {0: rows})
    heads = {"rule": "list", "heads": {0: [0, 1]}} if rule == "list" else {"rule": "all"}
    spec = ITISpec.model_validate({"key": "iti", "select": heads})
    nothing = Probes(torch.zeros(1, HEADS), torch.zeros(1, HEADS, HEAD_DIM), torch.zeros(1, HEADS))
    weights = torch.ones(HEADS, dtype=torch.float64)

    def shifted() -> Any:
        is_true = torch.tensor([True, False] * 3)
        collected = Collected(store, tuple(range(0, 12, 2)), 0)
        return _shifted(spec, collected, nothing, is_true, 0, weights, 1)

    if rule == "list":
        with pytest.raises(ITIError, match=r"heads \[0\] do not spread along their direction \(σ = 0\)"):
            shifted()
        return
    found = shifted()
    assert found.heads == [1, 2, 3]
    assert not found.directions[0].any()
    assert found.parts["sigma"][0] == 0


def test_activations_that_are_not_finite(loaded: Any) -> None:
    with torch.no_grad():
        loaded[0].model.layers[1].self_attn.v_proj.weight[3, 3] = float("nan")
    with pytest.raises(SubveneError, match=r"attention_heads\[1\]: the activations are not finite"):
        fitted(loaded)
