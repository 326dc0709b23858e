"""What every kind has in common: dtype, mask, strength, state, and life in a stock pyvene model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from subvene.interventions import REGISTRY, SteeringIntervention, Tokens
from subvene.interventions._pyvene import pyvene
from subvene.interventions.base import per_row, unit

IDS = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]])
MASK = torch.tensor([[True, False, True, False, False], [False, False, False, True, True]])


def activation(case: Any, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    width = 32 if "o_proj" in case.component else 24
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(integer)


def hooked_logits(
    model: Any, case: Any, mask_of: Callable[[int, int], torch.Tensor], ids: torch.Tensor, scale: float = 1.0
) -> Any:
    """Logits with the case's float64 Δ put in by a plain hook; `mask_of(first position, tokens)` selects."""
    path = case.component.replace("[", ".").replace("]", "")
    module, _, end = path.rpartition(".")

    def edit(h: torch.Tensor) -> torch.Tensor:
        wide = h.double()
        return torch.where(mask_of(0, h.shape[1]).unsqueeze(-1), wide + scale * case.delta(wide), wide).to(
            h.dtype
        )

    def pre(_m: Any, args: Any) -> Any:
        return (edit(args[0]), *args[1:])

    def post(_m: Any, _args: Any, output: Any) -> Any:
        return edit(output)

    target = model.get_submodule(module)
    handle = target.register_forward_pre_hook(pre) if end == "input" else target.register_forward_hook(post)
    try:
        return model(ids).logits
    finally:
        handle.remove()


