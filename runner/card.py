"""The model card of an artifact: what it edits, how it was made, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from subvene.runner.receipt import Receipt
from subvene.specs import InterventionSpec, dump_spec


def model_card(
    spec: InterventionSpec,
    fingerprint: Mapping[str, Any],
    provenance: Mapping[str, Any],
    receipt: Receipt | None = None,
) -> str:
    """Markdown with the Hub's YAML front matter."""
    kinds = list(dict.fromkeys(declared.kind for declared in spec.interventions))
    base = hub_id(spec.model.name)
    data = ModelCardData(
        library_name="subvene",
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag="text-generation",
        tags=["pyvene", "activation-steering", *kinds],
    )
    model = fingerprint["model"]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# Interventions on {spec.model.name}",
        "Declared edits of the model's activations while it runs; its weights are not part of this folder.",
        "## What it does",
        f"```yaml\n{dump_spec(spec)}```",
        f"Made for {model['architecture']}: {model['n_layers']} layers, width {model['width']}, "
        f"{model['n_heads']} heads of {model['head_dim']}. Layers and heads count from 0; "
        "`block_output[l]` is the output of block l.",
        "## How to load it",
        "```python\nfrom subvene.runner import IntervenedModel\n\n"
        'm = IntervenedModel.from_pretrained("this-folder")\n'
        'print(m.generate(["Hello"], max_new_tokens=64)[0])\n'
        "print(m.receipt[0].edited)   # tokens edited, by role\n```",
        _stock(fingerprint),
    ]
    if receipt is not None:
        parts += ["## Receipt of the last run before saving", _receipt_table(receipt)]
    # Tables of numbers stay in the tensor file's metadata: a card is read by people.
    provenance = {name: value for name, value in provenance.items() if not _is_table(value)}
    if provenance:
        parts += ["## Provenance", f"```json\n{json.dumps(dict(provenance), indent=2, sort_keys=True)}\n```"]
    return "\n\n".join(parts) + "\n"


def hub_id(name: str) -> str | None:
    """The name, if the Hub could have it: its front matter links to no folder of ours."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).is_dir() else name


def _stock(fingerprint: Mapping[str, Any]) -> str:
    if not fingerprint["stock_pyvene"]:
        return (
            f"Stock pyvene cannot rebuild interventions for {fingerprint['model']['architecture']}; load "
            "this folder with subvene."
        )
    return (
        "Stock pyvene reloads it too, with subvene installed: `pyvene.IntervenableModel.load(folder, "
        "model)`, then `unit_locations=None` and, in `generate`, `intervene_on_prompt=True`. Stock pyvene "
        "knows no positions: there the first call counts as the prompt, and padding is not recognised."
    )


def _receipt_table(receipt: Receipt) -> str:
    lines = [
        "| intervention | sites | positions | prompt | cursor | response | mean ‖Δ‖/‖h‖ |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in receipt:
        sites = r.sites[0] if len(r.sites) == 1 else f"{len(r.sites)} sites"
        counts = " | ".join(str(r.edited[role]) for role in ("prompt", "cursor", "response"))
        lines.append(f"| {r.name} | {sites} | {r.positions} | {counts} | {r.mean_relative:.3f} |")
    return "\n".join(lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(row, list) for row in value)
