"""A shared prefix gives what every prompt alone gives, for every way in which blocks keep keys and values."""

from __future__ import annotations

import pytest
import torch
import transformers
from architectures import BY_NAME
from oracle import every_model, hooks, intervened, selected, steering, tiny

from subvene.runner.data.text import TextError
from subvene.runner.edits.receipt import NotSteeredError, merged
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.prefix import (
    Continued,
    SharedPrefix,
    alike,
    continuation_log_probs,
    why_not_shared,
)
from subvene.runner.intervened.scoring import log_probs
from subvene.specs import InterventionSpec

SHARED = [11, 12, 13, 14, 15, 16, 17, 18, 19]
# Lengths that make the end of the prefix be passed again, and one row (of one token) beyond it.
PROMPTS = [[*SHARED, *rest] for rest in ([21, 22, 23, 24, 25, 26], [31, 32, 33, 34, 35], [41], [51] * 5)]
ANSWERS = [[[61, 62, 63, 64, 65], [66], [67, 68, 69]], [[71, 72]], [[73], [74, 75, 76, 77], [66]], [[81] * 7]]
# Rotary, learned and ALiBi positions; grouped, single and latent heads; windows by mask and by hand; tuples.
KINDS = ["qwen2", "gemma3", "gpt2", "gpt_neo", "opt", "bloom", "mpt", "falcon_multi_query", "deepseek_v3"]
KINDS += ["gpt_oss", "mistral", "stablelm"]


def scratch(m: IntervenedModel) -> torch.Tensor:
    pairs = [(prompt, answer) for prompt, row in zip(PROMPTS, ANSWERS, strict=True) for answer in row]
    return log_probs(m, pairs, batch_size=1)[0]


def shared(m: IntervenedModel, **settings: int) -> torch.Tensor:
    return torch.cat(continuation_log_probs(m, Continued(SHARED, PROMPTS, ANSWERS), **settings)[0])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rule", ["all", "response"])
def test_of_every_kind_of_cache(name: str, rule: str) -> None:
    m = intervened_at_first_block(BY_NAME[name].fresh(), rule)
    assert why_not_shared(m, SHARED, PROMPTS) is None
    assert (shared(m) - scratch(m)).abs().max() <= 1e-5
    with m.disabled():
        assert (shared(m) - scratch(m)).abs().max() <= 1e-5


@every_model
@pytest.mark.parametrize(
    "rule", ["all", "prompt", "response", "last_prompt_token", {"first": 2, "of": "response"}], ids=str
)
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_of_every_rule(name: str, rule: object, batch_size: int) -> None:
    m = intervened(tiny(name), steering(rule, coefficient=0.7))
    expected = scratch(m)
    assert (shared(m, batch_size=batch_size) - expected).abs().max() <= 1e-5
    with m.disabled():
        assert (scratch(m) - expected).abs().max() > 1e-2
    assert hooks(m.model) == []


@torch.no_grad()
def test_in_float64_to_the_last_digits() -> None:
    """Nothing is rounded on the way: what is left is the order of sums."""
    m = intervened(tiny("llama").double(), steering("response", coefficient=0.7))
    for (prompt, row), found in zip(
        zip(PROMPTS, ANSWERS, strict=True),
        continuation_log_probs(m, Continued(SHARED, PROMPTS, ANSWERS))[0],
        strict=True,
    ):
        for answer, value in zip(row, found, strict=True):
            ids = torch.tensor([[*prompt, *answer]])
            logits = m(ids, prompt_lengths=[len(prompt)], use_cache=False).logits[0].log_softmax(-1)
            by_hand = sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(answer))
            assert abs(float(by_hand - value)) <= 1e-11


def test_a_strength_for_the_call() -> None:
    m = intervened(tiny("llama"), steering("all", coefficient=0.7, name="v"))
    other = intervened(tiny("llama"), steering("all", coefficient=-0.3, name="v"))
    continued = Continued(SHARED, PROMPTS, ANSWERS)
    found = torch.cat(continuation_log_probs(m, continued, strengths={"v": -0.3})[0])
    assert (found - scratch(other)).abs().max() <= 1e-5


@pytest.mark.parametrize("rule", ["all", "prompt", "response"])
def test_the_receipts_count_what_was_edited(rule: str) -> None:
    m = intervened(tiny("llama"), steering(rule))
    _, receipts = continuation_log_probs(m, Continued(SHARED, PROMPTS, ANSWERS), batch_size=1)
    (receipt,) = merged(receipts, same_rows=False)
    # One at a time nothing of the prefix is passed again. The last token of an answer is never passed.
    expected = len(SHARED) if rule != "response" else 0
    for prompt, row in zip(PROMPTS, ANSWERS, strict=True):
        tokens = selected(rule, len(prompt), len(prompt))
        expected += len([token for token in tokens if token >= len(SHARED)])
        expected += 0 if rule == "prompt" else sum(len(answer) - 1 for answer in row)
    assert receipt[0].tokens == receipt[0].changed == expected
    assert receipt[0].edited["cursor"] == len(PROMPTS)


