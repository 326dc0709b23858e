from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from subvene.runner.data.truthfulqa.questions import NO_COMMENT, Question
from subvene.runner.judges import BOTH, Answer, Aspect, Judge, JudgeError, Judgement, make_judge
from subvene.runner.judges.base import AnyQuality, Identity
from subvene.runner.judges.training.agreement import agreement
from subvene.runner.judges.training.checking import check_judge
from subvene.runner.judges.training.labels import Label, LabelError, read_labels
from subvene.runner.judges.training.measured import keep_accuracy
from subvene.specs.judges import OpenAIJudgeSpec


def said(*probabilities: float | None) -> list[Judgement]:
    return [Judgement(p, None if p is None else p >= 0.5, "?" if p is None else None) for p in probabilities]


def test_numbers_worked_out_by_hand() -> None:
    found = agreement([True, True, False, True, False], said(0.9, 0.3, 0.4, None, 0.6))
    assert (found.n, found.unjudged) == (4, 1)
    assert found.accuracy == 0.5
    assert found.majority == 0.5
    # Pairs (yes, no) in the right order: 0.9 > 0.4, 0.9 > 0.6; not 0.3.
    assert found.auc == 0.5
    assert found.brier == pytest.approx((0.01 + 0.49 + 0.16 + 0.36) / 4)
    # Every judgement is alone in its bin: the mean of |p − label|.
    assert found.ece == pytest.approx((0.1 + 0.7 + 0.4 + 0.6) / 4)
    assert (found.yes_rate, found.judged_yes_rate) == (0.5, 0.5)
    assert (found.accuracy_on_yes, found.accuracy_on_no) == (0.5, 0.5)


def test_calibration_is_about_bins_not_rows() -> None:
    """Three of four are yes and the judge says 0.75 of each: right on average, wrong on each."""
    found = agreement([True, True, True, False], said(0.75, 0.75, 0.75, 0.75))
    assert found.ece == pytest.approx(0)
    assert found.brier == pytest.approx(0.1875)
    assert [(one.low, one.high, one.n, one.yes_rate) for one in found.bins] == [(0.7, 0.8, 4, 0.75)]


def test_the_edges_of_bins() -> None:
    found = agreement([True] * 4, said(0.0, 0.3, 0.29, 1.0))
    assert [(one.low, one.n) for one in found.bins] == [(0.0, 1), (0.2, 1), (0.3, 1), (0.9, 1)]
    assert found.auc is None
    assert found.accuracy_on_no is None


def test_no_verdict_at_all() -> None:
    found = agreement([True, False], said(None, None))
    assert (found.n, found.unjudged, found.accuracy, found.bins) == (0, 2, None, ())


class Parrot(Judge):
    """Says yes where the answer does; knows some of its training questions."""

    def __init__(self, fitted: set[str] | None = None) -> None:
        self.fitted = fitted
        self.seen: list[Answer] = []
        self.able: tuple[str, ...] = ("truth", "info")

    def check(self, qualities: Sequence[AnyQuality]) -> None:
        """Nothing is needed."""

    def yes_no(self, answers: Sequence[Answer], aspect: Aspect) -> list[Judgement]:
        self.seen += answers
        return [Judgement(None, None, "silence") if not one.answer else _yes(one.answer) for one in answers]

    def tells(self, quality: AnyQuality) -> bool:
        return quality.name in self.able

    def identity(self, qualities: Sequence[AnyQuality]) -> Identity:
        return {"kind": "parrot"}

    def accuracies(self) -> dict[str, object]:
        return {}

    def held_out(self, question: str) -> bool | None:
        return None if self.fitted is None else question not in self.fitted


def _yes(answer: str) -> Judgement:
    return Judgement(0.9, True) if answer == "yes" else Judgement(0.1, False)


LABELS = [
    Label("One?", "yes", True),
    Label("One?", "no", True),
    Label("Two?", "no", False),
    Label("Two?", "", False),
    Label("Three?", "yes", False),
]


def test_questions_that_the_judge_was_fitted_on_are_left_out() -> None:
    judge = Parrot({"One?"})
    found = check_judge(judge, LABELS, "truth")
    assert [one.question for one in judge.seen] == ["Two?", "Two?", "Three?"]
    assert (found.held_out, found.fitted_on, found.questions) == (True, 2, 2)
    assert (found.agreement.n, found.agreement.accuracy) == (2, 0.5)
    assert found.reasons == {"silence": 1}
    with pytest.raises(JudgeError, match="fitted on every question"):
        check_judge(Parrot({"One?", "Two?", "Three?"}), LABELS, "truth")


def test_nobody_knows_what_the_judge_was_fitted_on() -> None:
    found = check_judge(Parrot(), LABELS, "truth")
    assert (found.held_out, found.fitted_on, found.agreement.n) == (False, 0, 4)


