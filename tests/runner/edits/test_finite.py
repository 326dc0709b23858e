"""A run whose activations or logits are no longer finite fails, and names whose doing it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from oracle import LENGTHS, MIDDLE, PAD, PROMPTS, batch, blocks, both_models, intervened, steering, tiny

from subvene.runner import NotFiniteError, NotSteeredError
from subvene.runner.edits.not_finite import check_finite

TOO_STRONG = [(torch.float16, 1e5), (torch.float32, 1e30), (torch.bfloat16, 1e38)]
NAN = float("nan")

Run = Callable[..., Any]


def _generate(m: Any, **settings: Any) -> Any:
    ids, mask = batch(PROMPTS, "left")
    return m.generate_ids(ids, mask, **{"max_new_tokens": 3, "do_sample": False} | settings)


def _sample(m: Any) -> Any:
    return _generate(m, do_sample=True)


def _beams(m: Any) -> Any:
    return _generate(m, num_beams=2)


def _call(m: Any, **settings: Any) -> Any:
    ids, mask = batch(PROMPTS, "right")
    with torch.no_grad():
        return m(ids, mask, prompt_lengths=LENGTHS, **settings)


def _attached(m: Any) -> None:
    ids, mask = batch(PROMPTS, "left")
    with m.intervenable.attached(oracle.tracker(mask)) as model:
        model.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False)


every_way = pytest.mark.parametrize("run", [_generate, _sample, _beams, _call, _attached])


@both_models
@every_way
@pytest.mark.parametrize(("dtype", "strength"), TOO_STRONG, ids=str)
def test_an_edit_that_overflows_fails_the_run_and_is_named(
    name: str, run: Run, dtype: torch.dtype, strength: float
) -> None:
    m = intervened(tiny(name).to(dtype), steering("response", coefficient=strength, name="loud"))
    with pytest.raises(NotFiniteError, match=r"'loud' at block_output\[1\] moves token 0 by") as raised:
        run(m)
    assert sorted(raised.value.rows) == [0, 1, 2]
    assert not raised.value.of_model
    assert m.receipt is None, "a run that failed leaves no receipt"


@every_way
def test_a_strong_edit_that_stays_finite_is_no_fault(run: Run) -> None:
    m = intervened(tiny("llama"), steering("response", coefficient=1e10))
    run(m)
    assert m.receipt[0].changed > 0


def test_of_a_batch_of_strengths_the_rows_that_failed_are_named() -> None:
    m = intervened(tiny("llama"), steering("response", coefficient=[0.0, 1e30, 1.0]))
    with pytest.raises(NotFiniteError, match="in row 1 of 3") as raised:
        _generate(m)
    assert list(raised.value.rows) == [1]


def test_the_edit_that_made_it_so_is_named_and_not_the_one_behind_it() -> None:
    mild, loud = steering("all", name="mild", layer=0), steering("all", coefficient=1e30, name="loud")
    with pytest.raises(NotFiniteError, match="under 'loud', in every row"):
        _call(intervened(tiny("llama"), loud, mild, steering("all", name="behind", layer=2)))


def test_an_edit_that_overflows_further_on_is_named_from_the_logits() -> None:
    # Finite where it acts, in float16; the next block adds what the sum has no room for.
    model = tiny("llama")
    blocks(model)[2].mlp.down_proj.weight.data *= 300.0
    v = torch.zeros(32)
    v[:] = 65000.0
    model = model.half()
    m = intervened(model, steering("all", name="loud"), tensors={f"v.block_output[{MIDDLE}]": v})
    for run in (_call, _generate):
        with pytest.raises(
            NotFiniteError, match=r"the logits of token 0 .* without the edit they are finite"
        ):
            run(m)
    with m.disabled():
        assert torch.isfinite(_call(m).logits).all()


@every_way
def test_a_model_that_is_not_finite_without_the_edit_is_told_from_it(run: Run) -> None:
    model = tiny("llama")
    blocks(model)[2].mlp.down_proj.weight.data[:] = NAN
    with pytest.raises(NotFiniteError, match=r"the untouched model is not finite .* no intervention is") as e:
        run(intervened(model, steering("all")))
    assert e.value.of_model


def test_a_model_that_is_not_finite_before_the_edit_is_told_from_it() -> None:
    model = tiny("llama")
    blocks(model)[0].mlp.down_proj.weight.data[:] = NAN
    with pytest.raises(
        NotFiniteError, match=r"block_output\[1\] is not finite at token 0, before 'steering_0'"
    ):
        _call(intervened(model, steering("all")))


def test_a_row_whose_strength_is_0_says_that_it_is_the_model() -> None:
    model = tiny("llama")
    model.lm_head.weight.data[:] = NAN
    with pytest.raises(NotFiniteError, match="untouched model"):
        _generate(intervened(model, steering("response", coefficient=0.0)))


@pytest.mark.parametrize("run", [_generate, _call])
def test_what_padding_holds_fails_no_run(run: Run) -> None:
    model = tiny("llama")
    seen: dict[str, torch.Tensor] = {}

    def remember(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen["pad"] = kwargs["input_ids"] == PAD

    def spoil(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(seen["pad"].unsqueeze(-1), NAN)

    model.register_forward_pre_hook(remember, with_kwargs=True)
    blocks(model)[2].register_forward_hook(spoil)
    m = intervened(model, steering("all", layer=2))
    run(m)
    assert m.receipt[0].changed > 0


def test_tokens_that_the_model_rules_out_fail_no_run() -> None:
    model = tiny("llama")
    model.lm_head.register_forward_hook(
        lambda _module, _args, logits: logits.index_fill(-1, torch.tensor([7]), -torch.inf)
    )
    m = intervened(model, steering("response"))
    _generate(m)
    assert _call(m).logits[..., 7].isneginf().all()


def test_the_logits_that_are_kept_are_placed_at_the_end() -> None:
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda _m, _a, logits: logits.index_fill(1, torch.tensor([0]), NAN))
    m = intervened(model, steering("all", coefficient=0.0))
    ids, mask = batch([PROMPTS[0]], "right")
    with torch.no_grad(), pytest.raises(NotFiniteError, match="the logits of token 4 are not"):
        m(ids, mask, prompt_lengths=[7], logits_to_keep=3)


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen is a tensor until the run is over: `bool` and `item` are not asked during it."""
    m = intervened(tiny("llama"), steering("response"))
    ids, mask = batch(PROMPTS, "left")
    tracker = oracle.tracker(mask)
    with torch.no_grad(), m.intervenable.attached(tracker) as model, monkeypatch.context() as during:
        for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy"):
            during.setattr(torch.Tensor, name, _refuse(name, getattr(torch.Tensor, name)))
        model(input_ids=ids, attention_mask=mask)
    assert m.receipt[0].changed > 0


def _refuse(name: str, own: Any) -> Any:
    import inspect

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if any("finite" in frame.filename or "receipt" in frame.filename for frame in inspect.stack()[1:3]):
            raise AssertionError(f"{name} waits for the device")
        return own(*args, **kwargs)

    return refuse


def test_numbers_of_a_run_are_checked_by_row() -> None:
    check_finite(torch.tensor([1.0, 2.0]), "Σ log p")
    with pytest.raises(NotFiniteError, match="Σ log p under 'loud': not finite in row 1 of 2") as raised:
        check_finite(torch.tensor([1.0, -torch.inf]), "Σ log p", ["loud"])
    assert list(raised.value.rows) == [1]
    with pytest.raises(NotFiniteError, match="without any edit"):
        check_finite(torch.tensor([[1.0, NAN]]), "activations")


def test_an_edit_that_does_nothing_is_still_not_steered() -> None:
    m = intervened(tiny("llama"), steering("response", coefficient=1e-30))
    with pytest.raises(NotSteeredError):
        _generate(m)
