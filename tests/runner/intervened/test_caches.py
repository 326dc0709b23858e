"""Caches know what they were filled with, at every call."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import transformers as t
from oracle import LENGTHS, PROMPTS, batch, intervened, steering, tiny
from ways import GREEDY

from subvene.runner import CacheError, IntervenedModel, PositionError


@pytest.mark.parametrize("way", ["tuple", "attached", "attached tuple", "exception"])
def test_every_cache_knows_what_it_was_filled_with(way: str) -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    ids, more = torch.tensor([PROMPTS[1]]), torch.tensor([[18, 19]])
    cache: Any = t.DynamicCache(config=model.config)
    with torch.no_grad():
        if way == "tuple":
            cache = m(ids, use_cache=True, return_dict=False)[1]
        elif way == "exception":
            with contextlib.suppress(KeyboardInterrupt), m.attached() as inside:
                inside(ids, past_key_values=cache)
                raise KeyboardInterrupt
        else:
            with m.attached() as inside:
                inside(ids, past_key_values=cache, return_dict=way == "attached")
                with pytest.raises(CacheError, match="without edits"), m.disabled():
                    m(more, past_key_values=copy.deepcopy(cache))
        with pytest.raises(CacheError, match="without edits"), m.disabled():
            m(more, past_key_values=copy.deepcopy(cache))
        with pytest.raises(CacheError, match="filled otherwise"):
            m(more, past_key_values=copy.deepcopy(cache), strengths=0.5)
        next(iter(m.intervenable.interventions.values())).vector.mul_(-1)
        with pytest.raises(CacheError, match="filled otherwise"):
            m(more, past_key_values=cache)


def test_a_caches_rows_may_be_selected() -> None:
    m = intervened(tiny("llama"), steering("all"))
    ids, more = torch.tensor([[11, 12, 13], [21, 22, 23]]), torch.tensor([[24], [14]])
    with torch.no_grad():
        cache = m(ids, use_cache=True, strengths=[0.5, 2.0]).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        with pytest.raises(CacheError, match="filled otherwise"):
            m(more, past_key_values=copy.deepcopy(cache), strengths=[0.5, 2.0])
        found = m(more, past_key_values=cache, strengths=[2.0, 0.5]).logits[:, -1]
    whole = torch.cat([ids.flip(0), more], 1)
    with torch.no_grad():
        expected = m(whole, strengths=[2.0, 0.5]).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def _repeat(cache: Any) -> list[int]:
    cache.batch_repeat_interleave(2)
    return [0, 0, 1, 1]


def _select(cache: Any) -> list[int]:
    cache.batch_select_indices(torch.tensor([1]))
    return [1]


def _select_more(cache: Any) -> list[int]:
    cache.batch_select_indices(torch.tensor([1, 0, 1]))
    return [1, 0, 1]


def _reorder(cache: Any) -> list[int]:
    cache.reorder_cache(torch.tensor([1, 0]))
    return [1, 0]


def _crop(cache: Any) -> list[int]:
    cache.crop(-1)
    return [0, 1]


@pytest.mark.parametrize("change", [_repeat, _select, _select_more, _reorder, _crop])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rule", ["all", "prompt", "response", {"first": 2, "of": "response"}], ids=str)
def test_rows_of_an_open_cache_may_be_changed_while_attached(rule: Any, masked: bool, change: Any) -> None:
    """Each row goes on with the prompt length and the strength that it had, two calls in a row."""
    model = tiny("llama")
    m = intervened(model, steering(rule))
    ids, lengths, strengths = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]]), [5, 3], [0.5, 2.0]
    with torch.no_grad(), m.attached(prompt_lengths=lengths, strengths=strengths) as inside:
        cache = inside(ids, use_cache=True).past_key_values
        rows = change(cache)
        held = ids[rows, : cache.get_seq_length()]
        for token in (31, 32):
            new = torch.full((len(rows), 1), token)
            held = torch.cat([held, new], 1)
            mask = {"attention_mask": torch.ones_like(held)} if masked else {}
            found = inside(new, past_key_values=cache, **mask).logits[:, -1]
            for i, row in enumerate(rows):
                v = strengths[row] * oracle.vector()
                with m.disabled():
                    expected = oracle.logits_by_hand(model, held[i].tolist(), lengths[row], rule, v)[-1]
                torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=1e-4)


def test_rows_that_cannot_be_told_apart_are_refused_where_it_matters() -> None:
    m = intervened(tiny("llama"), steering("response", layer=oracle.LAYERS - 1))
    ids = torch.tensor([[11, 12, 13]] * 2)
    leaving = pytest.raises(CacheError, match="cannot be told")
    with torch.no_grad(), leaving, m.attached(prompt_lengths=[3, 3], strengths=[0.5, 2.0]) as inside:
        cache = inside(ids, use_cache=True).past_key_values
        cache.batch_select_indices(torch.tensor([1, 0, 1]))
        inside(torch.full((3, 1), 14), past_key_values=cache)


def _goes_on_attached(m: IntervenedModel, cache: Any, new: torch.Tensor) -> None:
    with m.attached(prompt_lengths=LENGTHS) as inside:
        inside(new, past_key_values=cache)


def _goes_on_generating(m: IntervenedModel, cache: Any, new: torch.Tensor) -> None:
    ids = torch.cat([batch(PROMPTS, "left")[0], new], 1)
    m.generate_ids(ids.clamp_min(1), past_key_values=cache, prompt_lengths=LENGTHS, **GREEDY)


def _goes_on_called(m: IntervenedModel, cache: Any, new: torch.Tensor) -> None:
    m(new, prompt_lengths=LENGTHS, past_key_values=cache)


@pytest.mark.parametrize("go_on", [_goes_on_attached, _goes_on_generating, _goes_on_called])
def test_a_cache_with_padding_needs_a_mask(go_on: Callable[..., None]) -> None:
    m = intervened(tiny("llama"), steering({"first": 2, "of": "response"}))
    ids, mask = batch(PROMPTS, "left")
    new = torch.full((3, 1), 14)
    with torch.no_grad():
        cache = m(ids, mask, prompt_lengths=LENGTHS, use_cache=True, must_act=False).past_key_values
        with pytest.raises(PositionError, match="holds padding"):
            go_on(m, cache, new)


def test_an_open_cache_with_padding_needs_a_mask() -> None:
    m = intervened(tiny("llama"), steering("response"))
    ids, mask = batch(PROMPTS, "left")
    leaving = pytest.raises(PositionError, match="holds padding")
    with torch.no_grad(), leaving, m.attached(prompt_lengths=LENGTHS) as inside:
        cache = inside(ids, attention_mask=mask, use_cache=True).past_key_values
        inside(torch.full((3, 1), 14), past_key_values=cache)


def test_a_sequence_that_begins_in_a_cropped_cache_goes_on_as_itself() -> None:
    """Another prompt behind a shared beginning, and then its response."""
    model = tiny("llama")
    m = intervened(model, steering("response"))
    prompts = iter([[4], [5], [5]])
    with torch.no_grad(), m.attached(prompt_lengths=lambda ids, mask: next(prompts)) as inside:
        cache = inside(torch.tensor([[11, 12, 13, 14, 15]]), use_cache=True).past_key_values
        cache.crop(-3)
        inside(torch.tensor([[21, 22, 23, 24]]), past_key_values=cache)
        found = inside(torch.tensor([[25]]), past_key_values=cache).logits[0, -1]
    expected = oracle.logits_by_hand(model, [11, 12, 21, 22, 23, 24, 25], 5, "response")[-1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
