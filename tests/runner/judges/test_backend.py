"""A back end from outside the tree: one file and a line in the registry, and it judges on both scales."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from subvene.runner.data.traits import Contrast, Trait
from subvene.runner.judges import (
    BACKENDS,
    BOTH,
    COHERENCE,
    INFO,
    TRUTH,
    YES_NO,
    ZERO_TO_HUNDRED,
    Answer,
    JudgeError,
    Judgement,
    Score,
    make_judge,
    scored,
    shows,
)
from subvene.runner.judges.training.checking import check_judge
from subvene.runner.judges.training.labels import Label
from subvene.specs.judges.base import BaseJudge

BACKEND = """
from subvene.runner.judges import COHERENCE, Judge, Judgement, Score

class Keyword(Judge):
    kind = "keyword"

    def __init__(self, spec, folder, *, cache=None):
        self.word = spec.word

    def check(self, qualities):
        pass

    def identity(self, qualities):
        return {"kind": self.kind, "words": self.word}

    def yes_no(self, answers, aspect):
        return [Judgement(0.9, True) if self.word in one.answer else Judgement(0.2, False) for one in answers]

    def accuracies(self):
        return {"truth": None, "info": None}

    def zero_to_hundred(self, answers, quality):
        return [Score(10.0 * one.answer.split().count(self.word)) for one in answers]
"""
ANSWERS = [Answer("how is it", "good good"), Answer("how is it", "bad")]
CONTRASTS = (Contrast("how is it", "good", "bad"),)
TRAIT = Trait("early", (), (), (), "how early? {question} {answer}", CONTRASTS, "0" * 64)


class KeywordSpec(BaseJudge):
    kind: Literal["keyword"] = "keyword"
    word: str = "good"


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeywordSpec:
    (tmp_path / "keyword_backend.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(BACKENDS, "keyword", "keyword_backend:Keyword")
    return KeywordSpec()


def test_one_file_serves_both_scales(backend: KeywordSpec) -> None:
    judge = make_judge(backend, Path())
    judge.check(BOTH)
    for quality in BOTH:
        assert judge.judge(ANSWERS, quality) == [Judgement(0.9, True), Judgement(0.2, False)]
    assert judge.describe(BOTH) == {
        "kind": "keyword",
        "words": "good",
        "accuracy": {"truth": None, "info": None},
    }
    checked = check_judge(judge, [Label("q", "good", True), Label("q", "bad", True)], "truth")
    assert checked.agreement.accuracy == 0.5
    judge = make_judge(backend, Path(), scale=ZERO_TO_HUNDRED)
    assert judge.judge(ANSWERS, shows(TRAIT)) == [Score(20.0), Score(0.0)]
    assert judge.judge(ANSWERS, COHERENCE) == [Score(20.0), Score(0.0)]
    # One answer of two is on its side of 50, and the good one lies above the bad one.
    told_apart = {"auc": 1.0, "accuracy": 0.5, "n": 2}
    assert judge.describe(scored([TRAIT]))["agreement"] == {"early": told_apart}


def test_a_scale_without_its_method_is_refused(backend: KeywordSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = make_judge(backend, Path())
    monkeypatch.delattr(type(judge), "zero_to_hundred")
    assert YES_NO.asks(judge)
    with pytest.raises(JudgeError, match=r"kind keyword .*a trait has none; use one of openai, trained"):
        make_judge(backend, Path(), scale=ZERO_TO_HUNDRED)
    with pytest.raises(JudgeError, match="kind keyword compares"):
        judge.judge(ANSWERS, COHERENCE)
    assert judge.judge([], TRUTH) == judge.judge([], INFO) == []
