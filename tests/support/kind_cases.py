"""What a test file of a kind gives to the tests of every kind: the edit, and its Δ written out by hand."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from subvene.interventions import ActivationIntervention, Sizes

# 4 heads of 8 on a width of 24: `hidden_size // num_attention_heads` would be wrong.
SIZES = Sizes(n_layers=3, width=24, n_heads=4, head_dim=8)
RESIDUAL, O_PROJ = "model.layers[1].output", "model.layers[1].self_attn.o_proj.input"

Delta = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A kind, where it acts on the tiny model, and its Δ in float64 written out by hand."""

    name: str
    component: str
    make: Callable[..., ActivationIntervention]
    delta: Delta

    def __repr__(self) -> str:
        return self.name


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cases_in(folder: Path) -> list[Case]:
    """The `CASES` of every test file in a folder."""
    found: list[Case] = []
    for path in sorted(folder.glob("test_*.py")):
        if "\nCASES = [" not in path.read_text("utf-8"):
            continue
        spec = importlib.util.spec_from_file_location(f"cases_of_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += module.CASES
    return found
