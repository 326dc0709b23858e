"""The same tokens are edited on every path through `generate`: chunks, drafts, caches, beams, embeddings."""

from __future__ import annotations

import copy
from typing import Any

import oracle
import pytest
import torch
from oracle import (
    LENGTHS,
    MIDDLE,
    NEW,
    PAD,
    PROMPTS,
    Watch,
    batch,
    both_models,
    by_hand,
    every_model,
    every_rule,
    intervened,
    main_rules,
    responses,
    slots,
    steering,
    tiny,
)

from subvene.runner import CacheError

# 5. chunked prefill ---------------------------------------------------------------------------------------


@every_model
@every_rule
@pytest.mark.parametrize("chunk", [2, 6])  # 7 tokens: the last chunk holds one of them
def test_chunked_prefill_edits_the_same_tokens(name: str, rule: Any, chunk: int) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    _, mask = batch(PROMPTS, "left")
    greedy = by_hand(model, rule)
    with Watch(model) as watch:
        assert responses(m, prefill_chunk_size=chunk) == greedy
    assert watch.counts[-NEW] == 1
    assert sum(watch.counts[: 1 - NEW]) == 7
    assert torch.equal(watch.changed(), slots(mask, rule, LENGTHS, mask.shape[1] + NEW - 1))


# 6. several tokens in a decoding call ---------------------------------------------------------------------

REPETITIVE = [11, 12, 13, 14, 11, 12, 13, 14, 11, 12]


def helped(model: Any, how: str) -> dict[str, Any]:
    """Settings of a generation whose decoding calls carry drafts."""
    if how == "prompt_lookup":
        return {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2}
    # The unedited model drafts for the edited one: some drafts are accepted, some not.
    assistant = copy.deepcopy(model)
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return {"assistant_model": assistant}


@every_model
@every_rule
@pytest.mark.parametrize("how", ["assistant", "prompt_lookup"])
def test_drafts_are_placed_by_their_positions(name: str, rule: Any, how: str) -> None:
    model, new = tiny(name), 24
    # Weak enough that the unedited assistant is right now and then.
    m = intervened(model, steering(rule, coefficient=0.25))
    expected, logits = oracle.greedy_by_hand(model, REPETITIVE, rule, new, 0.25 * oracle.vector())
    settings = {"max_new_tokens": new, "do_sample": False} | helped(model, how)
    with Watch(model) as watch:
        output = m.generate_ids(
            torch.tensor([REPETITIVE]), output_logits=True, return_dict_in_generate=True, **settings
        )
    assert output.sequences[0, len(REPETITIVE) :].tolist() == expected
    assert (torch.cat(output.logits) - logits).abs().max() <= 1e-4
    assert max(watch.counts[1:]) > 1, "no call carried a draft"
    if rule in ("all", "response"):  # an edit of the prompt alone fades out of a sliding window
        assert sum(watch.counts) > len(REPETITIVE) + new - 1, "no draft was rejected"
    tokens = oracle.selected(rule, len(REPETITIVE), len(REPETITIVE) + new - 1)
    receipt = m.receipt[0]
    assert receipt.tokens == len(tokens)
    assert (receipt.first, receipt.last) == (min(tokens), max(tokens))


@both_models
def test_a_model_that_drafts_for_itself_is_edited_in_both_roles(name: str) -> None:
    model = tiny(name)
    m = intervened(model, steering("response"))
    expected, _ = oracle.greedy_by_hand(model, REPETITIVE, "response", 8)
    assert responses(m, [REPETITIVE], max_new_tokens=8, assistant_model=model) == [expected]


# Further paths through generate ---------------------------------------------------------------------------


@every_model
@every_rule
def test_a_static_cache_edits_the_same_tokens(name: str, rule: Any) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    _, mask = batch(PROMPTS, "left")
    greedy = by_hand(model, rule)
    with Watch(model) as watch:
        assert responses(m, cache_implementation="static") == greedy
    assert torch.equal(watch.changed(), slots(mask, rule, LENGTHS, mask.shape[1] + NEW - 1))


@both_models
@main_rules
def test_embeddings_instead_of_ids(name: str, rule: Any) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    ids, mask = batch(PROMPTS, "left")
    base = {"inputs_embeds": model.get_input_embeddings()(ids).detach(), "attention_mask": mask}
    with Watch(model) as watch:
        _, found = m.intervenable.generate(base, max_new_tokens=NEW, do_sample=False)
    assert found.tolist() == by_hand(model, rule)
    assert torch.equal(watch.changed(), slots(mask, rule, LENGTHS, mask.shape[1] + NEW - 1))
    assert m.receipt[0].tokens == watch.changed().sum()


