"""Patching of a fact: effects are those of plain hooks, estimates are derivatives, and a sample is both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from tiny_fact import FACT, IDS, SWAPPED
from tracing_by_hand import patched_by_hand, states_by_hand

from subvene.runner.measures.patching import FactPatcher, grid_of
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.training.passes import frozen
from subvene.specs.evaluations.patching import PatchedSite

SITES = (
    PatchedSite(site="block_output"),
    PatchedSite(site="mlp_output", positions="all"),
    PatchedSite(site="attention_output"),
    PatchedSite(site="attention_heads", heads="all"),
    PatchedSite(site="attention_heads", heads=(3, 1), positions="all"),
)
NAMES = ["block_output", "mlp_output", "attention_output", "attention_heads"]


def model_of(name: str) -> Any:
    return next(one for one in ARCHITECTURES if one.name == name).shared()


def difference(log_p: torch.Tensor) -> float:
    return float(log_p[FACT.answer] - log_p[FACT.foil or 0])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_effects_are_those_of_plain_hooks(name: str, direction: Any) -> None:
    model = model_of(name)
    anatomy = Anatomy.of(model)
    patcher = FactPatcher(anatomy, FACT, SITES, "logit_difference")
    base, source = (SWAPPED, IDS) if direction == "denoising" else (IDS, SWAPPED)
    states, sign = states_by_hand(model, source, NAMES), 1 if direction == "denoising" else -1
    clean, other = patcher.read()
    untouched = other if direction == "denoising" else clean
    width = anatomy.sizes.head_dim
    for site in SITES:
        grid = grid_of(site, (1, 0), anatomy.sizes.n_heads, len(IDS))
        effects = torch.tensor(patcher.patched(grid, direction, "packed").effects).flatten()
        assert len(effects) == len(grid.patches)
        for patch, effect in zip(grid.patches, effects, strict=True):
            head = None if patch.heads is None else patch.heads[0]
            columns = slice(None) if head is None else slice(head * width, (head + 1) * width)
            log_p = patched_by_hand(
                model, base, states, patch.site, patch.layers, patch.tokens, columns=columns
            )
            assert float(effect) == pytest.approx(sign * (difference(log_p) - untouched), abs=1e-5)


def test_everything_patched_is_the_other_run() -> None:
    model = model_of("llama")
    patcher = FactPatcher(Anatomy.of(model), FACT, SITES[:1], "logit_difference")
    clean, other = patcher.read()
    grid = grid_of(PatchedSite(site="block_output", positions="all"), (0, 1), 4, len(IDS))
    for direction in ("denoising", "noising"):
        effects = patcher.patched(grid, direction, "packed").effects  # type: ignore[arg-type]
        assert torch.tensor(effects).flatten() == pytest.approx([clean - other] * 2, abs=1e-5)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_estimates_are_effects_of_small_steps(direction: Any) -> None:
    model = next(one for one in ARCHITECTURES if one.name == "gpt2").fresh().double()
    anatomy = Anatomy.of(model)
    with frozen(model):
        patcher = FactPatcher(anatomy, FACT, SITES, "logit_difference")
        base, source = patcher._runs(direction)
        small = 1e-3
        for place, state in source.states.items():
            source.states[place] = base.states[place] + small * (state - base.states[place])
        for site in SITES:
            grid = grid_of(site, (0, 1), anatomy.sizes.n_heads, len(IDS))
            found = patcher.attributed(grid, direction, "packed", sample=500, seed=0)
            assert len(found.sample) == sum(p.tokens[-1] >= FACT.start for p in grid.patches)
            for cell in found.sample:
                assert cell.estimate == found.effects[cell.layer][cell.head][cell.token]
                # Scores are float32, which is what the smallest effects are lost in.
                assert cell.estimate == pytest.approx(cell.effect, rel=0.05, abs=3e-6)
        assert all(p.grad is None for p in model.parameters())


def test_a_sample_is_of_the_seed_alone() -> None:
    model = model_of("llama")
    patcher = FactPatcher(Anatomy.of(model), FACT, SITES[:1], "log_probability")
    grid = grid_of(SITES[0], (0, 1), 4, len(IDS))
    first, again, other = (
        patcher.attributed(grid, "denoising", "packed", sample=4, seed=seed).sample for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert len(first) == 4
