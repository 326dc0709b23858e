"""Threads and tasks on one model, and on one base, are kept apart."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from oracle import LENGTHS, NEW, PROMPTS, batch, by_hand, intervened, responses, steering, tiny
from ways import GREEDY, in_a_thread, in_threads, new_tokens

from subvene.runner import ConcurrentRunError, IntervenedModel


def test_threads_on_one_model_are_kept_apart() -> None:
    """Steered, at another strength, disabled, and the plain model, all at once."""
    model = tiny("llama")
    m = intervened(model, steering("response"))
    strong = [oracle.greedy_by_hand(model, row, "response", NEW, 2 * oracle.vector())[0] for row in PROMPTS]
    plain = [oracle.greedy_by_hand(model, row, "response", NEW, 0 * oracle.vector())[0] for row in PROMPTS]
    steered = by_hand(model, "response")
    ids, mask = batch(PROMPTS, "left")
    rounds = 8

    def edited() -> None:
        for _ in range(rounds):
            assert responses(m) == steered
            assert m.receipt[0].strengths == (1.0,)

    def stronger() -> None:
        for _ in range(rounds):
            assert responses(m, strengths=2.0) == strong
            assert m.receipt[0].strengths == (2.0,)

    def disabled() -> None:
        for _ in range(rounds):
            with m.disabled():
                assert responses(m) == plain
                assert m.receipt is None

    def untouched() -> None:
        for _ in range(rounds):
            assert new_tokens(model.generate(input_ids=ids, attention_mask=mask, **GREEDY)) == plain

    in_threads(edited, stronger, disabled, untouched)
    assert oracle.hooks(model) == []


def test_threads_with_models_of_their_own_on_one_base_are_kept_apart() -> None:
    model = tiny("llama")
    one, two = intervened(model, steering("response")), intervened(model, steering("all", layer=0))
    expected = {id(m): responses(m) for m in (one, two)}

    def job(m: IntervenedModel) -> Callable[[], None]:
        def run() -> None:
            for _ in range(8):
                assert responses(m) == expected[id(m)]

        return run

    in_threads(job(one), job(two))


def test_another_thread_calls_an_attached_model() -> None:
    """Its plain call is refused there and here, a run of its own is not."""
    model = tiny("llama")
    m, other = intervened(model, steering("all")), intervened(model, steering("all", coefficient=2.0))
    ids, mask = batch(PROMPTS, "left")
    alone = responses(other)
    with m.attached() as inside:
        inside.generate(input_ids=ids, attention_mask=mask, **GREEDY)
        found: list[Any] = []
        in_threads(lambda: found.append(responses(other)))
        assert found == [alone]
        with other.disabled():
            plain = responses(other)
        in_threads(lambda: found.append(_disabled(m)))
        assert found[1] == plain
    assert m.receipt is not None
    for call in (lambda: model(ids), lambda: model.generate(input_ids=ids, attention_mask=mask, **GREEDY)):
        with pytest.raises(ConcurrentRunError, match="another thread"), m.attached() as inside:
            _ = inside.generate(input_ids=ids, attention_mask=mask, **GREEDY), in_threads(call)
    assert oracle.hooks(model) == []


def _disabled(m: IntervenedModel) -> Any:
    with m.disabled():
        return responses(m)


def test_the_receipt_of_a_thread_that_has_ended_is_seen() -> None:
    m = intervened(tiny("llama"), steering("prompt"))
    responses(m, [[11, 12, 13]])
    assert m.receipt[0].tokens == 3
    in_a_thread(m)
    assert m.receipt[0].tokens == sum(LENGTHS)


def test_disabled_ends_with_its_block_for_tasks_too() -> None:
    m = intervened(tiny("llama"), steering("response"))
    steered = responses(m)

    async def job() -> Any:
        await asyncio.sleep(0.01)
        return responses(m)

    async def main() -> Any:
        with m.disabled():
            task = asyncio.create_task(job())
        return await task

    assert asyncio.run(main()) == steered


def test_two_calls_at_once_in_one_attachment_are_refused() -> None:
    m = intervened(tiny("llama"), steering("all"))
    ids = torch.tensor([PROMPTS[1]])
    second: list[Any] = []

    def call(_module: Any, _args: Any) -> None:
        if not second:
            second.append(None)
            context = contextvars.copy_context()
            in_threads(lambda: context.run(m.model, ids))

    oracle.blocks(m.model)[0].register_forward_pre_hook(call)
    with pytest.raises(ConcurrentRunError, match="two at once"), m.attached() as inside:
        inside(ids)
