"""Runs in an environment with pyreft: its LoReFT with given parameters at the ends of a prompt, and a step.

The step is that of the mean negative log-likelihood of a completion: gradients through pyreft's own model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyreft
import torch
import transformers


def main(asked: Path, answered: Path) -> None:
    question = json.loads(asked.read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(question["model"], dtype=torch.float32).eval()
    width, rank = model.config.hidden_size, question["rank"]
    layers = [int(layer) for layer in question["parameters"]]
    config = pyreft.ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": rank,
                "intervention": pyreft.LoreftIntervention(
                    embed_dim=width, low_rank_dimension=rank, dtype=torch.float32
                ),
            }
            for layer in layers
        ]
    )
    reft = pyreft.get_reft_model(model, config)
    for layer, intervention in zip(layers, reft.interventions.values(), strict=True):
        parts = {name: torch.tensor(value) for name, value in question["parameters"][str(layer)].items()}
        intervention.load_state_dict(
            {"weight": parts["weight"], "bias": parts["bias"], "rotate_layer": parts["rotation"]}
        )
    ids, prompt = torch.tensor([question["ids"]]), question["prompt"]
    ends = [[[0, prompt - 1]]] * len(layers)

    def logits() -> Any:
        return reft({"input_ids": ids}, unit_locations={"sources->base": (None, ends)})[1].logits[0]

    found = logits()
    probabilities = found[prompt - 1 : -1].log_softmax(-1)
    (-probabilities[range(len(ids[0]) - prompt), ids[0, prompt:]].mean()).backward()
    gradients = {
        str(layer): {
            "weight": intervention.learned_source.weight.grad.tolist(),
            "bias": intervention.learned_source.bias.grad.tolist(),
        }
        for layer, intervention in zip(layers, reft.interventions.values(), strict=True)
    }
    answered.write_text(json.dumps({"logits": found.tolist(), "gradients": gradients}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
