"""Every way to run a model, in one table: equal to a row edited by hand, or refused by name."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
import transformers as t
from oracle import LENGTHS, NEW, PROMPTS, batch, by_hand, intervened, responses, slots, steering, tiny
from ways import GREEDY, in_a_thread, in_words, new_tokens, rules

from subvene.runner import CacheError, IntervenedModel, NotSteeredError, PositionError
from subvene.runner.edits.refusals import RecomputationError


def _streamed(m: IntervenedModel) -> Any:
    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            pass

        def end(self) -> None:
            pass

    return [responses(m, [row], streamer=Streamer())[0] for row in PROMPTS]


def _attached(m: IntervenedModel, **more: Any) -> Any:
    ids, mask = batch(PROMPTS, "left")
    with m.attached() as model:
        return new_tokens(model.generate(input_ids=ids, attention_mask=mask, **GREEDY, **more))


def _attached_positional(m: IntervenedModel) -> Any:
    ids, mask = batch(PROMPTS, "left")
    with m.attached() as model:
        return new_tokens(model.generate(ids, attention_mask=mask, **GREEDY))


def _attached_embeds(m: IntervenedModel) -> Any:
    ids, mask = batch(PROMPTS, "left")
    with m.attached() as model:
        embeds = model.get_input_embeddings()(ids).detach()
        return model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY).tolist()


def _loop(m: IntervenedModel, *, cached: bool) -> Any:
    """A decoding loop that somebody has written by hand."""
    found = []
    for row in PROMPTS:
        ids, written, cache = torch.tensor([row]), [], None
        with torch.no_grad(), m.attached(prompt_lengths=[len(row)]) as model:
            for _ in range(NEW):
                output = model(ids, past_key_values=cache, use_cache=cached)
                written.append(int(output.logits[0, -1].argmax()))
                if cached:
                    ids, cache = torch.tensor([[written[-1]]]), output.past_key_values
                else:
                    ids = torch.tensor([[*row, *written]])
        found.append(written)
    return found


def _continued(m: IntervenedModel, *, cached: bool) -> Any:
    ids, mask = batch(PROMPTS, "left")
    settings = {"do_sample": False, "return_dict_in_generate": True}
    first = m.generate_ids(ids, mask, max_new_tokens=2, **settings)
    mask = torch.cat([mask, torch.ones(3, 2, dtype=torch.long)], 1)
    cache = {"past_key_values": first.past_key_values} if cached else {}
    rest = m.generate_ids(
        first.sequences, mask, prompt_lengths=LENGTHS, max_new_tokens=NEW - 2, **settings, **cache
    )
    return new_tokens(rest.sequences)


def _assisted(m: IntervenedModel) -> Any:
    assistant = copy.deepcopy(m.model)
    return [responses(m, [row], assistant_model=assistant)[0] for row in PROMPTS]


WAYS: dict[str, Callable[[IntervenedModel], Any]] = {
    "batched": responses,
    "one row": lambda m: [responses(m, [row])[0] for row in PROMPTS],
    "no cache": lambda m: responses(m, use_cache=False),
    "own cache": lambda m: responses(m, past_key_values=t.DynamicCache(config=m.model.config)),
    "static cache": lambda m: responses(m, cache_implementation="static"),
    "chunked prefill": lambda m: responses(m, prefill_chunk_size=3),
    "one beam": lambda m: responses(m, num_beams=1),
    "assisted": _assisted,
    "prompt lookup": lambda m: [responses(m, [r], prompt_lookup_num_tokens=2)[0] for r in PROMPTS],
    "streamer": _streamed,
    "thread": in_a_thread,
    "attached generate": _attached,
    "attached, no cache": lambda m: _attached(m, use_cache=False),
    "attached, positional": _attached_positional,
    "attached, embeddings": _attached_embeds,
    "attached loop, cached": lambda m: _loop(m, cached=True),
    "attached loop, uncached": lambda m: _loop(m, cached=False),
    "continued": lambda m: _continued(m, cached=False),
    "continued from its cache": lambda m: _continued(m, cached=True),
}


@rules
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_way_to_run(name: str, way: str, rule: str) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    assert WAYS[way](m) == by_hand(model, rule)
    assert m.receipt[0].tokens + m.receipt[0].cached > 0
    assert oracle.hooks(model) == []
    assert "generate" not in vars(model)


@rules
@pytest.mark.parametrize("size", [1, 3])
def test_a_pipeline_of_transformers(words: Any, rule: str, size: int) -> None:
    model = tiny("llama")
    m = intervened(model, steering(rule))
    expected = in_words(by_hand(model, rule))
    with m.attached() as inside:
        pipe = t.pipeline("text-generation", model=inside, tokenizer=words)
        answers = pipe(in_words(PROMPTS), batch_size=size, return_full_text=False, **GREEDY)
    assert [answer[0]["generated_text"].strip() for answer in answers] == expected
    assert m.receipt[0].rows == 3
    assert m.receipt[0].tokens == slots(*_all(rule)).sum()
    with m.disabled(), m.attached() as inside:
        pipe = t.pipeline("text-generation", model=inside, tokenizer=words)
        answers = pipe(in_words(PROMPTS), batch_size=size, return_full_text=False, **GREEDY)
    assert [answer[0]["generated_text"].strip() for answer in answers] != expected
    assert m.receipt is None


def _all(rule: str) -> Any:
    _, mask = batch(PROMPTS, "left")
    return mask, rule, LENGTHS, mask.shape[1] + NEW - 1


def test_a_pipeline_outside_is_the_plain_model_and_repr_says_so(words: Any) -> None:
    model = tiny("llama")
    m = intervened(model, steering("all", name="warm"))
    plain = intervened(model, steering("all", coefficient=0.0))
    pipe = t.pipeline("text-generation", model=m.model, tokenizer=words)
    answers = pipe(in_words(PROMPTS), return_full_text=False, **GREEDY)
    assert [answer[0]["generated_text"].strip() for answer in answers] == in_words(responses(plain))
    assert "warm at block_output[1]" in repr(m)
    assert "attached()" in repr(m)
    assert "plain LlamaForCausalLM" in repr(m)


@rules
def test_attached_forward_calls_are_sequences_of_their_own(rule: str) -> None:
    model = tiny("llama")
    m = intervened(model, steering(rule))
    ids, mask = batch(PROMPTS, "right")
    lengths = [max(length - 2, 1) for length in LENGTHS]
    real = mask.bool()
    with torch.no_grad():
        expected = m(ids, mask, prompt_lengths=lengths).logits[real]
        tokens = m.receipt[0].tokens
        calls = [lengths, lambda ids, mask: lengths]
        for given in calls:
            with m.attached(prompt_lengths=given) as inside:
                assert torch.equal(inside(ids, attention_mask=mask).logits[real], expected)
                assert torch.equal(inside(input_ids=ids, attention_mask=mask).logits[real], expected)
            assert m.receipt[0].tokens == 2 * tokens
    if rule == "all":
        with torch.no_grad(), m.attached() as inside:
            assert torch.equal(inside(ids, attention_mask=mask).logits[real], expected)
    else:
        with pytest.raises(PositionError, match="prompt_lengths"), m.attached() as inside:
            inside(ids, attention_mask=mask)


def test_attached_trains_what_is_edited() -> None:
    """A training step of somebody else's: the gradients are those of the edited model."""
    model = tiny("llama").train()
    m = intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "right")
    labels = ids.masked_fill(mask == 0, -100)
    m(ids, mask, labels=labels).loss.backward()
    expected = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    with m.attached() as inside:
        inside(ids, attention_mask=mask, labels=labels).loss.backward()
    assert torch.equal(model.model.embed_tokens.weight.grad, expected)
    model.gradient_checkpointing_enable()
    with pytest.raises(RecomputationError), m.attached() as inside:
        inside(ids, attention_mask=mask, labels=labels)


