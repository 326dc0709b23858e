"""Causal tracing of a fact: every cell is what a whole pass with plain hooks gives, on every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture
from tiny_fact import FACT, IDS, SWAPPED
from tracing_by_hand import patched_by_hand, states_by_hand

from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.measures.tracing import (
    Corrupted,
    FactTracer,
    corrupted,
    embedding_deviation,
    trial_patches,
    usable_way,
    window,
)
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import CausalTracingSpec
from subvene.specs.evaluations.causal_tracing import TracedSite

SITES = (
    TracedSite(site="block_output"),
    TracedSite(site="mlp_output", window=2),
    TracedSite(site="attention_output"),
)


def spec(**fields: Any) -> CausalTracingSpec:
    facts = {"facts": [{"prompt": "a b", "subject": "b", "answer": "c"}]}
    return CausalTracingSpec.model_validate({"facts": facts, **fields})


def model_of(name: str) -> Any:
    return next(one for one in ARCHITECTURES if one.name == name).shared()


@pytest.mark.parametrize("kind", ["noise", "swap"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_every_cell_is_a_whole_pass_with_plain_hooks(name: str, kind: str) -> None:
    model = model_of(name)
    draws = 2 if kind == "noise" else 1
    declared = spec(corruption={"kind": kind} | ({"draws": draws} if kind == "noise" else {}))
    corruption = corrupted(model, FACT, declared, deviation=0.3, seed=4)
    tracer = FactTracer(Anatomy.of(model), FACT, corruption, SITES)
    clean = states_by_hand(model, IDS, [site.site for site in SITES])
    ids = IDS if kind == "noise" else SWAPPED
    for site in SITES:
        traced = tracer.traced(site, range(2), "packed", floor=3, seed=0)
        for layer in range(2):
            for token in range(len(IDS)):
                layers = {1: [layer], 2: [n for n in (layer - 1, layer) if n >= 0]}[site.window]
                found = []
                for draw in range(draws):
                    noise = None if corruption.noise is None else corruption.noise[draw : draw + 1]
                    log_p = patched_by_hand(model, ids, clean, site.site, layers, [token], noise=noise)
                    found.append((float(log_p[20].exp()), float(log_p[20]), float(log_p[20] - log_p[21])))
                for metric, column in zip(traced.values, zip(*found, strict=True), strict=True):
                    expected = sum(column) / draws
                    assert traced.values[metric][layer][token] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=repr)
def test_the_way_that_is_chosen_gives_what_whole_passes_give(architecture: Architecture) -> None:
    model = architecture.shared()
    anatomy = Anatomy.of(model)
    tracer = FactTracer(anatomy, FACT, Corrupted(torch.tensor([SWAPPED])), SITES)
    way, note = usable_way(anatomy, tracer.base, tracer.clean, trial_patches(FACT, SITES, 2))
    assert (note is None) == (way == "packed")
    for site in SITES:
        found = tracer.traced(site, range(2), way, floor=1, seed=0)
        whole = tracer.traced(site, range(2), "whole", floor=1, seed=0)
        for metric, rows in whole.values.items():
            assert torch.tensor(found.values[metric]) == pytest.approx(torch.tensor(rows), abs=1e-5)
    if architecture.name in ("llama", "gpt2", "gpt_neox", "gemma", "qwen2", "qwen3"):
        assert way == "packed"
    if architecture.name in ("mistral", "gemma3", "gpt_neo"):  # windows of 4 tokens, and the fact has 6
        assert way == "restarted"


def test_before_the_subject_nothing_is_restored() -> None:
    model = model_of("llama")
    corruption = corrupted(model, FACT, spec(corruption={"kind": "noise", "draws": 2}), deviation=0.3, seed=4)
    tracer = FactTracer(Anatomy.of(model), FACT, corruption, SITES)
    read = tracer.read()
    traced = tracer.traced(SITES[0], range(2), "packed", floor=0, seed=0)
    assert traced.floor == ()
    for metric, rows in traced.values.items():
        assert [row[0] for row in rows] == pytest.approx([read.corrupted[metric]] * 2, abs=1e-7)
        # The last layer's state at the last token is all that the answer is read from.
        assert rows[-1][-1] == pytest.approx(read.clean[metric], abs=1e-6)
        assert sum(read.draws[metric]) / 2 == pytest.approx(read.corrupted[metric], abs=1e-6)
    logits = model(torch.tensor([IDS])).logits[0, -1]
    assert read.rank == int((logits > logits[20]).sum())
    assert read.predicted == int(logits.argmax())


def test_noise_is_of_the_fact_and_the_seed_alone() -> None:
    model = model_of("llama")
    declared = spec(corruption={"kind": "noise", "sigma": 2, "draws": 400})
    first, again, other = (corrupted(model, FACT, declared, 0.3, seed).noise for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first[:, :1].any()
    assert not first[:, 3:].any()
    assert float(first[:, 1:3].std()) == pytest.approx(0.6, rel=0.02)
    few = corrupted(model, FACT, spec(corruption={"kind": "noise", "sigma": 2, "draws": 3}), 0.3, 0).noise
    assert few is not None
    assert few.shape[0] == 3


def test_the_deviation_is_that_of_the_subjects_embeddings() -> None:
    model = model_of("gpt2")
    table = model.transformer.wte.weight
    assert embedding_deviation(model, [FACT, FACT]) == pytest.approx(
        float(table[[12, 13]].detach().std(correction=0)), abs=1e-7
    )


def test_the_floor_is_steps_of_the_same_length() -> None:
    model = model_of("llama")
    corruption = Corrupted(torch.tensor([SWAPPED]))
    tracer = FactTracer(Anatomy.of(model), FACT, corruption, SITES[:1])
    moved = tracer._elsewhere(("block_output", 0), torch.Generator().manual_seed(0))
    own, clean = (run.states["block_output", 0] for run in (tracer.base, tracer.clean))
    assert (moved - own).norm(dim=-1) == pytest.approx((clean - own).norm(dim=-1), abs=1e-5)
    cells = tracer.traced(SITES[0], range(2), "packed", floor=6, seed=0).floor
    assert len({(cell.layer, cell.token) for cell in cells}) == 6
    assert all(cell.token >= FACT.start for cell in cells)
    assert tracer.traced(SITES[0], range(2), "packed", floor=6, seed=0).floor == cells
    assert tracer.traced(SITES[0], range(2), "packed", floor=6, seed=1).floor != cells


def test_windows_are_those_of_the_published_code() -> None:
    assert window(20, 10, 48) == tuple(range(15, 25))
    assert window(0, 10, 48) == tuple(range(5))
    assert window(47, 10, 48) == tuple(range(42, 48))
    assert window(3, 1, 48) == (3,)
    assert window(3, 3, 48) == (2, 3, 4)


def test_numbers_that_are_not_finite_fail() -> None:
    model = next(one for one in ARCHITECTURES if one.name == "llama").fresh()
    model.lm_head.weight.data[20] = float("nan")
    tracer = FactTracer(Anatomy.of(model), FACT, Corrupted(torch.tensor([SWAPPED])), SITES)
    with pytest.raises(NotFiniteError, match="the answer's logits"):
        tracer.read()
    with pytest.raises(NotFiniteError, match="what block_output gives back"):
        tracer.traced(SITES[0], range(2), "packed", floor=1, seed=0)
