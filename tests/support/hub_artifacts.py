"""What tests of sharing share: a repository's name, specs, and what a folder holds."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_specs import STEER as STEER

from subvene.runner.intervened.model import IntervenedModel

NAME = "ann/glad"
TENSOR = "v.block_output[1]"
IDS = torch.tensor([[10, 11, 12, 13, 14]])
TWO = """\
interventions:
- {kind: steering, name: one, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3}
- {kind: steering, name: two, layer: 2, vector: {file: t.safetensors, key: w}, coefficient: 1}
"""


@torch.no_grad()
def logits(m: IntervenedModel) -> torch.Tensor:
    return m(IDS, prompt_lengths=[2]).logits


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()}
