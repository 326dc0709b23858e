"""Passes over answers: the reference, and beginning at a layer, are the model's own numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from architectures import BY_NAME
from tiny_preferences import examples_of
from torch import nn

from subvene.runner.data.examples import Answers, Example, split
from subvene.runner.data.text import TextError
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.training.passes import Passes, frozen
from subvene.runner.training.units import Extent, planned

ANSWERS = Answers.of(examples_of(8, seed=5))


@torch.no_grad()
def by_hand(model: nn.Module, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    logits = model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def one_prompt() -> Answers:
    """Two prompts with three answers each, of other lengths; one answer has a single token."""
    answers = [(1, 2, 3, 4), (5,), (6, 7), (8, 9, 1, 2, 3), (4,), (5, 6)]
    prompts = [(11, 12, 13), (14, 15, 16, 17, 18)]
    return Answers.of([Example("q", prompts[i // 3], answers[i], answers[(i + 1) % 3]) for i in range(6)])


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
    found = passes.log_probs([[row] for row in rows], 1)
    torch.testing.assert_close(found, expected[rows], rtol=1e-4, atol=1e-4)
    assert all("forward" not in block.__dict__ for block in Anatomy.of(model).blocks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["own", "eager"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3", "gpt2", "gpt_neox", "mixtral"])
def test_answers_side_by_side_are_as_if_alone(name: str, attention: str, dtype: torch.dtype) -> None:
    model = BY_NAME[name].fresh().to(dtype)
    if attention != "own":
        model.set_attn_implementation(attention)
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 64  # as in real models, wider than the texts
    answers = one_prompt()
    passes = Passes(Anatomy.of(model), answers, 0, 100)
    passes.prepare(range(len(answers.rows)), [1])
    assert passes.side_by_side, passes.note
    assert passes.note is None
    same = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.1}
    expected = torch.tensor([by_hand(model, *row) for row in answers.rows])
    torch.testing.assert_close(passes.reference, expected, **same)
    groups = [[4, 0], [5], [1, 3, 2]] if answers.prompts[4] == answers.prompts[0] else []
    groups = groups or [[2, 0], [5], [4, 3], [1]]
    rows = [row for group in groups for row in group]
    for entry in (0, 1):
        torch.testing.assert_close(passes.log_probs(groups, entry), expected[rows], **same)


def test_a_prompt_passes_once_for_all_its_answers() -> None:
    model = BY_NAME["llama"].fresh()
    answers = one_prompt()
    seen: list[torch.Size] = []
    model.model.layers[0].register_forward_hook(lambda _m, _a, out: seen.append(out.shape[:2]))
    passes = Passes(Anatomy.of(model), answers, 0, 100, full=100)
    passes.prepare(range(len(answers.rows)), [0])
    longest = 5 + sum(len(answer) - 1 for prompt, answer in answers.rows if len(prompt) == 5)
    assert seen[-1] == (2, longest)
    # As many answers behind one prompt as a pass may have tokens.
    passes.pass_tokens = 6
    rows = [(row,) for row in range(len(answers.rows)) if len(answers.rows[row][0]) == 3]
    lengths = [len(answers.rows[row][1]) - 1 for (row,) in rows]
    shared = passes.together(rows)
    assert sorted(i for group in shared for i in group) == list(range(len(rows)))
    assert len(shared) > 1
    assert all(len(group) == 1 or 3 + sum(lengths[i] for i in group) <= 6 for group in shared)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bloom", "takes no position_ids"),
        ("gemma2", "the longest row has 10 tokens and sliding_window is 4"),
    ],
)
def test_where_answers_cannot_share_a_sequence_they_have_their_own(name: str, reason: str) -> None:
    model = BY_NAME[name].fresh()
    answers = one_prompt()
    passes = Passes(Anatomy.of(model), answers, 0, 100)
    passes.prepare(range(len(answers.rows)), [0])
    assert not passes.side_by_side
    assert reason in (passes.note or "")
    expected = torch.tensor([by_hand(model, *row) for row in answers.rows])
    torch.testing.assert_close(passes.reference, expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_mixes_answers_up_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BY_NAME["llama"].fresh()
    plain = model.forward

    # As one that makes its own mask whatever it is given.
    def forward(input_ids: Any, attention_mask: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return plain(input_ids, position_ids=position_ids, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    answers = one_prompt()
    passes = Passes(Anatomy.of(model), answers, 0, 100)
    passes.prepare(range(len(answers.rows)), [0])
    assert not passes.side_by_side
    assert "off by" in (passes.note or "")


def test_a_pass_does_not_run_what_lies_below_its_entry() -> None:
    model = BY_NAME["llama"].fresh()
    passes = prepared(model, [1])
    ran: list[str] = []
    for layer, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    passes.log_probs([[0]], 1)
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
    # A prompt once, and of an answer all but its last token.
    tokens = sum(len(prompt) for prompt in {prompt for prompt, _ in ANSWERS.rows})
    tokens += sum(len(answer) - 1 for _, answer in ANSWERS.rows)
    one = tokens * 32 * 4
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
    passes.log_probs([[0], [1], [2]])
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
    alike = [Extent(0, 1, length) for length in (3, 9, 4, 20, 4)]
    assert list(planned(alike, 12, full=12)) == [[3], [1], [2, 4, 0]]
    # One that is much shorter is left to the next pass once a pass is full enough.
    shorter = [Extent(0, 2, 10), Extent(0, 2, 9), Extent(0, 2, 6)]
    assert list(planned(shorter, 1000, full=40)) == [[0, 1], [2]]
    assert list(planned(shorter, 1000, full=41)) == [[0, 1, 2]]
    higher = [Extent(0, 2, 10), Extent(1, 1, 10)]
    assert list(planned(higher, 1000, full=20)) == [[0], [1]]
    assert list(planned(higher, 1000, full=21)) == [[0, 1]]


def test_answers_are_kept_once_and_must_hold_a_token() -> None:
    first, second = Example("q", (1,), (2,), (3,)), Example("q", (1,), (2,), (4,))
    answers = Answers.of([first, second])
    assert answers.rows == (((1,), (2,)), ((1,), (3,)), ((1,), (4,)))
    assert answers.prompts == (0, 0, 0)
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
