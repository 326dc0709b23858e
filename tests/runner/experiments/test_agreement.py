"""How far two judges agree, against Cohen's κ by hand."""

from __future__ import annotations

import pytest

from subvene.runner.experiments.judged_shares import _agreement
from subvene.runner.experiments.results import Condition, Item


def answers(name: str, pairs: list[tuple[bool | None, bool | None]]) -> Condition:
    items = tuple(
        Item(key=f"q{i}", text="x", scores={"true": first, "true_second": second})
        for i, (first, second) in enumerate(pairs)
    )
    return Condition(name=name, label=name, items=items)


def test_kappa_is_cohens_over_the_answers_of_all_conditions() -> None:
    # 20 and 15 of 50 agree on yes and no; Cohen's textbook table: κ = (.70 − .50) / .50.
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    found = _agreement([answers("a", pairs[:30]), answers("b", [*pairs[30:], (None, True), (True, None)])])
    assert (found["true"].n, found["true"].share) == (50, 0.7)
    assert found["true"].kappa == pytest.approx(0.4)
    assert "info" not in found


def test_a_judge_that_always_says_the_same_has_no_kappa() -> None:
    found = _agreement([answers("a", [(True, True), (True, False)])])
    assert (found["true"].share, found["true"].kappa) == (0.5, None)
    assert _agreement([answers("a", [(True, None)])]) == {}
