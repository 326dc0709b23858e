"""Every way to run a model, in one table: equal to a row edited by hand, or refused by name."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import io
import operator
import pickle
import threading
from collections.abc import Callable
from typing import Any

import architectures
import oracle
import pytest
import tokenizers
import torch
import transformers
from oracle import (
    LENGTHS,
    NEW,
    PAD,
    PROMPTS,
    Watch,
    batch,
    by_hand,
    intervened,
    responses,
    slots,
    steering,
    tiny,
)
from torch import nn

from subvene.runner import (
    CacheError,
    ConcurrentRunError,
    IntervenedModel,
    NotSteeredError,
    PositionError,
)
from subvene.runner.data.text import TextError
from subvene.runner.edits.copying import PickledError
from subvene.runner.edits.refusals import ChangedModelError, RecomputationError
from subvene.runner.models.anatomy import AnatomyError
from subvene.specs import SpecError

t = transformers
rules = pytest.mark.parametrize("rule", ["all", "prompt", "response"])
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}


def new_tokens(sequences: Any) -> list[list[int]]:
    return [row[len(sequences[0]) - NEW :] for row in torch.as_tensor(sequences).tolist()]


# The table ------------------------------------------------------------------------------------------------


def _streamed(m: IntervenedModel) -> Any:
    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            pass

        def end(self) -> None:
            pass

    return [responses(m, [row], streamer=Streamer())[0] for row in PROMPTS]


def _in_a_thread(m: IntervenedModel) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(responses(m)))
    thread.start()
    thread.join()
    return found[0]


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
    "thread": _in_a_thread,
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


# Pipelines ------------------------------------------------------------------------------------------------


@pytest.fixture
def words() -> Any:
    """A tokenizer whose token i is the word `<i>`, padding on the left."""
    vocabulary = {f"<{i}>": i for i in range(oracle.VOCAB)}
    # transformers finds out how a token looks inside a text by putting it behind this one.
    vocabulary["abcdef"] = vocabulary.pop("<98>")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<1>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=f"<{PAD}>", eos_token="<99>", padding_side="left"
    )
    fast.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    return fast


def in_words(rows: list[list[int]]) -> list[str]:
    return [" ".join(f"<{token}>" for token in row) for row in rows]


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


# Attached: forward calls ----------------------------------------------------------------------------------


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


# Threads --------------------------------------------------------------------------------------------------


def in_threads(*jobs: Callable[[], None]) -> None:
    """Run jobs at the same time, and raise what one of them raises."""
    errors: list[BaseException] = []
    ready = threading.Barrier(len(jobs))

    def run(job: Callable[[], None]) -> None:
        try:
            ready.wait()
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


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
    _in_a_thread(m)
    assert m.receipt[0].tokens == sum(LENGTHS)


# Callbacks ------------------------------------------------------------------------------------------------


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


# Models that are not what was compiled --------------------------------------------------------------------


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


# Inputs ---------------------------------------------------------------------------------------------------


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


# Other models ---------------------------------------------------------------------------------------------

_COMMON = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
_SIZES = _COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
_ALTERNATING = ["linear_attention", "full_attention", "linear_attention"]
HYBRIDS: dict[str, Callable[[], Any]] = {
    # Its cache says that it holds nothing, however much it holds.
    "minimax": lambda: t.MiniMaxConfig(
        **_SIZES,
        head_dim=16,
        layer_types=_ALTERNATING,
        num_local_experts=4,
        num_experts_per_tok=2,
        block_size=4,
    ),
    "jamba": lambda: t.JambaConfig(
        **_SIZES, **_MAMBA, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_dt_rank=4
    ),
    "lfm2": lambda: t.Lfm2Config(**_SIZES, layer_types=["conv", "full_attention", "conv"]),
    "qwen3_next": lambda: t.Qwen3NextConfig(
        **_SIZES, **_LINEAR, **_EXPERTS, head_dim=16, layer_types=_ALTERNATING
    ),
}


def hybrid(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(HYBRIDS[name](), dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("rule", ["all", "prompt", "response", {"first": 3, "of": "prompt"}], ids=str)
@pytest.mark.parametrize("name", HYBRIDS)
def test_models_that_keep_states(name: str, rule: Any) -> None:
    model = hybrid(name)
    v = oracle.vector(32)
    m = intervened(model, steering(rule), tensors={"v.block_output[1]": v})
    row = PROMPTS[1]
    expected, logits = oracle.greedy_by_hand(model, row, rule, NEW, v)
    output = m.generate_ids(torch.tensor([row]), output_logits=True, return_dict_in_generate=True, **GREEDY)
    torch.testing.assert_close(torch.cat(output.logits), logits, atol=1e-5, rtol=1e-5)
    assert output.sequences[0, len(row) :].tolist() == expected
    assert m.receipt[0].tokens == len(oracle.selected(rule, len(row), len(row) + NEW - 1))


def test_a_cache_whose_length_lies_is_refused_where_it_decides() -> None:
    model = hybrid("minimax")
    m = intervened(model, steering("all"), tensors={"v.block_output[1]": oracle.vector(32)})
    with torch.no_grad():
        cache = m(torch.tensor([[11, 12, 13]])).past_key_values
        assert cache.get_seq_length() == 0
        mask = torch.ones(1, 4, dtype=torch.long)
        with pytest.raises(PositionError, match="MiniMaxCache that says it holds 0"):
            m(torch.tensor([[14]]), mask, past_key_values=cache)
        with pytest.raises(PositionError, match="holds nothing"):
            m(torch.tensor([[14]]), past_key_values=cache)


def made(model: nn.Module, rule: Any) -> IntervenedModel:
    fields = {"subvene": 1, "model": {"name": "tiny"}, "interventions": [steering(rule)]}
    return IntervenedModel.from_spec(fields, model=model, tensors={"v.block_output[1]": oracle.vector(32)})


@rules
def test_images(rule: str) -> None:
    """Image tokens are tokens of the prompt; pixels go with the call, and attached as well."""
    llava = architectures.BY_NAME["llava"]
    model = llava.fresh()
    v = oracle.vector(32)
    m = made(model, rule)
    row = [11, 95, 95, 95, 95, 12, 13]
    ids, pixels = torch.tensor([row]), torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    block = model.get_submodule(f"{llava.blocks}.1")
    expected = list(row)
    for _ in range(NEW):
        chosen = oracle.selected(rule, len(row), len(expected))

        def hook(_module: Any, _args: Any, output: torch.Tensor, chosen: set[int] = chosen) -> Any:
            h = output.clone()
            for token in chosen:
                h[0, token] += v
            return h

        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([expected]), pixel_values=pixels, use_cache=False).logits
        handle.remove()
        expected.append(int(logits[0, -1].argmax()))
    assert m.generate_ids(ids, pixel_values=pixels, **GREEDY)[0].tolist() == expected
    with m.attached() as inside:
        assert inside.generate(input_ids=ids, pixel_values=pixels, **GREEDY)[0].tolist() == expected


def test_encoders_with_decoders_are_refused_by_name() -> None:
    config = t.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    with pytest.raises((AnatomyError, ValueError), match=r"T5|encoder"):
        made(t.T5ForConditionalGeneration(config), "all")


# What an attack found -------------------------------------------------------------------------------------


def test_a_misspelt_keyword_is_no_input() -> None:
    m = intervened(tiny("llama"), steering("all"))
    ids, mask = batch(PROMPTS, "left")
    for wrong in ({"strength": 0.0}, {"prompt_length": [3]}, {"attention_masks": mask}):
        with pytest.raises(TypeError, match="did you mean"):
            m(ids, **wrong)


def test_a_part_of_an_attached_model_is_refused() -> None:
    """Before and after a whole call: whose tokens these are could not be said."""
    m = intervened(tiny("llama"), steering("all"))
    ids = torch.tensor([PROMPTS[1]])
    for calls in (0, 1):
        with pytest.raises(PositionError, match="not a part of it"), m.attached() as model:
            _ = [model(ids) for _ in range(calls)], model.model(ids)


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
