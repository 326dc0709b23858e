"""Models that are not what was compiled, parts of them, copies and pickles."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from oracle import PROMPTS, intervened, responses, steering, tiny
from ways import GREEDY

from subvene.runner import IntervenedModel, NotSteeredError, PositionError
from subvene.runner.edits.copying import PickledError
from subvene.runner.edits.refusals import ChangedModelError


def test_an_adapter_that_was_put_around_the_projection_is_refused() -> None:
    import peft

    model = tiny("llama")
    tensors = {"v.attention_heads[1]": oracle.vector()}
    m = intervened(model, steering("all") | {"site": "attention_heads"}, tensors=tensors)
    responses(m)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj"], r=2))
    for call in (lambda: responses(m), lambda: m(torch.tensor([[11, 12]]))):
        with pytest.raises(ChangedModelError, match="o_proj"):
            call()
    with pytest.raises(ChangedModelError, match="o_proj"), m.attached() as inside:
        inside(torch.tensor([[11, 12]]))
    again = IntervenedModel.from_spec(m.spec, model=model, tensors=m.tensors)
    responses(again)


def test_a_block_that_was_put_in_is_refused() -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    responses(m)
    model.model.layers.insert(0, copy.deepcopy(model.model.layers[0]))
    with pytest.raises(ChangedModelError, match=r"layers\[1\]"):
        responses(m, use_cache=False)
    with pytest.raises(ChangedModelError), m.attached() as inside:
        inside(torch.tensor([[11, 12]]), use_cache=False)


def test_one_block_at_two_depths_is_refused() -> None:
    model = tiny("llama")
    model.model.layers[2] = model.model.layers[1]
    m = intervened(model, steering("all"))
    for call in (lambda: responses(m, use_cache=False), lambda: m(torch.tensor([[11, 12]]), use_cache=False)):
        with pytest.raises(PositionError, match="in two places"):
            call()
    assert oracle.hooks(model) == []


def test_a_part_of_an_attached_model_is_refused() -> None:
    """Before and after a whole call: whose tokens these are could not be said."""
    m = intervened(tiny("llama"), steering("all"))
    ids = torch.tensor([PROMPTS[1]])
    for calls in (0, 1):
        with pytest.raises(PositionError, match="not a part of it"), m.attached() as model:
            _ = [model(ids) for _ in range(calls)], model.model(ids)


def test_a_copy_of_an_attached_model_is_its_own() -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    ids = torch.tensor([PROMPTS[1]])
    with m.disabled():
        plain = m.generate_ids(ids, **GREEDY)
    with m.attached() as inside:
        copied = copy.deepcopy(inside)
        assert torch.equal(copied.generate(ids, **GREEDY), plain)
        inside.generate(ids, **GREEDY)
    assert torch.equal(copied.generate(ids, **GREEDY), plain)


def _saved(what: Any) -> None:
    torch.save(what, io.BytesIO())


@pytest.mark.parametrize("save", [pickle.dumps, _saved])
def test_a_pickle_is_refused_with_what_to_do(save: Callable[[Any], Any]) -> None:
    m = intervened(tiny("llama"), steering("all"))
    responses(m)
    for what in (m, m.intervenable, [m]):
        with pytest.raises(PickledError, match=r"save_pretrained\(folder\)"):
            save(what)
    assert pickle.loads(pickle.dumps(m.receipt)) == m.receipt


@pytest.mark.parametrize("inside", [False, True])
def test_a_deep_copy_is_steered_by_itself(inside: bool) -> None:
    m = intervened(tiny("llama"), steering("response"))
    steered = responses(m)
    with m.attached() if inside else contextlib.nullcontext(m.model) as model:
        copied = copy.deepcopy(m)
        if inside:
            model.generate(torch.tensor([PROMPTS[1]]), **GREEDY)
    assert responses(copied) == steered
    next(iter(copied.intervenable.interventions.values())).vector.zero_()
    with torch.no_grad():
        copied.model.lm_head.weight.mul_(-1)
    m.receipt.check()
    with pytest.raises(NotSteeredError):
        responses(copied)
    assert responses(m) == steered
    assert copy.copy(m).model is m.model