@both_models
@every_rule
def test_beams_edit_the_tokens_of_each_beam(name: str, rule: Any) -> None:
    """A beam's sum of log-probabilities is that of its sequence, edited by hand."""
    model = tiny(name)
    m = intervened(model, steering(rule))
    ids, mask = batch(PROMPTS, "left")
    settings = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "length_penalty": 0.0}
    with Watch(model) as watch:
        output = m.generate_ids(
            ids, mask, max_new_tokens=NEW, output_scores=True, return_dict_in_generate=True, **settings
        )
    for i, sequence in enumerate(output.sequences[:, ids.shape[1] :].tolist()):
        prompt = PROMPTS[i // 2]
        row = [*prompt, *sequence]
        log_probs = oracle.logits_by_hand(model, row, len(prompt), rule).log_softmax(-1)
        score = sum(log_probs[len(prompt) - 1 + step, token] for step, token in enumerate(sequence))
        assert float(output.sequences_scores[i]) == pytest.approx(float(score), abs=1e-4)
    expected = slots(mask, rule, LENGTHS, mask.shape[1] + NEW - 1).repeat_interleave(3, 0)
    assert torch.equal(watch.changed(), expected)
    assert m.receipt[0].rows == 9


def test_beams_go_on_while_the_best_of_them_has_ended() -> None:
    """What is returned may be shorter than what was run; a beam that ended is not among those that run."""
    model = tiny("llama")
    m = intervened(model, steering("response"))
    ids, mask = batch(PROMPTS, "left")
    settings = {
        "num_beams": 3,
        "do_sample": False,
        "length_penalty": -2.0,
        "eos_token_id": list(range(80, 99)),
    }
    with Watch(model) as watch:
        sequences = m.generate_ids(ids, mask, max_new_tokens=NEW, pad_token_id=PAD, **settings)
    steps = len(watch.calls)
    assert sequences.shape[1] - ids.shape[1] < steps, "the test needs beams that end early"
    expected = slots(mask, "response", LENGTHS, ids.shape[1] + steps - 1).repeat_interleave(3, 0)
    assert torch.equal(watch.changed(), expected)
    assert m.receipt[0].tokens == expected.sum()


@both_models
def test_several_sequences_a_prompt(name: str) -> None:
    model = tiny(name)
    m = intervened(model, steering("response"))
    ids, mask = batch(PROMPTS, "left")
    torch.manual_seed(1)
    settings = {"do_sample": True, "top_k": 0, "num_return_sequences": 4, "max_new_tokens": NEW}
    with Watch(model) as watch:
        output = m.generate_ids(ids, mask, output_logits=True, return_dict_in_generate=True, **settings)
    logits = torch.stack(output.logits, 1)
    for i, sequence in enumerate(output.sequences[:, ids.shape[1] :].tolist()):
        prompt = PROMPTS[i // 4]
        by_hand_ = oracle.logits_by_hand(model, [*prompt, *sequence], len(prompt), "response")
        torch.testing.assert_close(logits[i], by_hand_[len(prompt) - 1 : -1], atol=1e-5, rtol=1e-5)
    expected = slots(mask, "response", LENGTHS, mask.shape[1] + NEW - 1).repeat_interleave(4, 0)
    assert torch.equal(watch.changed(), expected)


def test_several_sequences_a_prompt_are_filled_up_too() -> None:
    model = tiny("llama")
    m = intervened(model, steering("response"))
    torch.manual_seed(0)
    ends = list(range(40, 60))
    settings = {
        "do_sample": True,
        "top_k": 0,
        "num_return_sequences": 8,
        "eos_token_id": ends,
        "pad_token_id": PAD,
    }
    ids, mask = batch(PROMPTS, "left")
    with Watch(model) as watch:
        sequences = m.generate_ids(ids, mask, max_new_tokens=8, **settings)
    expected = slots(mask, "response", LENGTHS, sequences.shape[1] - 1).repeat_interleave(8, 0)
    for i, row in enumerate(sequences[:, ids.shape[1] :].tolist()):
        if end := [at for at, token in enumerate(row) if token in ends]:
            expected[i, ids.shape[1] + end[0] :] = False
    assert (sequences[:, -1] == PAD).any(), "the test needs a row that ends early"
    assert torch.equal(watch.changed(), expected)
    assert m.receipt[0].tokens == expected.sum()


@every_model
@main_rules
@pytest.mark.parametrize("cached", [False, True])
def test_a_generation_that_goes_on_is_one_long_generation(name: str, rule: Any, cached: bool) -> None:
    """With the lengths of the first prompts, the response so far is response; from its cache or from anew."""
    model = tiny(name)
    m = intervened(model, steering(rule))
    ids, mask = batch(PROMPTS, "left")
    settings = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    long = m.generate_ids(ids, mask, max_new_tokens=3 + NEW, **settings)
    tokens = m.receipt[0].tokens
    first = m.generate_ids(ids, mask, max_new_tokens=3, **settings)
    mask = torch.cat([mask, torch.ones(3, 3, dtype=torch.long)], 1)
    cache = {"past_key_values": first.past_key_values} if cached else {}
    with Watch(model) as watch:
        rest = m.generate_ids(
            first.sequences, mask, prompt_lengths=LENGTHS, max_new_tokens=NEW, **settings, **cache
        )
    assert torch.equal(rest.sequences, long.sequences)
    torch.testing.assert_close(torch.stack(rest.logits), torch.stack(long.logits[3:]), atol=1e-5, rtol=1e-5)
    assert watch.counts[0] == mask.shape[1] - (ids.shape[1] + 2 if cached else 0)
    expected = slots(batch(PROMPTS, "left")[1], rule, LENGTHS, mask.shape[1] + NEW - 1)
    passed = watch.changed()
    assert torch.equal(passed, expected[:, expected.shape[1] - passed.shape[1] :])
    if not cached:
        assert m.receipt[0].tokens == tokens


@every_model
@main_rules
def test_a_cache_that_was_filled_otherwise_is_refused(name: str, rule: Any) -> None:
    """A new turn makes prompt of what was response: only `all` edits both."""
    model = tiny(name)
    m = intervened(model, steering(rule))
    ids, mask = batch(PROMPTS, "left")
    first = m.generate_ids(ids, mask, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    cache = first.past_key_values
    turn = torch.tensor([[61, 62], [63, 64], [65, 66]])
    ids = torch.cat([first.sequences, turn], 1)
    mask = torch.cat([mask, torch.ones(3, 5, dtype=torch.long)], 1)
    settings = {"past_key_values": cache, "max_new_tokens": NEW, "do_sample": False}
    held = cache.get_seq_length()
    for other in (
        intervened(model, steering(rule, coefficient=2.0)),
        intervened(model, steering(rule, layer=0)),
        intervened(model, steering("all"), steering(rule)),
    ):
        with pytest.raises(CacheError, match="filled otherwise"):
            other.generate_ids(ids, mask, **settings)
    with pytest.raises(CacheError, match="filled otherwise"):
        m.generate_ids(ids, mask, strengths=[1.0, 0.5, 1.0], **settings)
    with pytest.raises(CacheError, match="without edits"), m.disabled():
        m.generate_ids(ids, mask, **settings)
    if rule != "all":
        with pytest.raises(CacheError, match=r"token \d of row 0"):
            m.generate_ids(ids, mask, **settings)
        assert cache.get_seq_length() == held, "a refused call put nothing into the cache"
        return
    with Watch(model) as watch:
        found = m.generate_ids(ids, mask, **settings)
    assert watch.counts[0] == ids.shape[1] - held
    expected = by_hand(model, rule, [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)])
    assert found[:, ids.shape[1] :].tolist() == expected


def test_a_copied_cache_is_known_too() -> None:
    model = tiny("llama")
    m = intervened(model, steering("prompt"))
    ids = torch.tensor([[11, 12, 13, 14]])
    with torch.no_grad():
        cache = model(ids[:, :3]).past_key_values
        with pytest.raises(CacheError, match="strength 0"):
            m(ids[:, 3:], prompt_lengths=[4], past_key_values=copy.deepcopy(cache))
        cache = m(ids[:, :3], prompt_lengths=[3]).past_key_values
        m(ids[:, 3:], prompt_lengths=[4], past_key_values=copy.deepcopy(cache))
        with pytest.raises(CacheError, match="strength 1"):
            m(ids[:, 3:], prompt_lengths=[2], past_key_values=copy.deepcopy(cache))


@both_models
@every_rule
@pytest.mark.parametrize("first", [1, 6, 9, 10])
def test_a_scoring_pass_continues_from_a_cache(name: str, rule: Any, first: int) -> None:
    """In two parts or in one: the same logits, wherever the cut is."""
    model = tiny(name)
    m = intervened(model, steering(rule))
    row, prompt = [11, 12, 13, 14, 15, 16, 17, 51, 52, 53, 54], 7
    ids, mask = torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)
    whole = oracle.logits_by_hand(model, row, prompt, rule)
    expected = slots(mask, rule, [prompt], len(row))
    with torch.no_grad(), Watch(model) as watch:
        tracker = oracle.tracker(mask, [prompt], generating=False)
        with m.intervenable.attached(tracker):
            head = model(ids[:, :first], attention_mask=mask[:, :first], use_cache=True)
            tail = model(ids[:, first:], attention_mask=mask, past_key_values=head.past_key_values)
    assert torch.equal(watch.changed(), expected)
    torch.testing.assert_close(torch.cat([head.logits, tail.logits], 1)[0], whole, atol=1e-5, rtol=1e-5)
    if not expected[:, first:].any():
        return
    for masked in ({"attention_mask": mask}, {}):
        with torch.no_grad():
            head = model(ids[:, :first], use_cache=True)  # filled unedited
            settings = {"prompt_lengths": [prompt], "past_key_values": head.past_key_values, **masked}
            if expected[:, :first].any():
                with pytest.raises(CacheError, match="filled otherwise"):
                    m(ids[:, first:], **settings)
                continue
            with Watch(model) as watch:
                logits = m(ids[:, first:], **settings).logits[0]
        assert torch.equal(watch.changed(), expected[:, first:])
        torch.testing.assert_close(logits, whole[first:], atol=1e-5, rtol=1e-5)


def test_arguments_of_the_model_may_be_positional() -> None:
    model = tiny("llama")
    m = intervened(model, steering("response"))
    ids, mask = torch.tensor([[11, 12, 13, 14]]), torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad(), Watch(model) as watch, m.intervenable.attached(oracle.tracker(mask, [3])):
        head = model(ids[:, :2], mask[:, :2], use_cache=True)
        model(ids[:, 2:], mask, None, head.past_key_values)
    assert watch.changed().tolist() == [[False, False, True, True]]


def test_other_sites_are_edited_at_the_same_tokens() -> None:
    """`attention_heads` is a module's input; an edit there reaches the block's output of the same token."""
    for name in ("llama", "gpt2"):
        model = tiny(name)
        for site in ("attention_heads", "attention_output", "mlp_output"):
            entry = steering("response") | {"site": site}
            m = intervened(model, entry, tensors={f"v.{site}[{MIDDLE}]": oracle.vector()})
            seen: list[torch.Tensor] = []
            block = oracle.blocks(model)[MIDDLE]
            handle = block.register_forward_hook(lambda _m, _a, output, seen=seen: seen.append(output))
            ids, mask = batch(PROMPTS, "left")
            with torch.no_grad():
                m(ids, mask, prompt_lengths=[length - 1 or 1 for length in LENGTHS])
                model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0))
            handle.remove()
            changed = (seen[0] - seen[1]).abs().amax(-1) > 1e-3
            expected = slots(mask, "response", [length - 1 or 1 for length in LENGTHS], mask.shape[1])
            assert torch.equal(changed, expected), (name, site)


