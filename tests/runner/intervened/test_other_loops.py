"""`generate(custom_generate=…)`: right where the calls are the generation's steps, else refused by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import transformers
from oracle import LENGTHS, NEW, PROMPTS, batch, by_hand, intervened, responses, slots, steering, tiny

from subvene.runner import IntervenedModel, NotSteeredError, PositionError
from subvene.runner.edits.cache_record import CacheError
from subvene.runner.monitor.live_projection import LiveProjections
from subvene.runner.monitor.projection import ProjectionError

OTHER = torch.tensor([[41, 42, 43, 44, 45, 46, 47, 48, 49]] * 3)
rules = pytest.mark.parametrize("rule", ["prompt", "response"])
Extra = Callable[[Any, torch.Tensor, int], None]


def greedy(extra: Extra | None = None, *, cached: bool = True) -> Callable[..., torch.Tensor]:
    """A decoding loop of somebody's own; `extra(model, sequences, step)` is what it does beside its steps."""

    def loop(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **inputs: Any,
    ) -> torch.Tensor:
        # transformers takes what the signature names for an argument of the function's own.
        cache, new, attention_mask = None, input_ids, inputs["attention_mask"]
        for step in range(NEW):
            if extra is not None:
                extra(model, input_ids, step)
            position_ids = (attention_mask.cumsum(1) - 1).clamp_min(0)[:, -new.shape[1] :]
            output = model(
                new,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=cached,
            )
            chosen = output.logits[:, -1].argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, chosen], 1)
            attention_mask = torch.cat([attention_mask, torch.ones_like(chosen)], 1)
            cache, new = output.past_key_values, chosen if cached else input_ids
        return input_ids

    return loop


def attached(m: IntervenedModel, **settings: Any) -> list[list[int]]:
    ids, mask = batch(PROMPTS, "left")
    with m.attached() as inside:
        output = inside.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **settings)
    return output[:, ids.shape[1] :].tolist()


both = pytest.mark.parametrize("run", [responses, attached])


@rules
@both
@pytest.mark.parametrize("cached", [True, False])
def test_a_loop_that_generates_is_edited_as_transformers_own(rule: Any, run: Any, cached: bool) -> None:
    model = tiny("llama")
    m = intervened(model, steering(rule))
    assert run(m, custom_generate=greedy(cached=cached)) == by_hand(model, rule)
    _, mask = batch(PROMPTS, "left")
    assert m.receipt[0].tokens == slots(mask, rule, LENGTHS, mask.shape[1] + NEW - 1).sum()


def _scores_another_text(model: Any, ids: torch.Tensor, step: int) -> None:
    if step == 0:
        model(OTHER, use_cache=False)


def _scores_another_text_into_a_cache(model: Any, ids: torch.Tensor, step: int) -> None:
    if step == 2:
        model(OTHER, past_key_values=transformers.DynamicCache(config=model.config))


def _scores_one_row(model: Any, ids: torch.Tensor, step: int) -> None:
    if step == 1:
        model(ids[:1], use_cache=False)


def _scores_a_part(model: Any, ids: torch.Tensor, step: int) -> None:
    model(ids[:, :3], use_cache=False)


def _scores_embeddings(model: Any, ids: torch.Tensor, step: int) -> None:
    model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False)


def _swallows(model: Any, ids: torch.Tensor, step: int) -> None:
    with contextlib.suppress(Exception):
        _scores_another_text(model, ids, step)


@both
@pytest.mark.parametrize(("rule", "cached"), [("all", True), ("response", True), ("response", False)])
@pytest.mark.parametrize(
    "extra",
    [
        _scores_another_text,
        _scores_another_text_into_a_cache,
        _scores_one_row,
        _scores_a_part,
        _scores_embeddings,
        _swallows,
    ],
)
def test_a_call_about_another_text_is_refused(rule: Any, run: Any, cached: bool, extra: Extra) -> None:
    m = intervened(tiny("llama"), steering(rule))
    with pytest.raises(PositionError, match=r"with m\.disabled|rows packed or dropped"):
        run(m, custom_generate=greedy(extra, cached=cached))
    assert m.receipt is None
    assert oracle.hooks(m.model) == []


@rules
def test_a_cache_that_another_text_filled_is_refused(rule: Any) -> None:
    model = tiny("llama")
    m = intervened(model, steering(rule))
    ids, _ = batch(PROMPTS, "left")
    with torch.no_grad(), m.disabled():
        cache = m(OTHER[:, :4]).past_key_values

    def extra(model: Any, _ids: torch.Tensor, step: int) -> None:
        if step == 0:
            model(ids[:, 4:], past_key_values=cache, use_cache=True)

    with pytest.raises((PositionError, CacheError)):
        responses(m, custom_generate=greedy(extra))


