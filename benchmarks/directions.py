"""Directions of all layers from 500 pairs of texts, at the last token, SmolLM2-135M-Instruct.

subvene's `mean_difference` against `steering-vectors` (the mean of the pairs' differences), and its `pca`
against `repeng` (`pca_diff`), from texts to directions; the directions must be the same. The rivals run in an
environment of their own (`make bench-peers`). Ratio: theirs / subvene.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from activations import ANSWERS, THINGS, VERBS
from harness import EMBEDDED, arguments, interleaved, report
from worker import worker

from subvene.runner import fit, load_model

PEERS = Path(__file__).parent.parent / ".venv-peers/bin/python"
# Of the largest number of a direction.
SAME = 1e-3


def texts(count: int) -> list[tuple[str, str]]:
    """Pairs of texts that begin alike, all different."""
    questions = [f"How do you {verb} {thing}?" for thing in THINGS for verb in VERBS]
    every = [
        (f"Q: {question} A: {one}", f"Q: {question} A: {other}")
        for one, other in combinations(ANSWERS, 2)
        for question in questions
    ]
    return every[:count]


def main() -> None:
    options = arguments(__doc__)
    pairs = texts(40 if options.quick else 500)
    model, tokenizer = load_model(EMBEDDED, dtype="float32")
    # Behind the last block repeng reads after the final norm, which is no block's output.
    layers = list(range(model.config.num_hidden_layers - 1))
    found: dict[str, Any] = {}

    def own(recipe: str, **fields: Any) -> None:
        found[recipe] = fit(
            recipe,
            model,
            tokenizer=tokenizer,
            pairs=pairs,
            layers=layers,
            layer=0,
            coefficient=1.0,
            positions="all",
            **fields,
        ).tensors

    arms = {
        "mean_difference": lambda: own("mean_difference", tokens="last"),
        "pca": lambda: own("pca", of="diff"),
    }
    rounds = options.rounds or (1 if options.quick else 3)
    for name, (peer, method) in {
        "mean_difference": ("steering-vectors", "mean"),
        "pca": ("repeng", "pca_diff"),
    }.items():
        job = {"model": model.config.name_or_path, "pairs": pairs, "layers": layers, "method": method}
        with worker(PEERS, "directions_worker.py", job) as theirs:
            both = {peer: lambda: found.update(peer=theirs()), "subvene": arms[name]}
            seconds = interleaved(both, "subvene", rounds, warm_up=False)
        off = max(
            float((torch.tensor(one) - found[name][f"{name}.block_output[{layer}]"]).abs().max())
            / float(torch.tensor(one).abs().max())
            for layer, one in found["peer"]["directions"].items()
        )
        if off > SAME:
            raise SystemExit(f"{peer}'s directions differ from {name}'s by {off:.2g}, more than {SAME}")
        notes = f"{len(pairs)} pairs, {len(layers)} layers, {found['peer']['version']}; equal to {off:.1g}"
        report(f"directions: {name} and {peer}", seconds, "subvene", notes=notes)


if __name__ == "__main__":
    main()
