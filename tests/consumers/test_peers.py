"""Directions and steered logits beside those of repeng and of steering-vectors, whose mean is that of CAA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contrast_by_hand import PAIRS
from tiny_model import write_tiny_model

from subvene.runner import fit

# repeng reads the last layer behind the final norm, which is no block's output.
LAYERS, AT, COEFFICIENT = [0, 1], 1, 2.5
PEERS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "mean": ("mean_difference", {"tokens": "last"}, "mean logits"),
    "logistic": ("logistic", {"tokens": "last"}, None),
    "pca_diff": ("pca", {"of": "diff"}, None),
    "pca_center": ("pca", {"of": "center"}, "pca_center logits"),
}
"""What a peer calls it → the recipe, its fields, and the logits with it."""


def test_directions_and_logits_are_theirs(
    ask: Callable[..., Any], consumer: Callable[[str], Path], tmp_path: Path
) -> None:
    consumer("peers")
    folder = write_tiny_model(tmp_path / "model")
    ids = [9, 14, 3, 20, 11]
    question = {"model": str(folder), "layers": LAYERS, "pairs": PAIRS, "ids": ids}
    found = ask("peers", "in_peers.py", question | {"layer": AT, "coefficient": COEFFICIENT})
    for name, (recipe, fields, logits) in PEERS.items():
        m = fit(
            recipe,
            str(folder),
            pairs=PAIRS,
            layer=AT,
            coefficient=COEFFICIENT,
            positions="all",
            dtype="float32",
            **fields,
        )
        for layer in LAYERS:
            own = m.tensors[f"{recipe}.block_output[{layer}]"]
            theirs = torch.tensor(found[name][str(layer)])
            assert float((own - theirs).abs().max()) < 1e-4 * float(theirs.abs().max()), (name, layer)
        if logits is not None:
            with torch.no_grad():
                own = m(torch.tensor([ids]), prompt_lengths=[len(ids)]).logits[0]
                with m.disabled():
                    plain = m(torch.tensor([ids]), prompt_lengths=[len(ids)]).logits[0]
            assert float((own - torch.tensor(found[logits])).abs().max()) < 1e-4, name
            assert float((own - plain).abs().max()) > 0.01, name
