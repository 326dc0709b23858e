"""Multiple choice: the published measures, of the scores that every answer has from scratch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import intervened, steering

from subvene.runner.data.truthfulqa.prompts import Prompts, load_prompts
from subvene.runner.data.truthfulqa.questions import load_questions
from subvene.runner.data.truthfulqa.splits import limited
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.measures.truthfulqa_scores import ChoiceScores, QuestionScore, score_choices
from subvene.specs.questions import QuestionsSpec

from .conftest import QUESTIONS, tiny

PROMPTS = load_prompts("instruction_qa", None, None, Path())
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def flat(scores: ChoiceScores) -> torch.Tensor:
    rows = [value for q in scores.questions for value in (q.best, *q.correct, *q.incorrect)]
    return torch.tensor(rows, dtype=torch.float64)


def scratch(m: IntervenedModel, prompts: Prompts, questions: Any = QUESTIONS) -> torch.Tensor:
    """Every answer with its whole prompt."""
    encoded = prompts.encode(m.tokenizer, [question.question for question in questions])
    pairs = [
        (prompt, answer)
        for prompt, q in zip(encoded.prompts, questions, strict=True)
        for answer in prompts.answer_ids(m.tokenizer, [q.best, *q.correct, *q.incorrect])
    ]
    return log_probs(m, pairs, batch_size=4)[0]


def steered(name: str, tokenizer: Any, rule: Any, **fields: Any) -> IntervenedModel:
    m = intervened(tiny(name, tokenizer), steering(rule, coefficient=0.3, layer=0, name="v", **fields))
    m.tokenizer = tokenizer
    return m


@pytest.mark.parametrize("kind", ["words", "merging", "spaced"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_equal_to_scoring_every_answer_from_scratch(
    kind: str, name: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    found = []
    for rule in ("all", "prompt", "response"):
        m = steered(name, tokenizer, rule)
        scores = score_choices(m, PROMPTS, QUESTIONS, batch_size=3)
        assert scores.from_scratch is None
        assert scores.shared_tokens > 100
        assert ((flat(scores) - scratch(m, PROMPTS)) / flat(scores)).abs().max() <= 1e-6
        found.append(flat(scores))
    with m.disabled():
        scores = score_choices(m, PROMPTS, QUESTIONS, batch_size=3)
        assert ((flat(scores) - scratch(m, PROMPTS)) / flat(scores)).abs().max() <= 1e-6
        assert scores.receipts == ()
    plain = score_choices(IntervenedModel.plain(m.model, tokenizer), PROMPTS, QUESTIONS, batch_size=3)
    assert torch.equal(flat(plain), flat(scores))
    for i, one in enumerate([*found, flat(scores)]):
        for other in found[:i]:
            assert (one - other).abs().max() > 1e-2


def test_in_chat(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "chat_template", TEMPLATE)
    prompts = load_prompts("chat", None, None, Path())
    m = steered("llama", words, "response")
    scores = score_choices(m, prompts, QUESTIONS)
    assert scores.from_scratch is None
    assert ((flat(scores) - scratch(m, prompts)) / flat(scores)).abs().max() <= 1e-6
    assert (flat(scores) - flat(score_choices(m, PROMPTS, QUESTIONS))).abs().min() > 1e-3


def test_from_scratch_where_a_rule_forbids_sharing_and_it_is_said(words: Any) -> None:
    m = steered("llama", words, {"last": 2, "of": "response"})
    scores = score_choices(m, PROMPTS, QUESTIONS, batch_size=3)
    assert "v: positions {'last': 2, 'of': 'response'} count from the end" in str(scores.from_scratch)
    assert scores.shared_tokens == 0
    assert ((flat(scores) - scratch(m, PROMPTS)) / flat(scores)).abs().max() <= 1e-6
    shared = score_choices(steered("llama", words, "response"), PROMPTS, QUESTIONS, batch_size=3)
    assert scores.tokens > 5 * shared.tokens


def test_a_strength_for_the_call(words: Any) -> None:
    for rule in ("all", {"last": 2, "of": "response"}):
        m = steered("llama", words, rule)
        baseline = flat(score_choices(IntervenedModel.plain(m.model, words), PROMPTS, QUESTIONS))
        off = score_choices(m, PROMPTS, QUESTIONS, strengths={"v": 0.0})
        assert ((flat(off) - baseline) / baseline).abs().max() <= 1e-6
        assert off.receipts[0][0].tokens == 0
        doubled = score_choices(m, PROMPTS, QUESTIONS, strengths={"v": 0.6})
        assert (flat(doubled) - flat(score_choices(m, PROMPTS, QUESTIONS))).abs().max() > 1e-2


def test_receipts_and_tokens(words: Any) -> None:
    m = steered("llama", words, "all")
    scores = score_choices(m, PROMPTS, QUESTIONS, batch_size=1)
    encoded = PROMPTS.encode(words, [question.question for question in QUESTIONS])
    questions = sum(len(prompt) for prompt in encoded.prompts) - len(QUESTIONS) * len(encoded.shared)
    # Different answers only: the best one stands among the true ones, and "A thing." twice.
    answers = [{q.best, *q.correct, *q.incorrect} for q in QUESTIONS]
    later = sum(len(ids) - 1 for row in answers for ids in PROMPTS.answer_ids(words, sorted(row)))
    (receipt,) = scores.receipts
    assert receipt[0].tokens == len(encoded.shared) + questions + later
    assert scores.shared_tokens == len(encoded.shared)
    assert receipt[0].tokens <= scores.tokens <= 1.3 * receipt[0].tokens


def test_an_edit_of_nothing_is_an_error(words: Any) -> None:
    with pytest.raises(NotSteeredError):
        score_choices(steered("llama", words, {"indices": [900], "of": "response"}), PROMPTS, QUESTIONS)
    with pytest.raises(ValueError, match="no questions"):
        score_choices(IntervenedModel.plain(tiny("llama", words), words), PROMPTS, [])


def test_measures() -> None:
    score = QuestionScore(
        "k", math.log(0.2), (math.log(0.2), math.log(0.05)), (math.log(0.1), math.log(0.15))
    )
    assert score.mc1 == 1
    assert score.mc2 == pytest.approx(0.25 / 0.5)
    assert score.mc3 == 0.5
    # A tie is no win, as where one answer is listed as true and as false.
    tie = QuestionScore("k", -3.0, (-3.0, -2.0), (-3.0,))
    assert (tie.mc1, tie.mc3) == (0, 0.5)
    # Sums of log-probabilities whose exponentials are 0 in any precision.
    far = QuestionScore("k", -2000.0, (-2000.0, -2000.0), (-2000.0,))
    assert far.mc2 == pytest.approx(2 / 3)
    assert QuestionScore("k", -5000.0, (-5000.0,), (-20.0,)).mc2 == 0
    both = ChoiceScores((score, tie), (), 0, 0, None)
    assert (both.mc1, both.mc3) == (0.5, 0.5)
    assert both.mc2 == pytest.approx((0.5 + tie.mc2) / 2)


def test_scores_stand_with_their_answers(words: Any) -> None:
    plain = IntervenedModel.plain(tiny("llama", words), words)
    scores = score_choices(plain, PROMPTS, QUESTIONS)
    for question, score in zip(QUESTIONS, scores.questions, strict=True):
        assert score.key == question.key
        assert len(score.correct) == len(question.correct)
        assert len(score.incorrect) == len(question.incorrect)
        assert score.best == score.correct[question.correct.index(question.best)]
    back = score_choices(plain, PROMPTS, QUESTIONS[::-1]).questions[::-1]
    for one, other in zip(scores.questions, back, strict=True):
        assert one.correct == pytest.approx(other.correct, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["baseline", "all", "response"])
def test_of_smollm2_with_the_published_prompt(smollm2: Any, data: Path, rule: str) -> None:
    model, tokenizer = smollm2
    prompts = load_prompts("instruction_qa", "primer_qa.txt", "instruction.txt", data)
    questions = [
        dataclasses.replace(q, best=q.correct[0], correct=q.correct[:2], incorrect=q.incorrect[:1])
        for q in limited(load_questions(QuestionsSpec(file="TruthfulQA.csv"), data), 2)
    ]
    m = IntervenedModel.plain(model, tokenizer)
    if rule != "baseline":
        vector = torch.randn(576, generator=torch.Generator().manual_seed(0))
        entry = steering(rule, coefficient=1.0, layer=14)
        m = intervened(model, entry, tensors={"v.block_output[14]": vector})
        m.tokenizer = tokenizer
    scores = score_choices(m, prompts, questions)
    expected = scratch(m, prompts, questions)
    assert ((flat(scores) - expected) / expected).abs().max() <= 5e-6
    assert scores.from_scratch is None
