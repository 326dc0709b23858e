"""Patches: every way to compute them gives what one whole pass a cell with plain hooks gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from tracing_by_hand import patched_by_hand, states_by_hand

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.kept import keep
from subvene.runner.passes.patches import WAYS, Patch, Patcher, PatchWay, why_not_packed
from subvene.specs import CORE_SITES

CLEAN, OTHER = (11, 12, 13, 14, 15, 16, 17), (11, 22, 23, 14, 15, 16, 17)
ROWS = 2
PATCHES = [
    Patch("block_output", (0,), (2,)),
    Patch("block_output", (1,), (6,)),
    Patch("block_output", (0,), (1, 5)),
    Patch("block_output", (0, 1), (3,)),
    Patch("mlp_output", (0,), (1,)),
    Patch("mlp_output", (0, 1), (2,)),
    Patch("mlp_output", (1,), (6,)),
    Patch("attention_output", (0,), (4,)),
    Patch("attention_output", (0, 1), (2, 6)),
    Patch("attention_heads", (0,), (1,), (3,)),
    Patch("attention_heads", (1,), tuple(range(7)), (0, 2)),
    Patch("attention_heads", (1,), (6,)),
]


def model_of(name: str) -> Any:
    return next(one for one in ARCHITECTURES if one.name == name).shared()


def noise(model: Any) -> torch.Tensor:
    """[rows, tokens, width]: on the tokens 1 and 2."""
    width = model.get_input_embeddings().weight.shape[1]
    drawn = torch.zeros(ROWS, len(CLEAN), width)
    drawn[:, 1:3] = torch.randn(ROWS, 2, width, generator=torch.Generator().manual_seed(5))
    return drawn


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_equal_to_whole_passes_with_plain_hooks(name: str, way: PatchWay) -> None:
    model = model_of(name)
    anatomy = Anatomy.of(model)
    added = noise(model)
    base = keep(anatomy, torch.tensor([CLEAN] * ROWS), CORE_SITES, added)
    clean = keep(anatomy, torch.tensor([CLEAN]), CORE_SITES)
    assert why_not_packed(model, base) is None
    patcher = Patcher(anatomy, base, clean.states, lambda logits: logits.double().log_softmax(-1), way)
    found = patcher.values(PATCHES)
    by_hand = states_by_hand(model, CLEAN, CORE_SITES)
    width = anatomy.sizes.head_dim
    for i, patch in enumerate(PATCHES):
        for row in range(ROWS):
            # Heads one after the other are the same as at once: they are columns of one tensor.
            columns = slice(None)
            source = by_hand
            if patch.heads is not None:
                own = states_by_hand(model, CLEAN, CORE_SITES, added[row : row + 1])
                source = {key: own[key].clone() for key in by_hand}
                for head in patch.heads:
                    part = slice(head * width, (head + 1) * width)
                    for layer in patch.layers:
                        place = (patch.site, layer)
                        source[place][:, part] = by_hand[place][:, part]
            expected = patched_by_hand(
                model,
                CLEAN,
                source,
                patch.site,
                patch.layers,
                patch.tokens,
                columns=columns,
                noise=added[row : row + 1],
            )
            assert (found[i, row] - expected).abs().max() < 1e-5, patch
    assert (found - patcher.base_values).abs().amax(-1).min() > 1e-3  # every patch does something


def test_states_that_are_there_change_nothing() -> None:
    model = model_of("llama")
    anatomy = Anatomy.of(model)
    base = keep(anatomy, torch.tensor([OTHER]), CORE_SITES)
    for way in WAYS:
        patcher = Patcher(anatomy, base, base.states, lambda logits: logits, way)
        assert torch.equal(patcher.values(PATCHES), patcher.base_values.expand(len(PATCHES), 1, -1))
        assert patcher.computed == 0


def test_only_what_a_patch_changes_is_computed() -> None:
    model = model_of("llama")
    anatomy = Anatomy.of(model)
    base = keep(anatomy, torch.tensor([OTHER]), CORE_SITES)
    clean = keep(anatomy, torch.tensor([CLEAN]), CORE_SITES)
    patches = [Patch("block_output", (0,), (token,)) for token in range(1, 7)]
    computed: dict[str, int] = {}
    for way in WAYS:
        patcher = Patcher(anatomy, base, clean.states, lambda logits: logits, way)
        patcher.values(patches)
        computed[way] = patcher.computed
    # One of two blocks; of each text, what follows the patched token and itself.
    assert computed == {"packed": 6 + 5 + 4 + 3 + 2 + 1, "restarted": 6 * 7, "whole": 6 * 7 * 2}


def test_nothing_is_left_on_the_model() -> None:
    model = model_of("gpt2")
    anatomy = Anatomy.of(model)

    def failing(logits: torch.Tensor) -> torch.Tensor:
        raise ValueError("no score")

    base = keep(anatomy, torch.tensor([OTHER]), CORE_SITES)
    clean = keep(anatomy, torch.tensor([CLEAN]), CORE_SITES)
    for way in WAYS:
        with pytest.raises(ValueError, match="no score"):
            Patcher(anatomy, base, clean.states, failing, way).values(PATCHES[:1])
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__