def test_no_edit_in_any_pass_is_an_error() -> None:
    m = intervened(tiny("llama"), steering({"indices": [40], "of": "response"}))
    with pytest.raises(NotSteeredError, match="edited no token"):
        shared(m)


def test_the_prefix_is_passed_once() -> None:
    m = intervened(tiny("llama"), steering("all"))
    passed: list[int] = []
    m.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: passed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    shared(m, batch_size=1)
    questions = sum(len(prompt) - len(SHARED) for prompt in PROMPTS)
    # All answers of a prompt are short: one pass of them, padded, is cheaper than one for each length.
    later = [[len(answer) - 1 for answer in row if len(answer) > 1] for row in ANSWERS]
    answers = sum(len(lengths) * max(lengths) for lengths in later)
    assert len(passed) == 1 + 2 * len(PROMPTS)
    assert sum(passed) == len(SHARED) + questions + answers


def test_alike() -> None:
    lengths = [3, 10, 9, 0, 8, 7, 10, 0]
    batches = alike(lengths, 3)
    assert sorted(i for batch in batches for i in batch) == list(range(8))
    assert batches == [[1, 6, 2], [4, 5, 0], [3, 7]]
    # Padding is cheap where there is little of it, and not where a pass of its own is cheaper.
    assert alike([200, 190, 20, 10], 32) == [[0, 1], [2, 3]]
    assert alike([200, 120], 32) == [[0], [1]]
    assert alike([], 3) == []


def test_reasons_against_sharing() -> None:
    def reason(rule: object) -> str | None:
        return why_not_shared(intervened(tiny("llama"), steering(rule, name="v")), SHARED, PROMPTS)

    assert reason({"first": 3, "of": "prompt"}) is None
    assert "count from the end of the response" in str(reason({"last": 2, "of": "response"}))
    assert "select other tokens in every prompt" in str(reason({"last": 4, "of": "prompt"}))
    plain = IntervenedModel.plain(tiny("llama"))
    assert why_not_shared(plain, SHARED, PROMPTS) is None
    assert "no common token" in str(why_not_shared(plain, [], PROMPTS))


def test_a_state_cannot_be_forked() -> None:
    config = transformers.MambaConfig(vocab_size=100, hidden_size=16, num_hidden_layers=2, state_size=4)
    plain = IntervenedModel.plain(transformers.MambaForCausalLM(config))
    assert "state that cannot be forked" in str(why_not_shared(plain, SHARED, PROMPTS))
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    hybrid = transformers.Lfm2ForCausalLM(
        transformers.Lfm2Config(**sizes, num_key_value_heads=2, layer_types=["conv", "full_attention"])
    )
    assert "cannot be forked" in str(why_not_shared(IntervenedModel.plain(hybrid), SHARED, PROMPTS))


def test_nothing_to_score_is_an_error() -> None:
    plain = IntervenedModel.plain(tiny("llama"))
    with pytest.raises(TextError, match="prompt 1"):
        continuation_log_probs(plain, Continued(SHARED, PROMPTS[:2], [[[61]], [[]]]))
    with pytest.raises(TextError, match="prompt 0"):
        continuation_log_probs(plain, Continued(SHARED, [SHARED], [[[61]]]))
    assert continuation_log_probs(plain, Continued(SHARED, [], [])) == ([], [])


def test_a_cache_of_one_pass_serves_one_pass() -> None:
    plain = IntervenedModel.plain(tiny("llama"))
    cache = SharedPrefix(plain, SHARED, 12).fork([0])
    ids, mask = torch.tensor([[21, 22]]), torch.ones(1, 11, dtype=torch.long)
    plain(ids, mask, past_key_values=cache)
    with pytest.raises(RuntimeError, match="one pass"):
        plain(ids, torch.ones(1, 13, dtype=torch.long), past_key_values=cache)


def intervened_at_first_block(model: torch.nn.Module, rule: str) -> IntervenedModel:
    entry = {"kind": "steering", "layer": 0, "vector": {"key": "v"}, "coefficient": 0.7, "positions": rule}
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "tiny"}, "interventions": [entry | {"site": "block_output"}]}
    )
    vector = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return IntervenedModel.from_spec(spec, model=model, tensors={"v.block_output[0]": vector})
