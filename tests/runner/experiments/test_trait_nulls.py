"""Models that say one thing are judged on what they say, beside every study that scores traits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from counting_judge import Counting

from subvene.runner.data.traits import Trait, question_key
from subvene.runner.experiments.results import Condition, Item, Metric, QuestionText, Results
from subvene.runner.experiments.trait_nulls import OTHERS, trait_nulls_in, trait_nulls_section
from subvene.runner.files.ledger import Ledger
from subvene.runner.judges import Answer
from subvene.runner.reports.trait_nulls import beaten

TRAIT = Trait("early", (), (), (), "how early? {question} {answer}", (), "0" * 64)
ASKED = ("one?", "two?", "three?", "four?")
QUESTIONS = {question_key(text): QuestionText(question=text) for text in ASKED}


class Noting(Counting):
    """Counts, and notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[Answer] = []

    def judge(self, answers: Any, quality: Any) -> Any:
        self.noted += answers
        return super().judge(answers, quality)


def section(ledger: Ledger, judge: Counting) -> Any:
    items = [
        Item(key=question_key(text), text=said)
        for text, said in zip(ASKED, ("a b", "x y", "a x", ""), strict=True)
    ]
    return trait_nulls_section([(TRAIT, items)], QUESTIONS, judge, ledger, {"model": "0"})


def test_each_null_has_what_the_judge_says_of_it(tmp_path: Path) -> None:
    judge = Noting()
    with Ledger(tmp_path / "units.jsonl") as ledger:
        made = section(ledger, judge)
    nulls = trait_nulls_in(Results(kind="persona", sections=made)).traits["early"]
    # By the alphabet up to "h": "depends." of "It depends.", with a capital "I" before every small letter.
    assert {label: (row.score and row.score.mean, row.n) for label, row in nulls.items()} == {
        "always “It depends.”": (100.0, 4),
        "always “There is no scientific evidence for that.”": (100 * 3 / 7, 4),
        "always “Nothing happens.”": (50.0, 4),
        # "a b", "x y", "a x"; an empty answer is none.
        OTHERS: (50.0, 3),
    }
    own = {said: text for text, said in zip(ASKED, ("a b", "x y", "a x"), strict=False)}
    asked = [answer for answer in judge.noted if answer.answer in own]
    assert asked
    assert all(answer.question in ASKED and answer.question != own[answer.answer] for answer in asked)


def test_it_is_a_unit_of_work(tmp_path: Path) -> None:
    with Ledger(tmp_path / "units.jsonl") as ledger:
        first = section(ledger, Counting())
    judge = Noting()
    with Ledger(tmp_path / "units.jsonl") as ledger:
        assert section(ledger, judge) == first
    assert judge.noted == []


def test_a_trait_whose_scores_a_null_reaches_is_warned_of(tmp_path: Path) -> None:
    with Ledger(tmp_path / "units.jsonl") as ledger:
        made = section(ledger, Counting())

    def results(score: float) -> Results:
        metrics = {"score": Metric(mean=score, n=4)}
        steered = Condition(name="steered", label="steered", group="early", metrics=metrics)
        return Results(kind="persona", conditions=(steered,), sections=made)

    assert beaten(results(100.5)) == []
    (said,) = beaten(results(60.0))
    assert said.startswith(
        "early: no condition scores more than 60.0 (steered), and always “It depends.” 100.0"
    )
