"""An artifact that steers a tiny model, for what serves artifacts."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_model import WIDTH

from subvene.runner.intervened.model import IntervenedModel


def write_glad_artifact(base: Path, folder: Path) -> IntervenedModel:
    """Steering on the model in `base`, saved in `folder` and reloaded from there."""
    spec = {
        "subvene": 1,
        "model": {"name": str(base), "dtype": "float32"},
        "interventions": [
            {"kind": "steering", "name": "glad", "layer": 1, "vector": {"key": "v"}, "coefficient": 3.0,
             "positions": "response"},
        ],
    }  # fmt: skip
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    m = IntervenedModel.from_spec(spec, tensors={"v.block_output[1]": vector})
    m.save_pretrained(folder)
    return IntervenedModel.from_pretrained(folder, model=m.model, tokenizer=m.tokenizer)
