"""Passes over answers: the reference, and beginning at a layer, are the model's own numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from architectures import BY_NAME
from tiny_preferences import examples_of
from torch import nn

from subvene.runner.anatomy import Anatomy
from subvene.runner.text import TextError
from subvene.runner.training.examples import Answers, Example, split
from subvene.runner.training.passes import Passes, cut, frozen

ANSWERS = Answers.of(examples_of(8, seed=5))


@torch.no_grad()
def by_hand(model: nn.Module, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def prepared(model: nn.Module, wanted: list[int], **options: Any) -> Passes:
    passes = Passes(Anatomy.of(model), ANSWERS, 0, options.pop("pass_tokens", 40))
    passes.prepare(range(len(ANSWERS.rows)), wanted, **options)
    return passes


@pytest.mark.parametrize(
    "name",
    ["llama", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "bloom", "falcon_new", "mixtral"],
)
def test_the_reference_and_a_pass_that_begins_higher_are_the_model(name: str) -> None:
    model = BY_NAME[name].shared()
    passes = prepared(model, [1])
    expected = torch.tensor([by_hand(model, *row) for row in ANSWERS.rows])
    torch.testing.assert_close(passes.reference, expected, rtol=1e-4, atol=1e-4)
    assert passes.entries == (0, 1), passes.note
    rows = [3, 0, 3]
    torch.testing.assert_close(passes.log_probs(rows, 1), expected[rows], rtol=1e-4, atol=1e-4)
    assert all("forward" not in block.__dict__ for block in Anatomy.of(model).blocks)


def test_a_pass_does_not_run_what_lies_below_its_entry() -> None:
    model = BY_NAME["llama"].fresh()
    passes = prepared(model, [1])
    ran: list[str] = []
    for layer, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    passes.log_probs([0], 1)
    assert ran == [1]


def test_a_layer_where_a_pass_cannot_begin_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BY_NAME["llama"].fresh()
    # A block that passes something on beside its hidden states, as some architectures do.
    plain = model.model.layers[1].forward

    def reads_another_block(hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return plain(hidden_states, **kwargs) + model.model.layers[0].last_input

    model.model.layers[0].last_input = torch.zeros(())
    model.model.layers[0].mlp.register_forward_hook(
        lambda _m, args, _o: setattr(model.model.layers[0], "last_input", args[0].mean())
    )
    monkeypatch.setattr(model.model.layers[1], "forward", reads_another_block)
    passes = prepared(model, [1], pass_tokens=1)
    assert passes.entries == (0,)
    assert passes.note is not None
    assert "off by" in passes.note
    assert passes.entry_for(1) == 0


def test_what_is_kept_stays_within_its_bytes() -> None:
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4
    )
    model = transformers.LlamaForCausalLM(config).eval()
    one = sum(ANSWERS.length(row) for row in range(len(ANSWERS.rows))) * 32 * 4
    # Layer 2 serves three, layer 5 one: 3·2 + 2 saved layers against 5; then both.
    wanted = [2, 2, 2, 5]
    assert prepared(model, wanted, cache_bytes=one - 1).entries == (0,)
    first = prepared(model, wanted, cache_bytes=2 * one - 1)
    assert first.entries == (0, 2)
    assert first.entry_for(5) == 2
    assert "1 of 2 layers" in (first.note or "")
    both = prepared(model, wanted, cache_bytes=2 * one)
    assert both.entries == (0, 2, 5)
    assert both.note is None


def test_only_what_predicts_an_answer_meets_the_vocabulary() -> None:
    model = BY_NAME["llama"].fresh()
    passes = Passes(Anatomy.of(model), ANSWERS, 0, 1000)
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _m, _a, output: seen.append(output.shape))
    passes.log_probs([0, 1, 2])
    assert seen == [(1, sum(len(ANSWERS.rows[row][1]) for row in range(3)), 96)]


def test_freezing_is_undone() -> None:
    model = BY_NAME["llama"].fresh().train()
    model.model.embed_tokens.requires_grad_(False)
    with frozen(model):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {"model.embed_tokens.weight"}


def test_passes_hold_so_many_tokens() -> None:
    assert cut([(0, 3), (1, 9), (2, 4), (3, 20), (4, 4)], 12) == [[3], [1], [2, 4, 0]]


def test_answers_are_kept_once_and_must_hold_a_token() -> None:
    first, second = Example("q", (1,), (2,), (3,)), Example("q", (1,), (2,), (4,))
    answers = Answers.of([first, second])
    assert answers.rows == (((1,), (2,)), ((1,), (3,)), ((1,), (4,)))
    assert (answers.chosen, answers.rejected) == ((0, 0), (1, 2))
    with pytest.raises(TextError, match="example 1: the rejected holds no token"):
        Answers.of([first, Example("q", (1,), (2,), ())])


def test_a_split_is_by_question_and_by_content() -> None:
    examples = examples_of(20)
    train, held_out = split(examples, 0.3, seed=4)
    assert sorted((*train, *held_out)) == list(range(20))
    keys = {examples[i].key for i in held_out}
    assert len(keys) == 3
    assert keys.isdisjoint(examples[i].key for i in train)
    turned = examples[::-1]
    assert {turned[i].key for i in split(turned, 0.3, seed=4)[1]} == keys
    assert {examples[i].key for i in split(examples, 0.3, seed=5)[1]} != keys
    assert split(examples, None, seed=4) == (tuple(range(20)), ())
