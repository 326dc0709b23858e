"""Scores: a batch gives each pair what the pair alone gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import oracle
import pytest
import torch
from oracle import both_models, intervened, logits_by_hand, selected, steering, tiny, vector
from torch import nn

from subvene.runner.data.text import TextError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.intervened.scoring import log_normalizer, log_probs

# Prompts and responses of many lengths, in no order; the longest pair does not have the longest prompt.
PAIRS = [
    ([21, 22, 23, 24], [51, 52]),
    ([31], [61, 62, 63, 64, 65, 66, 67, 68]),
    ([11, 12, 13, 14, 15, 16, 17], [71]),
    ([41, 42], [81, 82, 83]),
    ([31], [91]),
]
STRENGTHS = [1.0, -0.5, 0.0, 2.0, 0.25]


def by_hand(model: nn.Module, rule: Any, strengths: Sequence[float]) -> torch.Tensor:
    """Σ log p of each response, its row alone in a plain forward."""
    totals = []
    for (prompt, response), strength in zip(PAIRS, strengths, strict=True):
        logits = logits_by_hand(model, [*prompt, *response], len(prompt), rule, strength * vector())
        log_p = logits.double().log_softmax(-1)
        totals.append(sum(log_p[len(prompt) + i - 1, token] for i, token in enumerate(response)))
    return torch.stack(totals)


@both_models
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_of_the_disabled_model(name: str, batch_size: int) -> None:
    m = intervened(tiny(name), steering("all"))
    expected = by_hand(m.model, "all", [0.0] * 5)
    with m.disabled():
        totals, receipts = log_probs(m, PAIRS, batch_size=batch_size)
    assert totals.dtype == torch.float64
    assert (totals - expected).abs().max() <= 1e-4
    assert receipts == []


@both_models
@pytest.mark.parametrize("rule", ["all", "prompt", "response", {"last": 2, "of": "response"}], ids=str)
@pytest.mark.parametrize("batch_size", [2, 16])
def test_of_a_steered_model(name: str, rule: Any, batch_size: int) -> None:
    m = intervened(tiny(name), steering(rule, coefficient=0.7))
    expected = by_hand(m.model, rule, [0.7] * 5)
    totals, receipts = log_probs(m, PAIRS, batch_size=batch_size)
    assert (totals - expected).abs().max() <= 1e-4
    assert (expected - by_hand(m.model, rule, [0.0] * 5)).abs().max() > 1e-2
    assert len(receipts) == -(-len(PAIRS) // batch_size)
    edited = sum(receipt[0].tokens for receipt in receipts)
    assert edited == sum(len(selected(rule, len(p), len(p) + len(r))) for p, r in PAIRS)


@both_models
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_strengths_follow_their_pairs(name: str, batch_size: int) -> None:
    """Batches are sorted by length: a strength or a score in the sorted order would go to another pair."""
    m = intervened(tiny(name), steering("response", name="v"))
    expected = by_hand(m.model, "response", STRENGTHS)
    totals, _ = log_probs(m, PAIRS, strengths={"v": STRENGTHS}, batch_size=batch_size)
    assert (totals - expected).abs().max() <= 1e-4
    back, _ = log_probs(m, PAIRS[::-1], strengths={"v": STRENGTHS[::-1]}, batch_size=batch_size)
    assert (back.flip(0) - expected).abs().max() <= 1e-4
    assert len(set(expected.tolist())) == 5


def test_strength_0_is_the_disabled_model() -> None:
    m = intervened(tiny("llama"), steering("response", name="v"))
    totals, _ = log_probs(m, PAIRS, strengths={"v": [0.0] * 5})
    with m.disabled():
        baseline, _ = log_probs(m, PAIRS)
    assert torch.equal(totals, baseline)


def test_only_the_logits_that_are_needed_are_made() -> None:
    m = intervened(tiny("llama"), steering("all"))
    shapes: list[torch.Size] = []
    m.model.lm_head.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape))
    log_probs(m, [([1] * 9, [2]), ([1] * 7, [2, 3])])
    assert shapes == [(2, 4, oracle.VOCAB)]  # from the seventh token, the first that decides a response


def test_a_rule_may_select_nothing_in_one_batch_but_not_in_all() -> None:
    m = intervened(tiny("llama"), steering({"indices": [1], "of": "response"}))
    _, receipts = log_probs(m, PAIRS, batch_size=1)
    assert sorted(receipt[0].tokens for receipt in receipts) == [0, 0, 1, 1, 1]
    with pytest.raises(NotSteeredError, match="edited no token"):
        log_probs(m, [pair for pair in PAIRS if len(pair[1]) == 1], batch_size=1)


@pytest.mark.parametrize(
    ("pair", "which"), [(([1, 2], []), "response"), (([], [1]), "prompt")], ids=["response", "prompt"]
)
def test_what_is_empty_is_refused_before_anything_runs(pair: Any, which: str) -> None:
    m = intervened(tiny("llama"), steering("all"))
    m.model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    with pytest.raises(TextError, match=f"pair 1: the {which} holds no token"):
        log_probs(m, [([1], [2]), pair])


def test_no_gradient_is_kept() -> None:
    m = intervened(tiny("llama").train(), steering("all"))
    totals, _ = log_probs(m, PAIRS)
    assert not totals.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_normalizer_is_that_of_float64_however_large_the_vocabulary(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 3, 49152, generator=generator) * 4 + 12).to(dtype)
    exact = logits.double().logsumexp(-1)
    assert log_normalizer(logits).dtype == torch.float64
    torch.testing.assert_close(log_normalizer(logits), exact, atol=2e-7, rtol=0)


def test_the_normalizer_neither_overflows_nor_minds_what_is_ruled_out() -> None:
    logits = torch.tensor([[3e38, -3e38, 0.0], [-float("inf"), 1.0, 1.0]])
    found = log_normalizer(logits)
    assert found[0] == pytest.approx(3e38, rel=1e-6)
    assert found[1] == pytest.approx(1 + math.log(2))