# The real model -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("plain", "all"),
        ("plain", "prompt"),
        ("plain", "response"),
        ("no_cache", "response"),
        ("chunked", "response"),
        ("chunked", "prompt"),
        ("prompt_lookup", "response"),
        ("static", "response"),
    ],
)
def test_every_path_edits_the_same_tokens_on_smollm2(smollm2: Any, path: str, rule: str) -> None:
    model, tokenizer = smollm2
    m = intervened(model, steering(rule, layer=14, coefficient=0.3))
    row = tokenizer("one two three four one two three four one two three")["input_ids"]
    settings: dict[str, Any] = {
        "plain": {},
        "no_cache": {"use_cache": False},
        "chunked": {"prefill_chunk_size": len(row) - 1},
        "prompt_lookup": {"prompt_lookup_num_tokens": 3},
        "static": {"cache_implementation": "static"},
    }[path]
    v = 0.3 * oracle.vector(model.config.hidden_size)
    new, expected = 5, list(row)
    for _ in range(new):
        with (
            oracle.edited_by_hand(model, oracle.selected(rule, len(row), len(expected)), v, 14),
            torch.no_grad(),
        ):
            expected.append(int(model(torch.tensor([expected]), use_cache=False).logits[0, -1].argmax()))
    found = m.generate_ids(
        torch.tensor([row]), max_new_tokens=new, do_sample=False, eos_token_id=None, **settings
    )
    assert found[0].tolist() == expected
    assert m.receipt[0].tokens == len(oracle.selected(rule, len(row), len(row) + new - 1))
