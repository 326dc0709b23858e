"""Projections: what is read is what one text at a time, read by hand, gives; live equals teacher-forced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import LAYERS, MIDDLE, WIDTH, blocks, hooks, intervened, steering, tiny
from torch import nn

from subvene.runner import IntervenedModel, NotSteeredError
from subvene.runner.data.span import Text
from subvene.runner.data.text import pad, pad_id_of, prompt_ids
from subvene.runner.edits.positions import TokenTracker
from subvene.runner.monitor.live_projection import LiveProjections, generate_with_projections
from subvene.runner.monitor.projection import ProjectionError, project, token_projections
from subvene.runner.monitor.stored_vectors import chosen_vectors, stored_vectors

TEXTS = [
    Text((11, 12, 13, 14, 15, 16, 17), 3, 7),
    Text((21, 22, 23, 24), 2, 3),
    Text((31, 32), 1, 2),
    Text((11, 12, 13, 14), 2, 4),  # the beginning of the first
    Text((41, 42, 43), 3, 3),  # an empty response
]
COEFFICIENT = 2.0


@pytest.fixture
def vectors() -> dict[str, dict[int, torch.Tensor]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return {key: {layer: torch.randn(WIDTH) * 5 for layer in layers} for key, layers in KEYS.items()}


KEYS = {"a": (0, 1, 2), "b": (MIDDLE,)}


def by_hand(model: nn.Module, text: Text, layer: int, v: torch.Tensor, edit: Any = None) -> torch.Tensor:
    """The projection of every token of the span; `edit(h)` replaces the output of the middle block."""
    seen: dict[int, torch.Tensor] = {}

    def hook(index: int) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Any) -> Any:
            h = output[0] if isinstance(output, tuple) else output
            new = edit(h) if edit is not None and index == MIDDLE else h
            seen[index] = new[0].double()
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return keep

    handles = [block.register_forward_hook(hook(i)) for i, block in enumerate(blocks(model))]
    with torch.no_grad():
        model(torch.tensor([text.ids]))
    for handle in handles:
        handle.remove()
    return seen[layer][text.start : text.end] @ (v.double() / v.double().norm())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_unedited_projections_are_those_of_one_text_at_a_time(
    name: str, batch_size: int, vectors: Any
) -> None:
    model = tiny(name)
    m = intervened(model, steering("all"))  # whose edit must not act here
    before = hooks(model)
    found = project(m, TEXTS, vectors, batch_size=batch_size)
    tokens = token_projections(m, TEXTS, vectors, batch_size=batch_size)
    assert found.after is None
    assert tokens.after is None
    assert found.tokens.tolist() == [4, 1, 1, 2, 0]
    assert {key: tuple(by_layer) for key, by_layer in found.before.items()} == KEYS
    for key, by_layer in vectors.items():
        for layer, v in by_layer.items():
            assert found.before[key][layer].isnan().tolist() == [False] * 4 + [True]
            for i, text in enumerate(TEXTS[:4]):
                expected = by_hand(model, text, layer, v)
                torch.testing.assert_close(
                    tokens.before[key][layer][i].double(), expected, atol=1e-5, rtol=1e-5
                )
                torch.testing.assert_close(found.before[key][layer][i], expected.mean(), atol=1e-5, rtol=1e-5)
            assert tokens.before[key][layer][4].shape == (0,)
    assert hooks(model) == before


def test_an_unedited_pass_reads_only_what_it_needs(vectors: Any) -> None:
    model = tiny("llama")
    passed: list[tuple[int, ...]] = []
    handles = [
        blocks(model)[0].register_forward_pre_hook(lambda _m, args: passed.append(tuple(args[0].shape[:2]))),
        blocks(model)[2].register_forward_pre_hook(lambda *_: pytest.fail("a layer nobody asked for")),
    ]
    m = intervened(model, steering("all"))
    project(m, TEXTS, {"b": vectors["b"]}, batch_size=8)
    for handle in handles:
        handle.remove()
    # The beginning of another text is no row of its own.
    assert passed == [(4, 7)]


@pytest.mark.parametrize("rule", ["all", "prompt", "response"])
def test_edited_projections_are_read_on_either_side_of_the_edit(rule: str, vectors: Any) -> None:
    model = tiny("llama")
    m = intervened(model, steering(rule, coefficient=COEFFICIENT))
    delta = COEFFICIENT * next(iter(m.intervenable.interventions.values())).vector
    before = hooks(model)
    found = project(m, TEXTS[:4], vectors, edited=True, batch_size=3)
    tokens = token_projections(m, TEXTS[:4], vectors, edited=True, batch_size=3)
    assert found.after is not None
    assert tokens.after is not None
    assert len(found.receipts) == 2
    for i, text in enumerate(TEXTS[:4]):
        mask = torch.zeros(len(text.ids))
        cursor = text.start - 1
        mask[{"all": slice(None), "prompt": slice(text.start), "response": slice(cursor, None)}[rule]] = 1
        for key, by_layer in vectors.items():
            for layer, v in by_layer.items():
                after = by_hand(model, text, layer, v, lambda h, mask=mask: h + mask[None, :, None] * delta)
                entering = by_hand(model, text, layer, v) if layer <= MIDDLE else after
                close = {"atol": 1e-5, "rtol": 1e-5}
                torch.testing.assert_close(found.after[key][layer][i], after.mean(), **close)
                torch.testing.assert_close(found.before[key][layer][i], entering.mean(), **close)
                torch.testing.assert_close(tokens.after[key][layer][i].double(), after, **close)
                torch.testing.assert_close(tokens.before[key][layer][i].double(), entering, **close)
    assert hooks(model) == before


def test_before_a_second_edit_of_the_same_block_is_before_the_first(vectors: Any) -> None:
    both = (
        {**steering("all", coefficient=1.0), "name": "one"},
        {**steering("all", coefficient=3.0), "name": "two"},
    )
    m = intervened(tiny("llama"), *both)
    v = next(iter(m.intervenable.interventions.values())).vector
    found = project(m, TEXTS[:3], {"v": {MIDDLE: v}}, edited=True)
    torch.testing.assert_close(
        found.after["v"][MIDDLE] - found.before["v"][MIDDLE],  # type: ignore[index]
        (4 * v.norm()).double().expand(3),
        atol=1e-4,
        rtol=1e-5,
    )


def test_strengths_by_text_and_the_receipts_of_all_batches_together(vectors: Any) -> None:
    m = intervened(tiny("llama"), steering("all", coefficient=COEFFICIENT))
    name = m.intervenable.entries[0].name
    found = project(m, TEXTS[:3], vectors, edited=True, strengths={name: [0.0, 1.0, 0.0]}, batch_size=1)
    off = found.after["b"][MIDDLE] == found.before["b"][MIDDLE]  # type: ignore[index]
    assert off.tolist() == [True, False, True]
    rule = {"indices": [3], "of": "response"}
    far = intervened(tiny("llama"), steering(rule, coefficient=COEFFICIENT))
    project(far, TEXTS[:3], vectors, edited=True, batch_size=1)  # the first is long enough
    with pytest.raises(NotSteeredError):
        project(far, TEXTS[1:3], vectors, edited=True, batch_size=1)


def _generated(output: torch.Tensor, prompts: Sequence[Sequence[int]], ends: Sequence[int]) -> list[Text]:
    """What of each response went through the model, read off the sequences alone."""
    width = max(map(len, prompts))
    texts = []
    for prompt, row in zip(prompts, output.tolist(), strict=True):
        new = row[width:]
        stop = next((i for i, token in enumerate(new) if token in ends), len(new) - 1)
        texts.append(Text((*prompt, *new[:stop]), len(prompt), len(prompt) + stop))
    return texts


LIVE = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "drafts": {"prompt_lookup_num_tokens": 3},
    "sampled": {"do_sample": True, "temperature": 1.5},
}


@pytest.mark.parametrize("options", LIVE.values(), ids=LIVE)
@pytest.mark.parametrize("edited", [True, False])
def test_live_projections_equal_teacher_forced_ones(options: Any, edited: bool, vectors: Any) -> None:
    model = tiny("llama")
    m = intervened(model, steering("response", coefficient=COEFFICIENT))
    prompts = [[11, 12, 13, 11, 12, 13, 11], [21, 22, 23, 24], [31]]
    if "prompt_lookup_num_tokens" in options:
        prompts = prompts[:1]  # transformers drafts for one row only
    batch = pad(prompts, [len(prompt) for prompt in prompts], 0, "left")
    # A token that some row generates early ends it, so that rows end at different times.
    with torch.random.fork_rng(devices=[]), m.disabled():
        first = m.generate_ids(batch.input_ids, batch.attention_mask, max_new_tokens=4, do_sample=False)
    ends = [int(first[-1, -1])]
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0} | options
    before = hooks(model)

    def run() -> tuple[Any, Any, list[Text], Any]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            plain = m.generate_ids(batch.input_ids, batch.attention_mask, **settings)
            torch.manual_seed(1)
            with LiveProjections(m, vectors, batch.attention_mask, **settings) as live:
                output = m.generate_ids(batch.input_ids, batch.attention_mask, **settings)
        assert torch.equal(plain, output)
        texts = _generated(output, prompts, ends)
        return live.of(output), output, texts, project(m, texts, vectors, edited=True)

    if edited:
        found, _, texts, expected = run()
    else:
        with m.disabled():
            found, _, texts, expected = run()
        assert found.before.keys() == found.after.keys()
    assert found.tokens.tolist() == [text.end - text.start for text in texts]
    assert max(found.tokens.tolist()) > 1
    for key, by_layer in vectors.items():
        for layer in by_layer:
            for when in ("before", "after"):
                live_value, forced = (getattr(p, when)[key][layer] for p in (found, expected))
                torch.testing.assert_close(live_value, forced, atol=1e-4, rtol=1e-5, equal_nan=True)
            differ = found.after[key][layer] != found.before[key][layer]
            assert bool(differ.any()) == (edited and layer == MIDDLE)
    assert hooks(model) == before


def test_live_rows_of_several_sequences_and_one_token_responses(vectors: Any) -> None:
    m = intervened(tiny("llama"), steering("response"))
    ids = torch.tensor([[11, 12, 13]])
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": 4, "do_sample": True, "num_return_sequences": 3, "pad_token_id": 0}
    with LiveProjections(m, vectors, mask, **options) as live:
        output = m.generate_ids(ids, mask, **options)
    assert live.of(output).tokens.tolist() == [3, 3, 3]
    with LiveProjections(m, vectors, mask, max_new_tokens=1) as live:
        output = m.generate_ids(ids, mask, max_new_tokens=1, do_sample=False)
    found = live.of(output)
    assert found.tokens.tolist() == [0]
    assert found.before["b"][MIDDLE].isnan().all()
    with pytest.raises(ProjectionError, match="num_beams"):
        LiveProjections(m, vectors, mask, num_beams=2)


def test_a_rejected_draft_at_the_place_of_the_last_token_is_not_read(vectors: Any) -> None:
    m = intervened(tiny("llama"), steering("response"))
    ids = torch.tensor([[11, 12, 13, 11, 12, 13, 11]])
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    end = int(m.generate_ids(ids, mask, **options)[0, ids.shape[1]])
    options |= {"eos_token_id": end, "prompt_lookup_num_tokens": 3}
    with LiveProjections(m, vectors, mask, **options) as live:
        output = m.generate_ids(ids, mask, **options)
    assert output.shape[1] == ids.shape[1] + 1
    assert live.of(output).tokens.tolist() == [0]


def test_live_within_a_run_that_somebody_else_drives(vectors: Any) -> None:
    """Here the edits are attached before the reading begins."""
    model = tiny("llama")
    m = intervened(model, steering("response"))
    ids = torch.tensor([[11, 12, 13]])
    mask = torch.ones_like(ids)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with LiveProjections(m, vectors, mask, **options) as live:
        output = m.generate_ids(ids, mask, **options)
    expected = live.of(output)
    with (
        m.intervenable.attached(TokenTracker(mask, mask.sum(-1), generating=True)),
        LiveProjections(m, vectors, mask, **options) as live,
    ):
        output = model.generate(ids, attention_mask=mask, **options)
    found = live.of(output)
    assert found.of(0) == expected.of(0)
    assert found.before["b"][MIDDLE] != found.after["b"][MIDDLE]  # type: ignore[index]


def test_hooks_are_gone_after_an_exception(vectors: Any) -> None:
    model = tiny("llama")
    m = intervened(model, steering("response"))

    def stop(*_: Any) -> None:
        raise RuntimeError("stop")

    model.lm_head.register_forward_hook(stop)
    before, mask = hooks(model), torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(RuntimeError, match="stop"), LiveProjections(m, vectors, mask):
        m.generate_ids(torch.tensor([[11, 12, 13, 14]]), mask, max_new_tokens=2)
    assert hooks(model) == before


def test_what_cannot_be_projected_is_named(vectors: Any) -> None:
    m = intervened(tiny("llama"), steering("all"))
    for wrong, said in [
        ({}, "no vector to project on"),
        ({"k": {LAYERS: torch.ones(WIDTH)}}, rf"k.block_output\[{LAYERS}\]: expected a layer from 0 to 2"),
        ({"k": {0: torch.ones(3)}}, r"expected shape \[32\] for this model, found \[3\]"),
        ({"k": {0: torch.zeros(WIDTH)}}, "norm 0"),
        ({"k": {0: torch.full((WIDTH,), torch.nan)}}, "norm nan"),
    ]:
        with pytest.raises(ProjectionError, match=said):
            project(m, TEXTS, wrong)
    for text in (Text((1, 2), 1, 3), Text((1, 2), 2, 1), Text((), 0, 0)):
        with pytest.raises(ProjectionError, match=r"texts\[1\]: expected a span"):
            project(m, [TEXTS[0], text], vectors)
    assert project(m, [], vectors).tokens.tolist() == []


# Vectors of artifacts ---------------------------------------------------------------------------------------

TWO = """\
interventions:
- {kind: steering, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3}
- {kind: ablation, layer: 2, direction: {file: t.safetensors, key: w}}
"""


def test_vectors_are_those_that_interventions_use_or_that_are_named(
    write: Callable[..., Path], experiment: Path
) -> None:
    m = IntervenedModel.from_spec(write(TWO))
    chosen = chosen_vectors(m)
    assert {key: list(by_layer) for key, by_layer in chosen.items()} == {"v": [1], "w": [2]}
    assert chosen["v"][1].tolist() == (torch.eye(WIDTH)[3] * 4).tolist()
    assert list(chosen_vectors(m, ["w@2"])) == ["w"]
    for wrong, said in [
        (["x"], "no vector 'x' at block_output; there is: v, w"),
        (["v@0"], r"no vector 'v' at block_output\[0\]; there is: layer 1"),
        (["v@last"], "expected KEY@LAYER"),
    ]:
        with pytest.raises(ProjectionError, match=said):
            chosen_vectors(m, wrong)
    from subvene.runner.recipes.fitting import fit

    fitted = fit(experiment_spec(experiment), folder=experiment.parent)
    assert {key: list(by_layer) for key, by_layer in stored_vectors(fitted).items()} == {"glad": [0, 1, 2]}
    assert list(chosen_vectors(fitted)["glad"]) == [1]
    assert list(chosen_vectors(fitted, layers="all")["glad"]) == [0, 1, 2]
    assert list(chosen_vectors(fitted, ["glad"], [0, 2])["glad"]) == [0, 2]


def experiment_spec(path: Path) -> Any:
    from subvene.specs import load_spec

    return load_spec(path)


def test_text_in_text_and_projections_out(steer: Path) -> None:
    m = IntervenedModel.from_spec(steer)
    vectors = chosen_vectors(m)
    prompts = ["hello world", "how are you"]
    options = {"max_new_tokens": 5, "do_sample": False}
    texts, told = generate_with_projections(m, prompts, vectors, **options)
    assert texts == m.generate(prompts, **options)
    assert set(told["read"]) == {"before", "after"}
    assert "generated tokens" in told["over"]
    for row in told["rows"]:
        (one,) = row
        assert (one["key"], one["layer"], one["tokens"]) == ("v", 1, 4)
        assert one["after"] - one["before"] == pytest.approx(3 * 4, abs=1e-4)
    assert generate_with_projections(m, [], vectors)[0] == []


@pytest.mark.slow
def test_live_equals_teacher_forced_on_a_real_model(smollm2: Any) -> None:
    from subvene.specs import InterventionSpec

    model, tokenizer = smollm2
    layer, width = 14, model.config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        v = torch.randn(width) * 2
    spec = InterventionSpec.model_validate(
        {
            "subvene": 1,
            "model": {"name": "smollm2"},
            "interventions": [
                {
                    "kind": "steering",
                    "layer": layer,
                    "vector": {"key": "v"},
                    "coefficient": 0.3,
                    "positions": "response",
                }
            ],
        }
    )
    m = IntervenedModel.from_spec(
        spec, model=model, tokenizer=tokenizer, tensors={f"v.block_output[{layer}]": v}
    )
    vectors = {"v": {layer: v, 20: v}}
    prompts = ["Say hello.", "Name two colours of the rainbow, and say which one you like more."]
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    batch = pad(rows, [len(row) for row in rows], pad_id_of(tokenizer), "left")
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": pad_id_of(tokenizer)}
    with LiveProjections(m, vectors, batch.attention_mask, **options) as live:
        output = m.generate_ids(batch.input_ids, batch.attention_mask, **options)
    found = live.of(output)
    texts = _generated(output, rows, [tokenizer.eos_token_id])
    forced = project(m, texts, vectors, edited=True)
    for at in (layer, 20):
        torch.testing.assert_close(found.before["v"][at], forced.before["v"][at], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(found.after["v"][at], forced.after["v"][at], atol=1e-4, rtol=1e-5)
    shift = found.after["v"][layer] - found.before["v"][layer]
    assert shift.tolist() == pytest.approx([0.3 * float(v.norm())] * 2, rel=1e-4)
