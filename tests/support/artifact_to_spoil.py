"""A small artifact to spoil, for the tests of safety, the properties and the fuzz target."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec

WIDTH, LAYERS = 16, 2


def tiny_llama() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=32,
            hidden_size=WIDTH,
            intermediate_size=16,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
        )
        return transformers.LlamaForCausalLM(config).eval()


def steered(
    tensors: dict[str, torch.Tensor] | None = None, model: Any = None, **fields: Any
) -> IntervenedModel:
    """A model steered along `v` at block 1, with `tensors` beside it."""
    declared = {"kind": "steering", "layer": 1, "vector": {"key": "v"}, "coefficient": 2.0}
    spec = InterventionSpec(subvene=1, model={"name": "user/tiny"}, interventions=[declared | fields])
    vector = torch.linspace(-1, 1, WIDTH)
    return IntervenedModel.from_spec(
        spec,
        model=tiny_llama() if model is None else model,
        tensors={"v.block_output[1]": vector} | (tensors or {}),
        provenance={"recipe": "by hand"},
    )


def rehash(folder: Path) -> None:
    """What somebody who alters an artifact on purpose does last."""
    path = folder / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    for name in fingerprint["sha256"]:
        if (folder / name).is_file():
            fingerprint["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(fingerprint))


def billion_laughs(levels: int = 40) -> str:
    """YAML of a few kilobytes that stands for 9**levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"
