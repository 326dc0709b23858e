"""What a call is given: masks, prompts, lengths and keywords, right or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from oracle import NEW, PAD, PROMPTS, batch, intervened, responses, steering, tiny
from torch import nn
from ways import GREEDY

from subvene.runner import IntervenedModel, NotSteeredError, PositionError
from subvene.runner.data.text import TextError
from subvene.specs import SpecError


def test_padding_without_a_mask_is_refused() -> None:
    m = intervened(tiny("llama"), steering("all"))
    ids, _ = batch(PROMPTS, "left")
    with pytest.raises(PositionError, match=r"rows \[\d, 2\] hold the padding id"):
        m.generate_ids(ids, pad_token_id=PAD, **GREEDY)
    m.generate_ids(ids[1:2], pad_token_id=PAD, **GREEDY)
    m.generate_ids(torch.tensor([[PAD, 11]]), pad_token_id=PAD, **GREEDY)  # nothing was padded in one row


def _generates(m: IntervenedModel, base: dict[str, Any]) -> Any:
    return m.generate_ids(**base, pad_token_id=PAD, **GREEDY)


def _generates_disabled(m: IntervenedModel, base: dict[str, Any]) -> Any:
    with m.disabled():
        return _generates(m, base)


def _generates_attached(m: IntervenedModel, base: dict[str, Any]) -> Any:
    with m.attached() as inside:
        return inside.generate(**base, pad_token_id=PAD, **GREEDY)


@pytest.mark.parametrize(
    "call",
    [
        _generates,
        _generates_disabled,
        _generates_attached,
        lambda m, base: m.intervenable.generate(base, pad_token_id=PAD, **GREEDY),
    ],
    ids=["generate_ids", "disabled", "attached", "intervenable"],
)
def test_every_door_of_generate_reads_a_mask_alike(call: Callable[..., Any]) -> None:
    m = intervened(tiny("llama"), steering("all"))
    ids, mask = batch(PROMPTS, "left")
    with pytest.raises(PositionError, match="hold the padding id"):
        call(m, {"input_ids": ids})
    with pytest.raises(PositionError, match=f"{mask.shape[1] - 1} columns"):
        call(m, {"input_ids": ids, "attention_mask": mask[:, 1:]})


def test_a_mask_that_does_not_cover_the_tokens_is_refused() -> None:
    m = intervened(tiny("llama"), steering("all"))
    with pytest.raises(PositionError, match="attention_mask has 4 columns"):
        m(torch.tensor([[11, 12, 13]]), torch.ones(1, 4, dtype=torch.long))


def test_modules_that_never_ran_are_named_as_the_cause() -> None:
    model = tiny("llama")
    model.model.unused = nn.Linear(4, 4)
    entry = {"kind": "pyvene", "class": "ZeroIntervention", "component": "model.unused.output"}
    m = intervened(model, entry | {"positions": "all"})
    with pytest.raises(NotSteeredError, match="its module never ran"):
        responses(m)


def test_what_callers_pass_as_prompts(words: Any) -> None:
    model = tiny("llama")
    spec = intervened(model, steering("response")).spec
    tensors = {f"v.block_output[{i}]": oracle.vector() for i in range(oracle.LAYERS)}
    m = IntervenedModel.from_spec(spec, model=model, tokenizer=words, tensors=tensors)
    one = m.generate(["<11> <12>"], **GREEDY)
    turn = {"role": "user", "content": "<11> <12>"}
    parts = {"role": "user", "content": [{"type": "text", "text": "<11> "}, {"type": "text", "text": "<12>"}]}
    for prompts in ("<11> <12>", [turn], [[turn]], turn, ([turn],), [parts], ["<11> <12>"]):
        assert m.generate(prompts, **GREEDY) == one
    assert m.generate([], **GREEDY) == []
    image = {"role": "user", "content": [{"type": "image", "url": "x.png"}]}
    for prompts, told in (
        (None, "expected a text"),
        (3, "expected a text"),
        ([None], "prompt 0"),
        ([[]], "prompt 0"),
        ([{"role": "user"}], "message 0"),
        ([image], "parts of type image"),
        (torch.tensor([[11]]), "generate_ids"),
        ([[11, 12]], "generate_ids"),
        (words("<11>"), "generate_ids"),
    ):
        with pytest.raises(TextError, match=told):
            m.generate(prompts, **GREEDY)
    with pytest.raises(TextError, match="generate_ids"):
        m.generate("<11>", input_ids=torch.tensor([[11]]))
    with pytest.raises(TextError, match="token ids"):
        m("<11>")


def test_seed_and_stop_strings_are_keywords(words: Any) -> None:
    model = tiny("llama")
    tensors = {f"v.block_output[{i}]": oracle.vector() for i in range(oracle.LAYERS)}
    fields = {"subvene": 1, "model": {"name": "tiny"}, "interventions": [steering("response")]}
    m = IntervenedModel.from_spec(fields, model=model, tokenizer=words, tensors=tensors)
    settings = {"max_new_tokens": NEW, "do_sample": True, "top_k": 0}
    state = torch.get_rng_state()
    first = m.generate("<11> <12>", seed=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert m.generate("<11> <12>", seed=3, **settings) == first
    assert m.generate("<11> <12>", seed=4, **settings) != first
    greedy = m.generate("<11> <12>", **GREEDY)[0].split()
    stopped = m.generate("<11> <12>", stop_strings=[greedy[2]], **GREEDY)[0].split()
    assert stopped == greedy[: greedy.index(greedy[2]) + 1]
    with pytest.raises(SpecError, match="coeficient"):
        IntervenedModel.from_spec(
            fields | {"interventions": [steering("all") | {"coeficient": 1.0}]}, model=model, tensors=tensors
        )


def test_a_misspelt_keyword_is_no_input() -> None:
    m = intervened(tiny("llama"), steering("all"))
    ids, mask = batch(PROMPTS, "left")
    for wrong in ({"strength": 0.0}, {"prompt_length": [3]}, {"attention_masks": mask}):
        with pytest.raises(TypeError, match="did you mean"):
            m(ids, **wrong)


def test_prompt_lengths_are_whole_numbers() -> None:
    m = intervened(tiny("llama"), steering({"last": 3, "of": "prompt"}))
    ids = torch.tensor([[11, 12, 13, 14, 15, 16, 17]] * 2)
    m(ids, prompt_lengths=torch.tensor([2, 6], dtype=torch.uint8))
    assert m.receipt[0].tokens == 5
    for wrong in ([2.5, 3.0], [True, True], [0, 1], [3], "2", [99, 2]):
        with pytest.raises(ValueError, match="prompt_lengths"):
            m(ids, prompt_lengths=wrong)


def test_a_mask_of_another_width_is_refused_in_generation() -> None:
    m = intervened(tiny("llama"), steering("response"))
    with pytest.raises(PositionError, match="9 columns"):
        m.generate_ids(torch.tensor([PROMPTS[1]]), torch.ones(1, 9, dtype=torch.long), **GREEDY)


def test_padding_at_the_ends_of_rows_without_a_mask_is_padding() -> None:
    """As evaluation harnesses score; on the left it could be text."""
    model = tiny("llama")
    m = intervened(model, steering({"last": 1, "of": "response"}))
    ids, mask = batch([PROMPTS[1], [21, 22, 23, 24]], "right")
    with torch.no_grad():
        expected = m(ids, mask, prompt_lengths=[3, 2]).logits
        found = m(ids, prompt_lengths=[3, 2]).logits
        assert m.receipt[0].tokens == 2
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])
        with pytest.raises(PositionError, match="before other tokens"):
            m(batch([PROMPTS[1], [21, 22]], "left")[0], prompt_lengths=[3, 2])
