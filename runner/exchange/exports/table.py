"""Which kind of intervention goes into which format, from the formats' verdicts: docs/exports.md has it."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import TypeAdapter

from subvene.interventions import REGISTRY, ActivationIntervention, Sizes, TensorTable
from subvene.runner.exchange.exports import FORMATS, load_format
from subvene.runner.exchange.exports.base import judged
from subvene.specs import SITES, AnyIntervention

_ADAPTER: TypeAdapter[AnyIntervention] = TypeAdapter(AnyIntervention)
_HEADS: dict[str, Any] = {"kind": "head_direction", "directions": {"key": "heads"}, "strength": 1.0}
_STEER: dict[str, Any] = {"kind": "steering", "layer": 1, "vector": {"key": "v"}, "coefficient": 1.0}
_EDIT: dict[str, Any] = {"kind": "low_rank_edit", "factors": {"key": "edit"}}
_CAP: dict[str, Any] = {"kind": "capping", "layer": 1, "direction": {"key": "v"}, "max": 1.0}
_ABLATE: dict[str, Any] = {"kind": "ablation", "layer": 1, "direction": {"key": "v"}}
_PYVENE: dict[str, Any] = {"kind": "pyvene", "class": "ZeroIntervention", "site": "mlp_output", "layer": 1}

#: What is declared, in words, and an example of it. Positions are `all` where nothing is said.
EXAMPLES: dict[str, dict[str, Any]] = {
    "`steering` at `block_output`": _STEER,
    "`steering` at `block_output`, layer 0": _STEER | {"layer": 0},
    "`steering` at another site": _STEER | {"site": "attention_output"},
    "`steering`, other positions": _STEER | {"positions": "response"},
    "`steering`, positions from the response's end": _STEER | {"positions": {"last": 1, "of": "response"}},
    "`head_direction`": _HEADS,
    "`head_direction`, other positions": _HEADS | {"positions": "response"},
    "`head_direction`, `adaptive: one_minus_p`": _HEADS | {"adaptive": "one_minus_p"},
    "`low_rank_edit`": _EDIT,
    "`low_rank_edit`, other positions": _EDIT | {"positions": "response"},
    "`ablation` at `block_output`": _ABLATE,
    "`ablation` at `attention_heads`": _ABLATE | {"site": "attention_heads"},
    "`ablation` at `attention_output` or `mlp_output`": _ABLATE | {"site": "mlp_output"},
    "`capping`": _CAP,
    "`pyvene`": _PYVENE,
    "any kind, one strength per row": _STEER | {"coefficient": [1.0, 2.0]},
    "any kind, strength 0": _CAP | {"strength": 0.0},
}


def built(declared: AnyIntervention) -> list[ActivationIntervention]:
    """What an example becomes on a model of two layers, with tensors of ones."""
    sizes = Sizes(n_layers=2, width=4, n_heads=2, head_dim=2)
    tensors = {f"v.{site}[{layer}]": torch.ones(4) for site in SITES for layer in (0, 1)}
    heads, edit = "heads.attention_heads[1]", "edit.attention_heads[1]"
    tensors |= {heads: torch.ones(2, 2), f"{heads}.probe_weight": torch.ones(2, 2)}
    tensors |= {
        f"{heads}.probe_bias": torch.ones(2),
        f"{edit}.a": torch.ones(1, 4),
        f"{edit}.b": torch.ones(1, 4),
    }
    table = TensorTable(tensors, "the examples")
    return [edit for _, _, edit in REGISTRY[declared.kind].build(declared, table, sizes)]


def table() -> str:
    """Kind × format as Markdown: exact, approximate or refused."""
    formats = [load_format(name) for name in FORMATS]
    lines = [["declared", *FORMATS], ["---"] * (1 + len(formats))]
    for words, example in EXAMPLES.items():
        declared = _ADAPTER.validate_python(example)
        edits = built(declared)
        lines.append([words, *(judged(one, declared, edits).exactness for one in formats)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
