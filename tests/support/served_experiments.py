"""An experiment of every measure that an engine does, and what it gives: held against transformers here."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from counting_judge import Counting
from small_experiments import TRAIT
from tiny_model import write_tiny_model
from tiny_questions import PRIMER, QUESTIONS, write_questions

from subvene.runner import IntervenedModel, Results
from subvene.runner.judges import Answer, Judgement

# vLLM's attention on the CPU takes no narrower heads than 32.
WIDTH = 64
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
}
TOKEN = 2e-4
"""Of a log-probability of one token, both sides in float32: they add up in another order."""
EXPERIMENT = """\
subvene: 1
model: {{name: {model}, dtype: float32}}
{engine}
interventions:
- {{kind: steering, name: other, layer: {layer}, vector: {{key: v, file: {tensors}}}, coefficient: 3,
   positions: {positions}}}
conditions:
- {{name: baseline, interventions: []}}
- {{name: steered, sweep: {{other.coefficient: [-4, 4]}}}}
{chosen}evaluate:
- {{kind: samples, prompts: [how are you, hello world], max_new_tokens: 6}}
{more}
"""
DEFAULTS = {"layer": 1, "more": "", "chosen": "", "positions": "response"}
SCORES = """\
- {kind: trait_scores, traits: [{name: early, file: early.json}], validation: 2,
   sampling: {max_new_tokens: 6, temperature: 0},
   projection: {vector: {key: v, file: TENSORS}, layer: 1}}
"""
CHOSEN = "- {name: chosen, sweep: {other.coefficient: [-4, 4]}, choose: {by: early_score}}\n"
SCORED = """\
- {kind: multiple_choice, limit: 3}
- {kind: likelihood, traits: [{name: early, file: early.json}], max_new_tokens: 5}
- {kind: refusals, limit: 2, max_new_tokens: 4}
- kind: contrast
  pairs:
    texts:
    - {prompt: are you glad, positive: very happy, negative: very gloomy}
    - {prompt: how is it, positive: good sun, negative: bad rain}
"""
ALL = f"""\
{SCORES}\
- {{kind: truthfulqa, data: {{file: questions.csv}}, preset: qa, primer: primer.txt, max_new_tokens: 5}}
{SCORED}"""


FITTED = """\
subvene: 1
model: {{name: {model}, dtype: float32}}
{engine}
fit:
- recipe: mean_difference
  key: glad
  site: {site}
  tokens: {tokens}
  pairs:
    texts:
    - {{prompt: are you glad, positive: very happy, negative: very gloomy}}
    - {{prompt: how is it, positive: good sun, negative: bad rain}}
- {{recipe: persona, traits: [{{name: early, file: early.json}}],
   sampling: {{max_new_tokens: 6, temperature: 0}},
   keep: {{positive: 0, negative: 100, coherence: 0, warn_below: 1}}}}
interventions:
- {{kind: steering, name: glad, site: {site}, layer: 1, vector: {{key: glad}}, coefficient: 4}}
- {{kind: steering, name: early, layer: 0, vector: {{key: early}}, coefficient: 2}}
conditions:
- {{name: baseline, interventions: []}}
- {{name: glad, interventions: [glad]}}
- {{name: early, interventions: [early], sweep: {{early.coefficient: [-2, 2]}}}}
evaluate:
- kind: trait_scores
  traits: [{{name: early, file: early.json}}]
  sampling: {{max_new_tokens: 6, temperature: 0}}
  projection: {{vector: {{key: early}}, layer: 1}}
