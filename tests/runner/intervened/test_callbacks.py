"""Callbacks of a generation, which may call the model."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import transformers as t
from oracle import LENGTHS, NEW, PROMPTS, Watch, batch, by_hand, intervened, responses, slots, steering, tiny
from ways import GREEDY, rules

from subvene.runner import PositionError


class _Criterion(t.StoppingCriteria):
    def __init__(self, call: Callable[[torch.Tensor], None], ends: list[int] | None = None) -> None:
        self.call, self.ends = call, ends

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.call(input_ids)
        ends = torch.zeros(len(input_ids)) if self.ends is None else torch.tensor(self.ends)
        return (input_ids.shape[1] >= ends) if self.ends else torch.zeros(len(input_ids), dtype=torch.bool)


class _Processor(t.LogitsProcessor):
    def __init__(self, call: Callable[[torch.Tensor], None]) -> None:
        self.call = call

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.call(input_ids)
        return scores


def callbacks(call: Callable[[torch.Tensor], None]) -> list[dict[str, Any]]:
    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            call(value.view(1, -1))

        def end(self) -> None:
            pass

    return [
        {"stopping_criteria": [_Criterion(call)]},
        {"logits_processor": t.LogitsProcessorList([_Processor(call)])},
        {"streamer": Streamer()},
        {"prefix_allowed_tokens_fn": lambda row, ids: call(ids.view(1, -1)) or list(range(oracle.VOCAB))},
    ]


@rules
@pytest.mark.parametrize("cached", [False, True])
def test_a_callback_may_call_the_model(rule: str, cached: bool) -> None:
    """The plain model, another edit of it, the same one: none is a part of the run, and the run goes on."""
    model = tiny("llama")
    m, other = intervened(model, steering(rule)), intervened(model, steering("all", coefficient=-1.0))
    row = PROMPTS[1]
    expected = by_hand(model, rule, [row])
    inner = {id(m): responses(m, [row]), id(other): responses(other, [row])}
    with m.disabled(), torch.no_grad():
        plain = m(torch.tensor([row])).logits

    def call(ids: torch.Tensor) -> None:
        with torch.no_grad():
            assert torch.equal(model(torch.tensor([row])).logits, plain)
        for inside in (m, other):
            assert responses(inside, [row]) == inner[id(inside)]
        with m.disabled(), torch.no_grad():
            assert torch.equal(m(torch.tensor([row])).logits, plain)

    for settings in callbacks(call):
        with Watch(model):
            assert responses(m, [row], use_cache=cached, **settings) == expected
        assert m.receipt[0].tokens == len(oracle.selected(rule, len(row), len(row) + NEW - 1))


@rules
def test_a_plain_call_amid_a_run_that_somebody_else_drives_is_refused(rule: str) -> None:
    model = tiny("llama")
    m = intervened(model, steering(rule))
    ids, mask = batch(PROMPTS, "left")

    def call(ids: torch.Tensor) -> None:
        model(ids)

    driven = m.intervenable.attached(oracle.tracker(mask))
    with pytest.raises(PositionError, match="none of its steps"), driven:
        model.generate(input_ids=ids, attention_mask=mask, stopping_criteria=[_Criterion(call)], **GREEDY)
    assert oracle.hooks(model) == []


def test_an_answers_padding_token_is_a_token_until_its_row_has_ended() -> None:
    """Under a criterion of the caller's, which ends rows at other lengths."""
    model = tiny("llama")
    m = intervened(model, steering("response"))
    greedy = by_hand(model, "response")
    pad = greedy[0][1]
    ids, mask = batch(PROMPTS, "left")
    width, lengths = ids.shape[1], [NEW, 2, 4]
    ends = [width + length for length in lengths]
    settings = {"eos_token_id": 99, "pad_token_id": pad}
    assert 99 not in functools.reduce(operator.iadd, greedy, [])
    with Watch(model) as watch:
        found = responses(m, stopping_criteria=[_Criterion(lambda ids: None, ends)], **settings)
    assert [row[:n] for row, n in zip(found, lengths, strict=True)] == [
        row[:n] for row, n in zip(greedy, lengths, strict=True)
    ]
    expected = slots(mask, "response", LENGTHS, width + NEW - 1)
    for row, length in enumerate(lengths):
        expected[row, width + length - 1 :] = False
    assert torch.equal(watch.changed(), expected)
