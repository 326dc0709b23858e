"""Many rows in one batch say what each says alone: strengths, seeds and settings are the row's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from oracle import batch, hooks

from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.intervened.drawing import draw
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.own_sampling import OwnSampling
from subvene.runner.intervened.prefix import counting_tokens
from subvene.runner.intervened.rollouts import Row, answer_of, rollouts, row_seed
from subvene.runner.models.loading import ModelError
from subvene.specs import InterventionSpec

PROMPTS = [(5, 6, 7, 8), (9,), (5, 6, 7, 8), (10, 11, 12)]
NEW = 6


def intervened(loaded: tuple[Any, Any], *rules: Any, coefficient: float = 1.5) -> IntervenedModel:
    model, tokenizer = loaded
    width = model.config.hidden_size
    entries = [
        {"kind": "steering", "name": f"v{i}", "layer": 0, "vector": {"key": f"v{i}"}, "positions": rule}
        | {"coefficient": coefficient}
        for i, rule in enumerate(rules)
    ]
    tensors = {f"v{i}.block_output[0]": 12 * torch.eye(width)[3 + i] for i in range(len(rules))}
    spec = InterventionSpec.model_validate({"subvene": 1, "model": {"name": "t"}, "interventions": entries})
    return IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=tensors)


def greedy(**strengths: float) -> list[Row]:
    return [Row(prompt, strengths=strengths, temperature=0.0, max_new_tokens=NEW) for prompt in PROMPTS]


def generated(m: IntervenedModel, prompt: Sequence[int], **settings: Any) -> list[int]:
    """What the model's own `generate` gives for one row."""
    ids, mask = batch([prompt], "left")
    settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0} | settings
    tokens = m.generate_ids(ids, mask, **settings)[0, len(prompt) :].tolist()
    return tokens[: tokens.index(2)] if 2 in tokens else tokens


@pytest.mark.parametrize("rule", ["all", "prompt", "response", "last_prompt_token"])
@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_as_generate_gives_every_row(loaded: tuple[Any, Any], rule: str, batch_size: int) -> None:
    m = intervened(loaded, rule)
    rows = [row for strength in (-2.0, 0.0, 2.0) for row in greedy(v0=strength)]
    expected = [generated(m, row.prompt, strengths=row.strengths) for row in rows]
    found, receipts = rollouts(m, rows, batch_size=batch_size)
    assert [list(one.tokens) for one in found] == expected
    assert expected[:4] != expected[8:]
    assert hooks(m.model) == []
    assert receipts


@pytest.mark.parametrize("rule", ["all", "prompt", "response"])
def test_the_receipts_count_what_generate_s_do(loaded: tuple[Any, Any], rule: str) -> None:
    m = intervened(loaded, rule)
    rows = greedy(v0=2.0)
    _, receipts = rollouts(m, rows)
    counts: dict[str, int] = dict.fromkeys(("prompt", "cursor", "response"), 0)
    for row in rows:
        generated(m, row.prompt, strengths=row.strengths)
        assert m.receipt is not None
        counts = {role: counts[role] + n for role, n in m.receipt[0].edited.items()}
    found = {role: sum(receipt[0].edited[role] for receipt in receipts) for role in counts}
    assert found == counts


def test_a_row_without_a_strength_is_the_untouched_model_s(loaded: tuple[Any, Any]) -> None:
    m = intervened(loaded, "response", "response")
    mixed = [Row(PROMPTS[0], 3, {"v0": 4.0}), Row(PROMPTS[0], 3, {}), Row(PROMPTS[0], 3, {"v1": 0.0})]
    found, _ = rollouts(m, mixed)
    with m.disabled():
        plain, receipts = rollouts(m, mixed)
    assert found[1] == found[2] == plain[1]
    assert found[0] != plain[0]
    assert receipts == []


def test_the_spec_s_strengths_where_a_row_has_none(loaded: tuple[Any, Any]) -> None:
    m = intervened(loaded, "response", coefficient=4.0)
    found, _ = rollouts(m, [Row(PROMPTS[0], 3), Row(PROMPTS[0], 3, {"v0": 4.0})])
    assert found[0] == found[1]


