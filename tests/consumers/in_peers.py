"""Runs in an environment with repeng and steering-vectors: their directions, and logits with them added."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from repeng import ControlModel, ControlVector
from repeng.extract import DatasetEntry
from steering_vectors import train_steering_vector
from steering_vectors.aggregators import logistic_aggregator, mean_aggregator


def main(asked: Path, answered: Path) -> None:
    question = json.loads(asked.read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(question["model"], dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(question["model"])
    layers, pairs = question["layers"], question["pairs"]
    ids, at, coefficient = torch.tensor([question["ids"]]), question["layer"], question["coefficient"]
    found: dict[str, Any] = {}
    for name, aggregator in (("mean", mean_aggregator()), ("logistic", logistic_aggregator())):
        vector = train_steering_vector(
            model, tokenizer, list(map(tuple, pairs)), layers=layers, aggregator=aggregator
        )
        found[name] = {str(layer): vector.layer_activations[layer].tolist() for layer in layers}
        if name == "mean":
            vector.layer_activations = {at: vector.layer_activations[at]}
            with vector.apply(model, multiplier=coefficient), torch.no_grad():
                found["mean logits"] = model(ids).logits[0].tolist()
    entries = [DatasetEntry(positive, negative) for positive, negative in pairs]
    for method in ("pca_diff", "pca_center"):
        control = ControlVector.train(model, tokenizer, entries, hidden_layers=layers, method=method)
        found[method] = {str(layer): control.directions[layer].tolist() for layer in layers}
    controlled = ControlModel(model, [at])
    controlled.set_control(control, coefficient)
    with torch.no_grad():
        found["pca_center logits"] = controlled(ids).logits[0].tolist()
    answered.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
