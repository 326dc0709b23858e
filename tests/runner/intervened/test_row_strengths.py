"""Strengths: 0 is the baseline token for token, and each row of a batch may have its own."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from oracle import (
    NEW,
    PROMPTS,
    Watch,
    batch,
    both_models,
    every_model,
    intervened,
    main_rules,
    responses,
    steering,
    tiny,
)

# Per-row strengths and strength 0 -------------------------------------------------------------------------


@every_model
@main_rules
def test_strength_0_is_the_baseline_token_for_token(name: str, rule: Any) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    with m.disabled():
        baseline = responses(m)
    nothing = torch.zeros(oracle.WIDTH)
    assert baseline == [oracle.greedy_by_hand(model, prompt, rule, NEW, nothing)[0] for prompt in PROMPTS]
    assert responses(m) != baseline
    assert responses(m, strengths=0.0) == baseline
    assert responses(intervened(model, steering(rule, coefficient=0.0))) == baseline
    assert m.receipt[0].is_off
    assert m.receipt[0].tokens == 0


@both_models
@main_rules
def test_a_row_of_strength_0_is_the_baseline_within_a_steered_batch(name: str, rule: Any) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    with m.disabled():
        baseline = responses(m)
    steered = responses(m)
    with Watch(model) as watch:
        mixed = responses(m, strengths=[1.0, 0.0, 1.0])
    assert mixed == [steered[0], baseline[1], steered[2]]
    assert not watch.changed()[1].any()
    assert m.receipt[0].rows_edited == 2


@both_models
@main_rules
def test_a_sweep_in_one_batch_equals_runs_one_at_a_time(name: str, rule: Any) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    sweep = [-2.0, -0.5, 0.0, 0.5, 2.0]
    rows = [PROMPTS[0]] * len(sweep)
    together = responses(m, rows, strengths=sweep)
    for strength, response in zip(sweep, together, strict=True):
        assert responses(m, [PROMPTS[0]], strengths=strength) == [response]
        v = strength * oracle.vector()
        assert oracle.greedy_by_hand(model, PROMPTS[0], rule, NEW, v)[0] == response
    assert len({tuple(response) for response in together}) > 2


def test_strengths_follow_their_rows_through_beams_and_sequences() -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "left")
    for widened in ({"num_beams": 2, "do_sample": False}, {"num_return_sequences": 2, "do_sample": True}):
        with Watch(model) as watch:
            m.generate_ids(ids, mask, strengths=[1.0, 0.0, 2.0], max_new_tokens=3, **widened)
        norms = torch.stack([(after - before).norm(dim=-1).amax() for before, after in watch.calls])
        assert norms[0] > 0
        last_before, last_after = watch.calls[-1]
        length = (last_after - last_before).norm(dim=-1)[:, 0] / oracle.vector().norm()
        torch.testing.assert_close(length, torch.tensor([1.0, 1.0, 0.0, 0.0, 2.0, 2.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "strengths", [[1.0, 2.0], [[1.0], [1.0], [1.0]], float("nan"), [1.0, float("inf"), 0.0]]
)
def test_strengths_that_fit_no_batch_are_refused(strengths: Any) -> None:
    m = intervened(tiny("llama"), steering("all"))
    with pytest.raises(ValueError, match="strength"):
        m.generate_ids(*batch(PROMPTS, "left"), strengths=strengths, max_new_tokens=2)
    assert oracle.hooks(m.model) == []