def test_a_sample_does_not_depend_on_its_batch(loaded: tuple[Any, Any]) -> None:
    m = intervened(loaded, "response")
    rows = [
        Row(prompt, row_seed(i, j), {"v0": 0.5 * j}, 0.5 + 0.4 * j, 0.7 + 0.1 * j, 3 + i)
        for i, prompt in enumerate(PROMPTS)
        for j in range(4)
    ]
    together, _ = rollouts(m, rows, batch_size=100)
    assert together == rollouts(m, rows, batch_size=5)[0]
    assert together == [rollouts(m, [row])[0][0] for row in rows]
    assert together[::-1] == rollouts(m, rows[::-1], batch_size=7)[0]
    assert len({one.tokens for one in together}) > 8
    assert all(len(one.tokens) <= row.max_new_tokens for one, row in zip(together, rows, strict=True))


def test_other_seeds_other_texts(loaded: tuple[Any, Any]) -> None:
    m = IntervenedModel.plain(*loaded)
    found, _ = rollouts(m, [Row(PROMPTS[0], seed, max_new_tokens=12) for seed in range(6)])
    assert len({one.tokens for one in found}) == 6


def test_prompts_that_are_alike_are_passed_once(loaded: tuple[Any, Any]) -> None:
    m = intervened(loaded, "response", "all")
    prompt = tuple(range(5, 25))
    rows = [Row(prompt, 1, {"v0": float(i)}, 0.0, max_new_tokens=1) for i in range(10)]
    with counting_tokens(m.model) as count:
        rollouts(m, rows)
    assert count[0] == 19 + 10
    # Where an edit reaches the prompt, every row's is another one.
    rows += [Row(prompt, 1, {"v1": 1.0}, 0.0, max_new_tokens=1) for _ in range(2)]
    with counting_tokens(m.model) as count:
        rollouts(m, rows)
    assert count[0] == 19 * 3 + 12


def test_a_state_that_cannot_be_forked(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.5
    )
    m = IntervenedModel.plain(transformers.MambaForCausalLM(config).eval(), tokenizer)
    rows = [Row(prompt, i, None, 1.0, 0.9, 5) for i, prompt in enumerate(PROMPTS[:1] * 3)]
    together, _ = rollouts(m, rows)
    assert together == [rollouts(m, [row])[0][0] for row in rows]
    assert len({one.tokens for one in together}) > 1
    assert list(rollouts(m, [Row(PROMPTS[0], 0, None, 0.0, 1.0, NEW)])[0][0].tokens) == generated(
        m, PROMPTS[0]
    )


def test_the_end_of_a_row_is_not_part_of_it(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    m = IntervenedModel.plain(model, tokenizer)
    first = int(model(torch.tensor([PROMPTS[0]])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = first
    found, _ = rollouts(
        m, [Row(PROMPTS[0], temperature=0.0), Row(PROMPTS[1], temperature=0.0, max_new_tokens=2)]
    )
    assert (found[0].tokens, found[0].text, found[0].ended) == ((), "", True)
    assert (len(found[1].tokens), found[1].ended) == (2, False)


def test_what_is_not_steered_is_told(loaded: tuple[Any, Any]) -> None:
    m = intervened(loaded, {"first": 1, "of": "response"})
    with pytest.raises(NotSteeredError, match="v0"):
        rollouts(m, [Row(PROMPTS[0], strengths={"v0": 1.0}, max_new_tokens=1)])
    with pytest.raises(PositionError, match="v0"):
        rollouts(intervened(loaded, {"last": 1, "of": "response"}), [Row(PROMPTS[0])])
    with pytest.raises(ValueError, match="'w'"):
        rollouts(m, [Row(PROMPTS[0], strengths={"w": 1.0})])


def test_drawing() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1e4]]).repeat(4000, 1)
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    one, half = torch.ones(4000, dtype=torch.float64), torch.full((4000,), 0.5, dtype=torch.float64)
    drawn = draw(logits, u, temperatures=one, top_p=one).bincount(minlength=4) / 4000
    torch.testing.assert_close(drawn, logits[0].softmax(-1), atol=5e-4, rtol=0)
    sharper = draw(logits, u, temperatures=half, top_p=one).bincount(minlength=4) / 4000
    torch.testing.assert_close(sharper, (2 * logits[0]).softmax(-1), atol=5e-4, rtol=0)
    p = logits[0].softmax(-1)
    nucleus = draw(logits, u, temperatures=one, top_p=0.7 * one).bincount(minlength=4) / 4000
    torch.testing.assert_close(nucleus, torch.tensor([0, p[1], p[2], 0]) / p[1:3].sum(), atol=5e-4, rtol=0)
    assert set(draw(logits, u, temperatures=one, top_p=0.1 * one).tolist()) == {2}
    assert draw(logits[:1], torch.zeros(1).double(), temperatures=one[:1], top_p=0.1 * one[:1]).tolist() == [
        2
    ]


