"""Intervals and p-values of a comparison, against scipy's bootstrap and draws made one by one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tiny_questions import PRIMER, QUESTIONS, write_questions

from subvene.runner import run_experiment
from subvene.runner.data.truthfulqa.questions import load_questions
from subvene.runner.data.truthfulqa.splits import is_of_split
from subvene.runner.experiments.intervals import Intervals, _Sample, intervals_of
from subvene.runner.experiments.results import Condition, Item, Metric
from subvene.runner.experiments.rows import rows
from subvene.specs import QuestionsSpec, SpecError, parse_spec

ITEMS = 60


def condition(name: str, scores: np.ndarray[Any, Any], seed: int = 0, fold: int = 0) -> Condition:
    items = tuple(Item(key=f"q{i:02}", scores={"mc1": float(score)}) for i, score in enumerate(scores))
    return Condition(
        name=name, label=name, seed=seed, fold=fold, metrics={"mc1": Metric(mean=0, n=1)}, items=items
    )


@pytest.fixture(scope="module")
def scores() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(5)
    base = rng.normal(size=ITEMS)
    return base, base + rng.normal(0.25, 0.8, size=ITEMS)


def test_a_difference_is_scipys_paired_bootstrap(scores: Any) -> None:
    base, edited = scores
    gap = intervals_of([condition("base", base), condition("edited", edited)]).differences["edited"]["mc1"]
    expected = stats.bootstrap(
        (base, edited),
        lambda a, b, axis: b.mean(axis) - a.mean(axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert gap.value == pytest.approx((edited - base).mean())
    assert (gap.low, gap.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)
    assert gap.p == pytest.approx(stats.ttest_rel(edited, base).pvalue, abs=0.01)
    assert gap.p_holm == gap.p


def test_p_is_corrected_over_the_rows_of_a_metric(scores: Any) -> None:
    base, edited = scores
    rows = [condition("base", base), condition("edited", edited), condition("same", base)]
    gaps = intervals_of([*rows, condition("far", base + 1)]).differences
    assert gaps["same"]["mc1"].p == gaps["same"]["mc1"].p_holm == 1
    smallest = gaps["far"]["mc1"].p
    assert smallest == pytest.approx(2 / 5001)
    assert gaps["far"]["mc1"].p_holm == pytest.approx(3 * smallest)
    assert gaps["edited"]["mc1"].p_holm == pytest.approx(2 * gaps["edited"]["mc1"].p)


def test_seeds_that_give_the_same_add_nothing(scores: Any) -> None:
    base, edited = scores

    def found(seeds: int) -> Intervals:
        return intervals_of(
            [condition("base", base), *(condition("edited", edited, seed) for seed in range(seeds))]
        )

    once, thrice = (found(n).differences["edited"]["mc1"] for n in (1, 3))
    assert thrice.model_dump() == pytest.approx(once.model_dump())


def test_fits_are_drawn_with_the_questions_and_seeds_within_their_repeat() -> None:
    rng = np.random.default_rng(7)
    fits = [(repeat, seed) for repeat in range(4) for seed in range(2)]
    of_fit = {fit: rng.normal(fit[0], 0.5) + rng.normal(size=ITEMS) for fit in fits}
    cells = [
        condition("edited", scores[half], seed, 2 * repeat + fold)
        for (repeat, seed), scores in of_fit.items()
        for fold, half in enumerate((slice(None), slice(0)))
    ]
    own = intervals_of(cells, folds=2).rows["edited"]["mc1"]
    # The same by hand, one draw after the other.
    drawn, means = random.Random(1), []
    for _ in range(3000):
        items = np.array(drawn.choices(range(ITEMS), k=ITEMS))
        chosen = [
            of_fit[repeat, seed][items].mean()
            for repeat in drawn.choices(range(4), k=4)
            for seed in drawn.choices(range(2), k=2)
        ]
        means.append(np.mean(chosen))
    assert (own.low, own.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.12)
    alone = intervals_of(cells[:2], folds=2).rows["edited"]["mc1"]
    assert own.high - own.low > 2 * (alone.high - alone.low)


REPEATED = """\
subvene: 1
model: {name: a/b}
fit: {recipe: iti, key: t, data: {file: questions.csv}, select: {rule: random, k: 2}, ranking_folds: 2}
interventions:
- {kind: head_direction, name: iti, directions: {key: t}, strength: 3, positions: response}
folds: 2
repeats: 2
evaluate:
- {kind: truthfulqa, data: {file: questions.csv}, preset: qa, primer: primer.txt, measure: [multiple_choice]}
"""


def test_repeats_test_every_question_again_with_fits_on_other_ones(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write_questions(tmp_path / "questions.csv", QUESTIONS)
    (tmp_path / "primer.txt").write_text(PRIMER)
    path = write(REPEATED.partition("model: {name: a/b}\n")[2], "repeated.yaml")
    results = run_experiment(path, output=tmp_path / "run").results
    edited = [c for c in results.conditions if c.name == "intervened"]
    assert [c.fold for c in edited] == [0, 1, 2, 3]
    questions = load_questions(QuestionsSpec(file="questions.csv"), tmp_path)
    for c in edited:
        assert {item.key for item in c.items} == {q.key for q in questions if is_of_split(q, c.fold or 0, 2)}
        assert c.counts["questions_seen_in_fit"] == 0
    by_repeat = [[{item.key for item in c.items} for c in edited[i : i + 2]] for i in (0, 2)]
    for first, second in by_repeat:
        assert not first & second
        assert len(first | second) == len(questions)
    assert by_repeat[0] != by_repeat[1]
    gap = Intervals.model_validate(results.sections["intervals"]).differences["intervened"]["mc2"]
    assert gap.items == len(questions)
    assert gap.p is not None


def test_repeats_need_folds() -> None:
    with pytest.raises(SpecError, match="folds: expected a number of folds, since `repeats`"):
        parse_spec(REPEATED.replace("folds: 2\nrepeats", "repeats"))


def test_true_by_info_of_a_row_is_what_its_interval_is_about() -> None:
    rng = np.random.default_rng(5)
    cells = []
    for fold, size in ((0, 30), (1, 11)):
        for seed in (1, 2):
            verdicts = rng.random((size, 2)) < (0.3 + 0.4 * fold, 0.9 - 0.5 * fold)
            items = tuple(
                Item(
                    key=f"{fold}.{i}",
                    text="x",
                    # Some verdicts are owed, more of one fold.
                    scores={"true": None if i < 4 * fold else bool(true), "info": bool(info)},
                )
                for i, (true, info) in enumerate(verdicts)
            )
            metrics = {}
            for name in ("true", "info"):
                values = [float(v) for item in items if (v := item.scores[name]) is not None]
                metrics[name] = Metric(mean=sum(values) / len(values), n=len(values))
            metrics["true_info"] = Metric(mean=metrics["true"].mean * metrics["info"].mean, n=size)
            cells.append(
                Condition(
                    name="a",
                    label="a",
                    seed=seed,
                    fold=fold,
                    metrics=metrics,
                    items=items,
                    counts={"questions": size},
                )
            )
    (row,) = rows(cells)
    sample = _Sample(cells, "true_info", 2)
    once = np.ones((1, len(sample.keys))), np.ones((1, len(sample.fits)))
    assert row.metrics["true_info"].mean == pytest.approx(float(sample.values(sample.keys, *once)[0]))
    pooled = [
        np.mean([float(v) for cell in cells for item in cell.items if (v := item.scores[name]) is not None])
        for name in ("true", "info")
    ]
    assert row.metrics["true_info"].mean == pytest.approx(pooled[0] * pooled[1])
    assert abs(row.metrics["true_info"].mean - np.mean([c.metrics["true_info"].mean for c in cells])) > 0.01