def test_attached_and_nothing_called_is_not_steered() -> None:
    m = intervened(tiny("llama"), steering("all"))
    with pytest.raises(NotSteeredError, match="nothing in this thread"), m.attached():
        pass
    with m.attached(strengths=0.0):
        pass
    with pytest.raises(ZeroDivisionError), m.attached():
        raise ZeroDivisionError
    beyond = intervened(m.model, steering({"indices": [40], "of": "prompt"}))
    with pytest.raises(NotSteeredError, match="no position"), beyond.attached(prompt_lengths=[3]) as model:
        model(torch.tensor([[11, 12, 13]]))
    assert oracle.hooks(m.model) == []


def test_attached_strengths_by_row() -> None:
    model = tiny("llama")
    m = intervened(model, steering("response"))
    ids, mask = batch(PROMPTS, "left")
    expected = m.generate_ids(ids, mask, strengths=[0.0, 1.0, 2.0], **GREEDY)
    with m.attached(strengths=[0.0, 1.0, 2.0]) as inside:
        assert torch.equal(inside.generate(input_ids=ids, attention_mask=mask, **GREEDY), expected)


def test_a_swallowed_refusal_is_raised_on_leaving() -> None:
    m = intervened(tiny("llama"), steering("response"))
    leaving = pytest.raises(PositionError, match="prompt_lengths")
    with leaving, m.attached() as model, contextlib.suppress(PositionError):
        model(torch.tensor([[11, 12, 13]]))


def test_a_cache_of_the_attached_calls_goes_on_and_keeps_its_record() -> None:
    model = tiny("llama")
    m = intervened(model, steering("prompt"))
    with torch.no_grad():
        with m.attached(prompt_lengths=[3]) as inside:
            cache = inside(torch.tensor([[11, 12, 13]])).past_key_values
        ids, mask = torch.tensor([[14]]), torch.ones(1, 4, dtype=torch.long)
        with pytest.raises(CacheError):
            m(ids, mask, prompt_lengths=[2], past_key_values=copy.deepcopy(cache))
        logits = m(ids, mask, prompt_lengths=[3], past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(logits, oracle.logits_by_hand(model, [11, 12, 13, 14], 3, "prompt")[-1])


# Other models ---------------------------------------------------------------------------------------------