class TestReasoning:
    """A block of reasoning is no part of the answer, by a tokenizer that has the marks as words."""

    @pytest.fixture
    def tokenizer(self, loaded: tuple[Any, Any]) -> Any:
        loaded[1].add_tokens(["<think>", "</think>"])
        return loaded[1]

    def ids(self, tokenizer: Any, text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def test_it_is_taken_away(self, tokenizer: Any) -> None:
        words = tokenizer.decode([7, 8])
        thought = [*self.ids(tokenizer, "<think> "), 5, 6, *self.ids(tokenizer, "</think>")]
        assert answer_of(tokenizer, [5], [*thought, 7, 8]) == (len(thought), words)
        assert answer_of(tokenizer, [5, thought[0]], [*thought[1:], 7, 8]) == (len(thought) - 1, words)

    def test_it_does_not_end(self, tokenizer: Any) -> None:
        mark = self.ids(tokenizer, "<think>")
        assert answer_of(tokenizer, [5], [*mark, 7, 8]) == (3, "")
        assert answer_of(tokenizer, [5, *mark], [7, 8]) == (2, "")
        assert answer_of(tokenizer, [5], [7, 8]) == (0, tokenizer.decode([7, 8]))


OWN = {
    "plain": {},
    "all": {"temperature": 0.7, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.3},
    "rare": {"top_k": 0, "min_p": 0.02, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.005},
}


@pytest.mark.parametrize("settings", OWN.values(), ids=OWN)
def test_the_checkpoint_s_own_sampling(loaded: tuple[Any, Any], settings: dict[str, Any]) -> None:
    """What is drawn from is what transformers' `generate` draws from, step by step."""
    model, tokenizer = loaded
    model.generation_config.update(do_sample=True, **settings)
    m = IntervenedModel.plain(model, tokenizer)
    own = OwnSampling.of(model)
    assert own.draws
    prompts = [(5, 6, 7, 8), (9, 9, 3)]
    for prompt in prompts:
        told = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=NEW,
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=None,
        )
        ids = told.sequences[0].tolist()
        for step, (logits, scores) in enumerate(zip(told.logits, told.scores, strict=True)):
            torch.testing.assert_close(own.scores(ids[: len(prompt) + step], logits[0]), scores[0])
    rows = [Row(prompt, seed, own=own, max_new_tokens=NEW) for prompt in prompts for seed in range(2)]
    mixed = [*rows, Row(prompts[0], 1, max_new_tokens=NEW)]
    together, _ = rollouts(m, mixed)
    assert together == [rollouts(m, [row])[0][0] for row in mixed]


def test_a_checkpoint_that_does_not_draw(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    model.generation_config.update(do_sample=False, temperature=0.3, repetition_penalty=1.4)
    own = OwnSampling.of(model)
    assert own.described() == {"do_sample": False, "repetition_penalty": 1.4}
    m = IntervenedModel.plain(model, tokenizer)
    found, _ = rollouts(m, [Row(prompt, own=own, max_new_tokens=NEW) for prompt in PROMPTS])
    assert [list(one.tokens) for one in found] == [generated(m, prompt) for prompt in PROMPTS]
    model.generation_config.update(no_repeat_ngram_size=2)
    with pytest.raises(ModelError, match=r"sampling: model: .* sets no_repeat_ngram_size"):
        OwnSampling.of(model)