"""
"""An experiment that fits: vectors of given texts, and of what the model answers."""


class Words(Counting):
    """Also says yes or no, by the same words."""

    def yes_no(self, answers: Sequence[Answer], aspect: Any) -> list[Judgement]:
        return [Judgement(0.9, True) if "a" < one.answer < "i" else Judgement(0.2, False) for one in answers]

    def accuracies(self) -> dict[str, None]:
        return {"truth": None, "info": None}


def hold(folder: Path, **sizes: Any) -> dict[str, Any]:
    """A model, an artifact that steers it, and one that acts later than answers go."""
    base = write_tiny_model(folder / "model", **SIZES | sizes)
    width = (SIZES | sizes)["hidden_size"]
    spec: dict[str, Any] = {
        "subvene": 1,
        "model": {"name": str(base), "dtype": "float32"},
        "interventions": [
            {"kind": "steering", "name": "glad", "layer": 1, "vector": {"key": "v"}, "coefficient": 1.0,
             "positions": "response"},
        ],
    }  # fmt: skip
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    tensors = {"v.block_output[1]": vector, "v.block_output[0]": vector}
    IntervenedModel.from_spec(spec, tensors=tensors).save_pretrained(folder / "cheerful")
    spec["interventions"][0]["positions"] = {"indices": [40], "of": "response"}
    IntervenedModel.from_spec(spec, tensors=tensors).save_pretrained(folder / "late")
    (file,) = (folder / "cheerful").glob("*.safetensors")
    return {
        "model": base,
        "tensors": file,
        "artifacts": {name: folder / name for name in ("cheerful", "late")},
    }


def write(folder: Path, held: dict[str, Any], engine: str = "", **fields: Any) -> Path:
    """Write the experiment and all that it reads."""
    (folder / "early.json").write_text(json.dumps(TRAIT))
    (folder / "primer.txt").write_text(PRIMER)
    write_questions(folder / "questions.csv", QUESTIONS)
    path = folder / f"{'served' if engine else 'here'}.yaml"
    text = EXPERIMENT.format(**{**held, **DEFAULTS, **fields}, engine=engine)
    path.write_text(text.replace("TENSORS", str(held["tensors"])))
    return path


def write_fitted(folder: Path, held: dict[str, Any], engine: str = "", **fields: str) -> Path:
    """Write an experiment that fits."""
    (folder / "early.json").write_text(json.dumps(TRAIT))
    path = folder / f"{'served' if engine else 'here'}-fitted.yaml"
    path.write_text(FITTED.format(model=held["model"], engine=engine, **fields))
    return path


def check(served: Results, here: Results) -> None:
    """Texts are alike, numbers within the tolerance, and receipts; no unit is shared."""
    assert [choice.chosen for choice in served.choices] == [choice.chosen for choice in here.choices]
    assert len({str(cell.items) for cell in here.conditions}) >= 3
    for theirs, own in zip(served.conditions, here.conditions, strict=True):
        assert (theirs.name, theirs.point, theirs.metrics.keys()) == (own.name, own.point, own.metrics.keys())
        for name, metric in own.metrics.items():
            assert theirs.metrics[name].mean == pytest.approx(metric.mean, abs=20 * TOKEN), name
        for one, other in zip(theirs.items, own.items, strict=True):
            assert (one.key, one.text, one.tokens) == (other.key, other.text, other.tokens)
            assert one.scores == pytest.approx(other.scores, abs=20 * TOKEN, nan_ok=True)
        by_engine = {name for name in own.units if not name.endswith(("_scores", "judgement"))}
        assert by_engine
        assert all(own.units[name] != theirs.units[name] for name in by_engine)
        assert theirs.receipts.keys() == own.receipts.keys()
        for name, receipts in own.receipts.items():
            same_receipts(name, theirs.receipts[name], receipts)


def same_receipts(measure: str, served: list[Any], here: list[Any]) -> None:
    """Alike but for calls, which are those of batches, and for rounding by their shapes."""
    if measure in ("multiple_choice", "multiple_choice_accuracy", "contrast", "refusals", "early_likelihood"):
        # Here what texts have in common is passed once and a batch has a receipt of its own.
        assert {one["name"] for one in served} == {one["name"] for one in here}, measure
        assert all(sum(one["edited"].values()) and one["rows_edited"] == one["rows"] for one in served), (
            served
        )
        return
    assert len(served) == len(here), (measure, served, here)
    for theirs, own in zip(served, here, strict=True):
        calls, own_calls = theirs.pop("calls"), own.pop("calls")
        assert calls is None or bool(calls) == bool(own_calls), (measure, calls, own_calls)
        for name in ("mean_relative", "max_relative"):
            value, expected = theirs.pop(name), own.pop(name)
            assert value is None or value == pytest.approx(expected, rel=1e-3), (measure, name)
        if measure == "generation":  # here a shared prefix is one row more
            assert theirs.pop("rows") <= own.pop("rows")
        assert theirs == own, (measure, theirs, own)
