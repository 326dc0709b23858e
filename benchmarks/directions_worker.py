"""The other libraries' side of `directions.py`, which runs it in their environment; it does nothing alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from worker import serve


def ready(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    import torch
    from repeng import ControlVector
    from repeng.extract import DatasetEntry
    from steering_vectors import train_steering_vector
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    layers, pairs = job["layers"], job["pairs"]

    def mean(_number: int) -> dict[str, Any]:
        vector = train_steering_vector(model, tokenizer, list(map(tuple, pairs)), layers=layers)
        return {"directions": {layer: vector.layer_activations[layer].tolist() for layer in layers}}

    def pca(_number: int) -> dict[str, Any]:
        entries = [DatasetEntry(positive, negative) for positive, negative in pairs]
        control = ControlVector.train(model, tokenizer, entries, hidden_layers=layers, method="pca_diff")
        return {"directions": {layer: control.directions[layer].tolist() for layer in layers}}

    name = "steering-vectors" if job["method"] == "mean" else "repeng"
    return {"version": f"{name} {version(name)}"}, mean if job["method"] == "mean" else pca


if __name__ == "__main__" and "--serve" in sys.argv:
    serve(ready)
