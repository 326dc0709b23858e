"""A sparse autoencoder of every architecture, drawn, and its arithmetic written out token by token."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from kind_cases import draw

ARCHITECTURES = ["standard", "jumprelu", "topk", "gated"]
Weights = dict[str, torch.Tensor]


def drawn(architecture: str, width: int, latents: int = 12, seed: int = 0) -> Weights:
    """The weights by SAELens' names."""
    weights = {
        "W_enc": draw(width, latents, seed=seed + 1) / width**0.5,
        "W_dec": draw(latents, width, seed=seed + 2) / width**0.5,
        "b_dec": draw(width, seed=seed + 3) / 5,
    }
    if architecture == "gated":
        return weights | {
            name: draw(latents, seed=seed + 4 + i) / 5 for i, name in enumerate(("b_gate", "b_mag", "r_mag"))
        }
    weights["b_enc"] = draw(latents, seed=seed + 4) / 5
    if architecture == "jumprelu":
        weights["threshold"] = draw(latents, seed=seed + 5).abs() / 3
    return weights


def config(architecture: str, weights: Weights, hook: str, **fields: Any) -> dict[str, Any]:
    """`cfg.json` as SAELens 6 writes it."""
    latents, width = weights["W_dec"].shape
    said: dict[str, Any] = {
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "tiny", "hook_name": hook},
        "architecture": architecture,
    }
    if architecture == "topk":
        said |= {"k": 4, "rescale_acts_by_decoder_norm": False}
    return said | fields


def write(folder: Path, said: dict[str, Any], weights: Weights) -> Path:
    """A folder as SAELens' `save_model` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(said), "utf-8")
    safetensors.torch.save_file(weights, folder / "sae_weights.safetensors")
    return folder


def changed_by_hand(
    said: dict[str, Any], weights: Weights, h: torch.Tensor, features: list[int], do: str, values: list[float]
) -> torch.Tensor:
    """decode(a') + (h − decode(a)) in float64, one token after the other."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    return torch.stack(
        [_of_token(said, w, row, features, do, values) for row in h.double().flatten(0, -2)]
    ).view_as(h)


def activations_by_hand(said: dict[str, Any], weights: Weights, row: torch.Tensor) -> torch.Tensor:
    """The activations of all latents at one token."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    return _encoded(said, w, row.double())


def _of_token(
    said: dict[str, Any], w: Weights, row: torch.Tensor, features: list[int], do: str, values: list[float]
) -> torch.Tensor:
    before = _encoded(said, w, row)
    after = before.clone()
    for feature, value in zip(features, values, strict=True):
        old = float(before[feature])
        after[feature] = {"add": old + value, "clamp": value, "scale": value * old, "ablate": 0.0}[do]
    return _decoded(said, w, after, row) + (row - _decoded(said, w, before, row))


def _encoded(said: dict[str, Any], w: Weights, row: torch.Tensor) -> torch.Tensor:
    x = row
    if said["normalize_activations"] == "layer_norm":
        x = (row - row.mean()) / ((row - row.mean()).std() + 1e-5)
    if said["normalize_activations"] == "constant_norm_rescale":
        x = row * math.sqrt(len(row)) / row.norm()
    if said["apply_b_dec_to_input"]:
        x = x - w["b_dec"]
    found = []
    for i in range(w["W_dec"].shape[0]):
        read = float(x @ w["W_enc"][:, i])
        if said["architecture"] == "gated":
            opened = read + float(w["b_gate"][i]) > 0
            magnitude = read * math.exp(float(w["r_mag"][i])) + float(w["b_mag"][i])
            found.append(max(magnitude, 0.0) if opened else 0.0)
            continue
        pre = read + float(w["b_enc"][i])
        if said["architecture"] == "topk" and said["rescale_acts_by_decoder_norm"]:
            pre *= float(w["W_dec"][i].norm())
        threshold = float(w["threshold"][i]) if said["architecture"] == "jumprelu" else -math.inf
        found.append((pre if said["architecture"] == "topk" else max(pre, 0.0)) if pre > threshold else 0.0)
    if said["architecture"] == "topk":
        highest = sorted(range(len(found)), key=lambda i: -found[i])[: said["k"]]
        found = [max(a, 0.0) if i in highest else 0.0 for i, a in enumerate(found)]
    return torch.tensor(found, dtype=torch.float64)


def _decoded(said: dict[str, Any], w: Weights, a: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    if said.get("rescale_acts_by_decoder_norm"):
        a = a / w["W_dec"].norm(dim=-1)
    out = a @ w["W_dec"] + w["b_dec"]
    if said["normalize_activations"] == "layer_norm":
        return out * row.std() + row.mean()
    if said["normalize_activations"] == "constant_norm_rescale":
        return out * row.norm() / math.sqrt(len(row))
    return out
