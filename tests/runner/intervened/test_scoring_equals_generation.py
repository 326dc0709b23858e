"""The tokens that generation edits are those that scoring edits: the same log-probabilities for every rule.

Each is also compared with edits by hand (`oracle`), so that the two cannot agree on the wrong tokens.
"""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from oracle import (
    FROM_THE_END,
    NEW,
    PROMPTS,
    RULES,
    batch,
    every_model,
    every_rule,
    intervened,
    steering,
    tiny,
)

from subvene.runner import PositionError

both_sides = pytest.mark.parametrize("side", ["left", "right"])


def generated(m: Any, **settings: Any) -> tuple[list[list[int]], torch.Tensor]:
    """The rows of PROMPTS with their responses, and the log-probabilities [row, new, vocab] of each step."""
    ids, mask = batch(PROMPTS, "left")
    settings = {"max_new_tokens": NEW, "do_sample": False} | settings
    output = m.generate_ids(ids, mask, output_logits=True, return_dict_in_generate=True, **settings)
    responses = output.sequences[:, ids.shape[1] :].tolist()
    rows = [[*prompt, *response] for prompt, response in zip(PROMPTS, responses, strict=True)]
    return rows, torch.stack(output.logits, 1).log_softmax(-1)


def scored(m: Any, rows: list[list[int]], side: str) -> list[torch.Tensor]:
    """For each row, the log-probabilities [tokens, vocab] of a teacher-forced pass over the batch."""
    ids, mask = batch(rows, side)
    with torch.no_grad():
        logits = m(ids, mask, prompt_lengths=[len(prompt) for prompt in PROMPTS]).logits.log_softmax(-1)
    return [logits[i][mask[i].bool()] for i in range(len(rows))]


@every_model
@every_rule
def test_scores_equal_those_of_the_generation_that_produced_the_tokens(name: str, rule: Any) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    rows, of_generation = generated(m)
    by_side = {side: scored(m, rows, side) for side in ("left", "right")}
    for i, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        by_hand = oracle.logits_by_hand(model, row, len(prompt), rule).log_softmax(-1)
        steps = slice(len(prompt) - 1, len(row) - 1)
        assert (of_generation[i] - by_hand[steps]).abs().max() <= 1e-5
        for of_scoring in by_side.values():
            assert (of_scoring[i] - by_hand).abs().max() <= 1e-5
            assert (of_scoring[i][steps] - of_generation[i]).abs().max() <= 1e-5


@every_model
def test_sampling_is_scored_too(name: str) -> None:
    m = intervened(tiny(name), steering("response"))
    torch.manual_seed(0)
    rows, of_generation = generated(m, do_sample=True, top_k=0, temperature=1.0)
    for i, scores in enumerate(scored(m, rows, "right")):
        assert (scores[-NEW - 1 : -1] - of_generation[i]).abs().max() <= 1e-5


@every_model
def test_response_agrees_with_generation_to_1e_6(name: str) -> None:
    """Failure 2: a teacher-forced pass edits every token from P-1 on, not the last one only."""
    m = intervened(tiny(name), steering("response", coefficient=0.1))
    m.model.double()
    rows, of_generation = generated(m)
    for i, scores in enumerate(scored(m, rows, "right")):
        assert (scores[-NEW - 1 : -1] - of_generation[i]).abs().max() <= 1e-6


@both_sides
@pytest.mark.parametrize("rule", FROM_THE_END.values(), ids=FROM_THE_END)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rules_from_the_end_of_the_response_work_in_scoring(name: str, rule: Any, side: str) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    rows = [[*prompt, *range(40 + i, 40 + 2 * i + 3)] for i, prompt in enumerate(PROMPTS)]
    for prompt, row, scores in zip(PROMPTS, rows, scored(m, rows, side), strict=True):
        by_hand = oracle.logits_by_hand(model, row, len(prompt), rule).log_softmax(-1)
        assert (scores - by_hand).abs().max() <= 1e-5


@pytest.mark.parametrize("rule", FROM_THE_END.values(), ids=FROM_THE_END)
def test_rules_from_the_end_of_the_response_are_refused_in_generation(rule: Any) -> None:
    m = intervened(tiny("llama"), steering(rule))
    with pytest.raises(PositionError, match=r"from the end of the response.*teacher-forced"):
        m.generate_ids(*batch(PROMPTS, "left"), max_new_tokens=2)
    assert oracle.hooks(m.model) == []


@pytest.mark.parametrize("rule", [rule for rule in (RULES | FROM_THE_END).values() if rule != "all"], ids=str)
def test_scoring_without_prompt_lengths_is_refused(rule: Any) -> None:
    m = intervened(tiny("llama"), steering(rule))
    with pytest.raises(PositionError, match="prompt_lengths"):
        m(*batch(PROMPTS, "right"))


def test_all_needs_no_prompt_lengths() -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "right")
    with torch.no_grad():
        logits = m(ids, mask).logits
    for i, prompt in enumerate(PROMPTS):
        by_hand = oracle.logits_by_hand(model, prompt, len(prompt), "all")
        torch.testing.assert_close(logits[i, : len(prompt)], by_hand)
    assert m.receipt[0].tokens == sum(map(len, PROMPTS))


@pytest.mark.parametrize("lengths", [[7, 4], [7, 4, 0], [7, 4, 2], [[7], [4], [1]]], ids=str)
def test_prompt_lengths_that_cannot_be_are_refused(lengths: Any) -> None:
    m = intervened(tiny("llama"), steering("prompt"))
    with pytest.raises(ValueError, match="prompt_lengths"):
        m(*batch(PROMPTS, "right"), prompt_lengths=lengths)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["all", "prompt", "response", {"first": 3, "of": "response"}], ids=str)
def test_scores_equal_generation_on_smollm2(smollm2: Any, rule: Any) -> None:
    model, tokenizer = smollm2
    m = intervened(model, steering(rule, layer=14, coefficient=0.3))
    prompts = [
        tokenizer(text)["input_ids"] for text in ("The sea is", "Tell me a story about a fox who", "Yes")
    ]
    ids, mask = batch(prompts, "left")
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    output = m.generate_ids(ids, mask, output_logits=True, return_dict_in_generate=True, **settings)
    of_generation = torch.stack(output.logits, 1).log_softmax(-1)
    responses = output.sequences[:, ids.shape[1] :].tolist()
    rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    for side in ("left", "right"):
        ids, mask = batch(rows, side)
        with torch.no_grad():
            logits = m(ids, mask, prompt_lengths=[len(p) for p in prompts]).logits.log_softmax(-1)
        for i in range(len(rows)):
            scores = logits[i][mask[i].bool()][-9:-1]
            assert (scores - of_generation[i]).abs().max() <= 1e-4
