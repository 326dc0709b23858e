"""Artifacts of a tiny model, with every kind of intervention, and what alters them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import transformers
from artifact_to_spoil import rehash as rehash

from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec

WIDTH, HEADS, HEAD_DIM, LAYERS = 24, 4, 8, 3
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14]])
MASK = (IDS != 0).long()
LENGTHS = [3, 2]


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TENSORS = {
    "iti.attention_heads[0]": draw(HEADS, HEAD_DIM),
    "iti.attention_heads[0].sigma": draw(HEADS).abs(),
    "iti.attention_heads[2]": draw(HEADS, HEAD_DIM, seed=1),
    "sure.attention_heads[1]": draw(HEADS, HEAD_DIM, seed=10),
    "sure.attention_heads[1].probe_weight": draw(HEADS, HEAD_DIM, seed=11),
    "sure.attention_heads[1].probe_bias": draw(HEADS, seed=12),
    "v.block_output[1]": draw(WIDTH, seed=2),
    "edit.attention_heads[1].a": draw(2, 32, seed=3),
    "edit.attention_heads[1].b": draw(2, 32, seed=4),
    "refusal.block_output[0]": draw(WIDTH, seed=5),
    "cap.mlp_output[2]": draw(WIDTH, seed=6),
    "src.attention_output[1]": draw(WIDTH, seed=7),
    "src": draw(32, seed=8),
    "rot.mask": draw(WIDTH, seed=9),
    "rot.temperature": torch.tensor(0.5),
}


def ref(key: str) -> dict[str, str]:
    return {"file": "all.safetensors", "key": key}


EVERY_KIND: list[dict[str, Any]] = [
    {"kind": "head_direction", "directions": ref("iti"), "strength": 1.5, "positions": "response"},
    {
        "kind": "steering",
        "name": "persona",
        "layer": 1,
        "vector": ref("v"),
        "coefficient": [2.0, -1.0],
        "normalize": "unit",
        "positions": {"first": 2, "of": "response"},
    },
    {
        "kind": "low_rank_edit",
        "layer": 1,
        "write_heads": [3, 1],
        "read_heads": [0, 2],
        "rank": 2,
        "factors": ref("edit"),
        "strength": 0.5,
    },
    {"kind": "low_rank_edit", "layer": 2, "write_heads": [0], "rank": 3, "seed": 7},
    {"kind": "ablation", "layer": 0, "direction": ref("refusal"), "positions": "prompt"},
    {
        "kind": "capping",
        "site": "mlp_output",
        "layer": 2,
        "direction": ref("cap"),
        "max": 0.1,
        "min": -0.1,
        "positions": {"indices": [0, -1]},
    },
    {
        "kind": "pyvene",
        "class": "SigmoidMaskIntervention",
        "site": "attention_output",
        "layer": 1,
        "source": ref("src"),
        "state": ref("rot"),
        "strength": 0.25,
        "positions": {"last": 1},
    },
    {
        "kind": "pyvene",
        "class": "LowRankRotatedSpaceIntervention",
        "low_rank_dimension": 4,
        "component": "model.layers[0].mlp.act_fn.output",
        "source": ref("src"),
        "subspaces": [1, 2],
        "seed": 3,
    },
    {"kind": "pyvene", "class": "ZeroIntervention", "component": "model.layers[2].mlp.act_fn.output"},
    {"kind": "head_direction", "directions": ref("sure"), "strength": -2.0, "adaptive": "one_minus_p"},
]


def spec_of(*interventions: dict[str, Any], name: str = "user/tiny") -> InterventionSpec:
    return InterventionSpec(subvene=1, model={"name": name}, interventions=list(interventions))


STEERING = {"kind": "steering", "layer": 1, "vector": ref("v"), "coefficient": 3.0}


@torch.no_grad()
def logits(m: IntervenedModel) -> torch.Tensor:
    return m(IDS, MASK, prompt_lengths=LENGTHS).logits


def load(folder: Path, **changes: Any) -> IntervenedModel:
    return IntervenedModel.from_pretrained(folder, model=llama(**changes))


def alter_fingerprint(folder: Path, **model: Any) -> None:
    path = folder / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    fingerprint["model"] |= model
    path.write_text(json.dumps(fingerprint))


def alter_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "tensors.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)
    rehash(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}