@torch.no_grad()
def greedy(logits_of: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, new: int) -> torch.Tensor:
    for _ in range(new):
        ids = torch.cat([ids, logits_of(ids)[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


def stock(case: Any, model: Any, **kwargs: Any) -> Any:
    return pyvene.IntervenableModel(
        [{"component": case.component, "intervention": case.make(**kwargs)}], model
    )


def test_every_kind_of_the_registry_has_a_case(cases: list[Any]) -> None:
    assert {case.name: type(case.make()) for case in cases} == REGISTRY


# --- the edit itself


@pytest.mark.parametrize("strength", [1.0, -2.5])
def test_float64_activation_is_edited_as_the_equation_says(case: Any, strength: float) -> None:
    h = activation(case, torch.float64)
    edited = case.make(strength=strength)(h)
    assert edited.dtype == torch.float64
    # Stored tensors are float32, so a unit vector is one to 1e-7 only.
    torch.testing.assert_close(edited, h + strength * case.delta(h), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_widened_edited_and_cast_once(case: Any, dtype: torch.dtype) -> None:
    h = activation(case, dtype)
    edit = case.make(strength=0.7)
    assert edit(h).dtype == dtype
    # The operation in float32 and one cast, exactly: a second rounding would show in the last bit.
    assert torch.equal(bits(edit(h)), bits(edit(h.float()).to(dtype)))
    exact = h.double() + 0.7 * case.delta(h.double())
    half_ulp = torch.finfo(dtype).eps / 2
    assert ((edit(h).double() - exact).abs() <= half_ulp * exact.abs() + 3e-6 * h.abs().max()).all()


def test_tokens_outside_the_mask_are_untouched_bit_for_bit(case: Any) -> None:
    h = activation(case)
    h[0, 1] = -0.0
    h[0, 3] = torch.inf
    edited = case.make(strength=1e4)(h, positions=MASK)
    assert torch.equal(bits(edited[~MASK]), bits(h[~MASK]))
    assert (edited[MASK] != h[MASK]).any(-1).all()


def test_strength_zero_leaves_every_bit(case: Any) -> None:
    h = activation(case)
    h[0, 0], h[0, 1] = -0.0, torch.inf
    assert torch.equal(bits(case.make(strength=0.0)(h)), bits(h))


def test_strength_per_row(case: Any) -> None:
    h = activation(case)
    edited = case.make(strength=torch.tensor([0.0, 2.0]))(h)
    assert torch.equal(bits(edited[0]), bits(h[0]))
    assert torch.equal(edited[1], case.make(strength=2.0)(h)[1])
    assert torch.equal(case.make(strength=5.0)(h, strength=torch.tensor([0.0, 2.0])), edited)


def test_strength_rows_follow_a_batch_that_generation_widens() -> None:
    base = torch.zeros(6, 1, 1)
    assert per_row(torch.tensor([1.0, 2.0]), base).flatten().tolist() == [1, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="4 values, one per row, and the batch has 6 rows"):
        per_row(torch.ones(4), base)


def test_input_is_not_written_into(case: Any) -> None:
    h = activation(case)
    before = h.clone()
    case.make(strength=3.0)(h)
    assert torch.equal(h, before)


def test_gradient_flows_to_the_activation_and_not_past_the_mask(case: Any) -> None:
    h = activation(case, torch.float64).requires_grad_()
    out = case.make(strength=0.5)(h, positions=MASK)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (out * weights).sum().backward()
    reference = h.detach().clone().requires_grad_()
    edited = reference + 0.5 * MASK.unsqueeze(-1) * case.delta(reference)
    (edited * weights).sum().backward()
    torch.testing.assert_close(h.grad, reference.grad, rtol=1e-5, atol=1e-5)
    assert torch.equal(h.grad[~MASK], weights[~MASK])


def test_unit_vectors_of_extreme_length() -> None:
    for scale in (1e-30, 1.0, 1e30):
        v = torch.tensor([3.0, 4.0]) * scale
        torch.testing.assert_close(unit(v), torch.tensor([0.6, 0.8]))
    with pytest.raises(ValueError, match="length zero"):
        unit(torch.zeros(3))


# --- positions


def test_rule_is_applied_to_the_tokens_that_the_runner_passes(case: Any) -> None:
    h = activation(case)
    index = torch.arange(5).expand(2, 5)
    real = torch.ones(2, 5, dtype=torch.bool)
    real[1, 0] = False
    tokens = Tokens(index=index, real=real, prompt_length=torch.tensor([3, 2]))
    edited = case.make(positions="prompt")(h, tokens=tokens)
    expected = torch.tensor([[True, True, True, False, False], [False, True, False, False, False]])
    assert torch.equal((edited != h).any(-1), expected)


def test_a_mask_is_read_by_position_in_later_calls(case: Any) -> None:
    edit = case.make()
    prompt, step = activation(case), activation(case, seed=2)[:, :1]
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[0, 2] = mask[1, 5] = True
    assert torch.equal((edit(prompt, positions=mask) != prompt).any(-1), mask[:, :5])
    for position in (5, 6, 7):
        changed = (edit(step, positions=mask) != step).any(-1).flatten().tolist()
        assert changed == [False, position == 5]


def test_a_mask_follows_a_batch_that_generation_widens(case: Any) -> None:
    h = activation(case).repeat_interleave(2, 0)
    changed = (case.make()(h, positions=MASK) != h).any(-1)
    assert torch.equal(changed, MASK.repeat_interleave(2, 0))
    with pytest.raises(ValueError, match="positions has 3 rows, and the batch has 4"):
        case.make()(h, positions=torch.ones(3, 5, dtype=torch.bool))


# --- state


def test_state_dict_is_the_whole_state(case: Any) -> None:
    edit = case.make(strength=torch.tensor([1.0, 0.5]), positions={"first": 2, "of": "prompt"})
    fresh = type(edit)()
    fresh.load_state_dict(edit.state_dict())
    assert fresh.positions == edit.positions
    assert torch.equal(fresh.strength, edit.strength)
    h = activation(case)
    changed = fresh(h)
    assert torch.equal(changed, edit(h))
    assert torch.equal((changed != h).any(-1), torch.tensor([[True, True, False, False, False]] * 2))


def test_loading_keeps_the_parameters_that_an_optimizer_holds(case: Any) -> None:
    edit = case.make()
    before = {name: id(tensor) for name, tensor in edit.named_parameters()}
    edit.load_state_dict({name: tensor.clone() for name, tensor in edit.state_dict().items()})
    assert {name: id(tensor) for name, tensor in edit.named_parameters()} == before


# --- alone in a stock pyvene IntervenableModel


@pytest.mark.parametrize("positions", [None, MASK], ids=["all", "mask"])
def test_stock_forward(case: Any, llama: Callable[..., Any], positions: torch.Tensor | None) -> None:
    model = llama(torch.float64)
    mask = torch.ones(2, 5, dtype=torch.bool) if positions is None else positions
    with torch.no_grad():
        plain, expected = model(IDS).logits, hooked_logits(model, case, lambda _s, _c: mask, IDS)
        kwargs = {} if positions is None else {"intervention_additional_kwargs": {"positions": positions}}
        _, output = stock(case, model)({"input_ids": IDS}, unit_locations=None, **kwargs)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(output.logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", [None, MASK], ids=["all", "mask"])
def test_stock_generate(case: Any, llama: Callable[..., Any], positions: torch.Tensor | None) -> None:
    model = llama(torch.float64)

    def mask_of(_start: int, count: int) -> torch.Tensor:
        if positions is None:
            return torch.ones(2, count, dtype=torch.bool)
        return torch.nn.functional.pad(positions, (0, count - 5))

    # Strong enough for every kind to change what is said.
    expected = greedy(lambda ids: hooked_logits(model, case, mask_of, ids, 6.0), IDS, 8)
    plain = greedy(lambda ids: model(ids).logits, IDS, 8)
    kwargs = {} if positions is None else {"intervention_additional_kwargs": {"positions": positions}}
    base = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    edited = stock(case, model, strength=6.0)
    for _ in range(2):  # a second run begins anew
        _, generated = edited.generate(
            base, unit_locations=None, intervene_on_prompt=True, max_new_tokens=8, do_sample=False, **kwargs
        )
        assert torch.equal(generated, expected)
    if positions is None:
        assert not torch.equal(generated, plain)


@pytest.mark.parametrize("rule", ["prompt", "response", "last_prompt_token"])
def test_stock_generate_takes_the_first_call_as_the_prompt(
    case: Any, llama: Callable[..., Any], rule: str
) -> None:
    model = llama(torch.float64)

    def mask_of(_start: int, count: int) -> torch.Tensor:
        index = torch.arange(count).expand(2, count)
        return {"prompt": index < 5, "response": index >= 4, "last_prompt_token": index == 4}[rule]

    expected = greedy(lambda ids: hooked_logits(model, case, mask_of, ids), IDS, 6)
    base = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    edited = stock(case, model, positions=rule)
    for _ in range(2):
        _, generated = edited.generate(
            base, unit_locations=None, intervene_on_prompt=True, max_new_tokens=6, do_sample=False
        )
        assert torch.equal(generated, expected)


def test_stock_save_and_load(case: Any, llama: Callable[..., Any], tmp_path: Path) -> None:
    model = llama()
    edited = stock(case, model, strength=1.5, positions="prompt")
    edited.save(str(tmp_path))
    reloaded = pyvene.IntervenableModel.load(str(tmp_path), llama())
    with torch.no_grad():
        before = edited({"input_ids": IDS}, unit_locations=None)[1].logits
        after = reloaded({"input_ids": IDS}, unit_locations=None)[1].logits
        plain = model(IDS).logits
    assert torch.equal(before, after)
    assert not torch.equal(before, plain)
    (edit,) = reloaded.interventions.values()
    assert (edit.positions, edit.strength.item()) == ("prompt", 1.5)
    assert str(edit) == f"{type(edit).__name__}(positions='prompt', strength=1.5)"


def test_a_rule_of_positions_is_checked_when_it_is_given() -> None:
    with pytest.raises(ValueError, match="respones"):
        SteeringIntervention(torch.ones(3), positions="respones")