@rules
def test_a_loop_may_call_the_model_outside_the_run(rule: Any) -> None:
    model = tiny("llama")
    m = intervened(model, steering(rule))
    with torch.no_grad():
        plain = model(OTHER).logits

    def extra(model: Any, _ids: torch.Tensor, step: int) -> None:
        with m.disabled():
            assert torch.equal(model(OTHER).logits, plain)

    assert responses(m, custom_generate=greedy(extra)) == by_hand(model, rule)


@pytest.mark.parametrize("cached", [True, False])
def test_a_loop_that_returns_other_tokens_is_refused(cached: bool) -> None:
    m = intervened(tiny("llama"), steering("all"))

    def reversed_rows(model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return greedy(cached=cached)(model, input_ids, *args, **kwargs).flip(0)

    with pytest.raises(PositionError, match="returned something else"):
        responses(m, custom_generate=reversed_rows)


@pytest.mark.parametrize("cached", [True, False])
def test_a_loop_that_scores_another_answer_last_is_refused(cached: bool) -> None:
    m = intervened(tiny("llama"), steering("all"))

    def scores_last(model: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        model(torch.cat([input_ids, OTHER[:, :2]], 1), use_cache=False)
        sequences = greedy(cached=False)(model, input_ids, *args, **kwargs)
        if not cached:
            model(torch.cat([input_ids, OTHER[:, :2]], 1), use_cache=False)
        return sequences

    if cached:  # what a later step passed again is that step's
        assert responses(m, custom_generate=scores_last) == by_hand(m.model, "all")
        return
    with pytest.raises(PositionError, match="scores other answers last"):
        responses(m, custom_generate=scores_last)


def test_a_loop_that_widens_its_rows_is_refused_by_name() -> None:
    """As contrastive search does, which transformers has moved into a repository."""
    m = intervened(tiny("llama"), steering("response"))

    def contrastive(model: Any, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        cache = model(input_ids, attention_mask=inputs["attention_mask"], use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        model(torch.full((6, 1), 5), past_key_values=cache, use_cache=True)
        return input_ids

    with pytest.raises(PositionError, match="contrastive search"):
        responses(m, custom_generate=contrastive)


@pytest.mark.parametrize("strays", [False, True])
def test_a_repository_with_a_loop(tmp_path: Path, strays: bool) -> None:
    """Its `generate` calls the model's own with the function, as transformers' repositories do."""
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text(
        "import torch\n"
        "def loop(model, input_ids, **kwargs):\n"
        "    attention_mask = kwargs['attention_mask']\n"
        f"    if {strays}:\n"
        "        model(torch.full_like(input_ids, 7), use_cache=False)\n"
        f"    for _ in range({NEW}):\n"
        "        positions = (attention_mask.cumsum(1) - 1).clamp_min(0)\n"
        "        logits = model(\n"
        "            input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False\n"
        "        ).logits\n"
        "        chosen = logits[:, -1].argmax(-1, keepdim=True)\n"
        "        input_ids = torch.cat([input_ids, chosen], 1)\n"
        "        attention_mask = torch.cat([attention_mask, torch.ones_like(chosen)], 1)\n"
        "    return input_ids\n"
        "def generate(model, **kwargs):\n"
        "    return model.generate(custom_generate=loop, **kwargs)\n"
    )
    m = intervened(tiny("llama"), steering("response"))
    settings = {"custom_generate": str(tmp_path), "trust_remote_code": True}
    if strays:
        with pytest.raises(PositionError, match="not its prompts'"):
            responses(m, **settings)
    else:
        assert responses(m, **settings) == by_hand(m.model, "response")


def test_a_loop_that_calls_nothing_is_not_steered() -> None:
    m = intervened(tiny("llama"), steering("all"))
    with pytest.raises(NotSteeredError):
        responses(m, custom_generate=lambda model, input_ids, **_: input_ids)


def test_projections_of_another_loop_are_refused() -> None:
    m = intervened(tiny("llama"), steering("all"))
    _, mask = batch(PROMPTS, "left")
    with pytest.raises(ProjectionError, match="custom_generate"):
        LiveProjections(m, {"v": {1: oracle.vector()}}, mask, custom_generate=greedy())