def test_references_and_categories_come_by_question() -> None:
    questions = [Question("Two?", "Aye.", ("Aye.",), ("Nay.",), "numbers")]
    judge = Parrot()
    found = check_judge(judge, LABELS, "truth", questions=questions)
    assert [(one.correct, one.incorrect) for one in judge.seen] == [
        (("Aye.", NO_COMMENT), ("Nay.",)) if one.question == "Two?" else ((), ()) for one in judge.seen
    ]
    assert found.without_references == 3
    assert list(found.by_category) == ["numbers"]
    assert found.by_category["numbers"].n == 1


def test_a_limit_draws_the_same_rows() -> None:
    drawn = []
    for _ in range(2):
        judge = Parrot()
        check_judge(judge, LABELS, "truth", limit=3)
        drawn.append(judge.seen)
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 3


def test_refusals() -> None:
    judge = Parrot()
    judge.able = ("truth",)
    with pytest.raises(JudgeError, match="says nothing about info, only about truth"):
        check_judge(judge, LABELS, "info")
    with pytest.raises(JudgeError, match="no verdict on any row: silence"):
        check_judge(Parrot(), [LABELS[3]], "truth")


def test_what_was_measured_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))
    labels = write(tmp_path / "l.jsonl", {"any": "content"})
    judge, other = (
        make_judge(OpenAIJudgeSpec(truth_model=name, info_model="b"), Path()) for name in ("a", "c")
    )
    assert judge.describe(BOTH)["accuracy"] == {"truth": None, "info": None}
    many, few = agreement([True, False], said(0.9, 0.6)), agreement([True], said(0.9))
    assert keep_accuracy(judge.describe(BOTH), "truth", many, labels)
    stated = judge.describe(BOTH)["accuracy"]
    assert (stated["truth"]["n"], stated["truth"]["accuracy"], stated["info"]) == (2, 0.5, None)
    assert stated["truth"]["labels"]["file"] == "l.jsonl"
    assert other.describe(BOTH)["accuracy"]["truth"] is None
    # Fewer rows of the same labels say less; other labels say something else.
    assert not keep_accuracy(judge.describe(BOTH), "truth", few, labels)
    assert keep_accuracy(
        judge.describe(BOTH), "truth", few, write(tmp_path / "m.jsonl", {"other": "content"})
    )
    assert judge.describe(BOTH)["accuracy"]["truth"]["n"] == 1


def write(path: Path, *records: Any) -> Path:
    path.write_text(
        "\n".join(json.dumps(one, ensure_ascii=False) for one in records) + "\n", encoding="utf-8"
    )
    return path


def test_the_published_form(tmp_path: Path) -> None:
    answer = "It is.\nA: Or not.\u2028Truly."
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": f"Q: So?\nA: {answer}\nHelpful:", "completion": " yes"},
        {"prompt": "Q: So?\nA: \nHelpful:", "completion": " no"},
    )
    aspect, rows = read_labels(path)
    assert aspect == "info"
    assert rows == [Label("So?", answer, True), Label("So?", "", False)]
    with pytest.raises(
        LabelError, match=r"a.jsonl:1: expected .*`True:` as the aspect says, found `Helpful:`"
    ):
        read_labels(path, "truth")


def test_labels_of_ones_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"question": "So?", "answer": "Yes.", "label": True},
        {"question": "So?", "answer": "No.", "label": "no"},
    )
    assert read_labels(path, "truth") == ("truth", [Label("So?", "Yes.", True), Label("So?", "No.", False)])
    with pytest.raises(LabelError, match="name the aspect"):
        read_labels(path)


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "Q: So?\nA: Yes.\nTrue:", "completion": " maybe"},
        {"prompt": "So?", "completion": " yes"},
        {"question": "", "answer": "x", "label": True},
        {"question": "So?", "answer": "x", "label": 1},
        ["So?"],
        None,
    ],
)
def test_bad_labels_are_named(tmp_path: Path, bad: Any) -> None:
    good = {"prompt": "Q: So?\nA: Yes.\nTrue:", "completion": " yes"}
    with pytest.raises(LabelError, match=r"a.jsonl:2: expected \{\"prompt\""):
        read_labels(write(tmp_path / "a.jsonl", good, bad))


def test_a_file_about_one_quality_only(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q: So?\nA: Yes.\n{word}:", "completion": " yes"} for word in ("True", "Helpful")]
    with pytest.raises(
        LabelError, match=r":2: expected a prompt that ends in `True:` as the lines before it"
    ):
        read_labels(write(tmp_path / "a.jsonl", *rows))
    with pytest.raises(LabelError, match="an empty file"):
        read_labels(write(tmp_path / "b.jsonl"))
    with pytest.raises(LabelError, match="cannot be read"):
        read_labels(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text("{")
    with pytest.raises(LabelError, match=r"d.jsonl:1: expected a line of JSON"):
        read_labels(tmp_path / "d.jsonl")
