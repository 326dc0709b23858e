"""Several edited models as rows of one batch: each as if it were scored alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from oracle import intervened, steering

from subvene.runner.data.truthfulqa.prompts import load_prompts
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.measures.truthfulqa_scores import score_choices, score_side_by_side

from .conftest import QUESTIONS, tiny
from .test_scoring import flat

PROMPTS = load_prompts("instruction_qa", None, None, Path())
VERSIONS = [{"a": 0.3}, {"b": -0.5, "c": 0.2}, {"d": 0.0}, {"e": 0.6}]


@pytest.mark.parametrize("rule", ["all", "response", {"last": 2, "of": "response"}], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_is_as_if_scored_alone(name: str, rule: Any, words: Any) -> None:
    declared = {"a": (0, "all"), "b": (1, rule), "c": (0, rule), "d": (1, rule), "e": (0, "all")}
    edits = [steering(at, coefficient=1.0, layer=layer, name=n) for n, (layer, at) in declared.items()]
    m = intervened(tiny(name, words), *edits)
    m.tokenizer = words
    together = score_side_by_side(m, PROMPTS, QUESTIONS, VERSIONS, batch_size=5)
    for found, version in zip(together, VERSIONS, strict=True):
        strengths = dict.fromkeys(declared, 0.0) | version
        alone = score_choices(m, PROMPTS, QUESTIONS, batch_size=3, strengths=strengths)
        assert ((flat(found) - flat(alone)) / flat(alone)).abs().max() <= 1e-6
        assert (found.from_scratch is None) == (alone.from_scratch is None)
        (receipt,), (expected,) = found.receipts, alone.receipts
        assert [one.name for one in receipt] == list(version)
        for one in receipt:
            same = expected[one.name]
            assert set(one.strengths) == set(same.strengths)
            for field in ("edited", "changed", "first", "last", "rows", "rows_edited"):
                assert getattr(one, field) == getattr(same, field), field
            assert one.mean_relative == pytest.approx(same.mean_relative, rel=1e-5)
    assert (flat(together[0]) - flat(together[1])).abs().max() > 1e-2


def test_one_that_does_not_act_is_told(words: Any) -> None:
    edits = [steering("all", layer=0, name="a"), steering({"last": 1, "of": "response"}, layer=1, name="b")]
    m = intervened(tiny("llama", words), *edits)
    m.tokenizer = words
    m.intervenable.interventions[m.intervenable.entries[1].keys[0]].vector.zero_()
    with pytest.raises(ValueError, match="of one model each"):
        score_side_by_side(m, PROMPTS, QUESTIONS, [{"a": 1.0}, {"a": 2.0}])
    with pytest.raises(NotSteeredError, match="'b'"):
        score_side_by_side(m, PROMPTS, QUESTIONS, [{"a": 1.0}, {"b": 1.0}])
