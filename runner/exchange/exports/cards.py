"""The model card of an export: what it is, how to load it, what was declared, what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import ModelCardData

from subvene.runner.artifacts.card import fenced, hub_id, with_front_matter
from subvene.runner.exchange.exports.measurement import Equivalence
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec, dump_spec

CARD = "README.md"
HERE = "this-folder"


def export_card(
    m: IntervenedModel,
    *,
    library: str,
    relation: Literal["finetune", "adapter"],
    title: str,
    about: str,
    load: str,
    tags: Sequence[str] = (),
    heading: str = "What was exported",
    language: str = "python",
) -> str:
    """Markdown with the Hub's front matter.

    Args:
        m: what is exported.
        library: the Hub's name of the library that loads it.
        relation: of the export to the model that it was made from.
        title: follows the model's name in the title.
        about: a paragraph on what it is.
        load: what loads it.
        tags: further tags.
        heading: stands above the spec.
        language: of `load`.
    """
    base = hub_id(m.spec.model.name)
    data = ModelCardData(
        library_name=library,
        base_model=base,
        base_model_relation=relation if base else None,
        pipeline_tag="text-generation",
        tags=[
            "subvene",
            "activation-steering",
            *tags,
            *dict.fromkeys(one.kind for one in m.spec.interventions),
        ],
    )
    places = [place for entry in m.intervenable.entries for place in entry.sites]
    parts = [
        f"# {m.spec.model.name} {title}",
        about,
        "## How to load it",
        fenced(load, language),
        f"## {heading}",
        fenced(dump_spec(own_spec(m.spec)), "yaml"),
        f"Sites: {', '.join(f'`{place}`' for place in places)}. Layers count from 0.",
    ]
    if m.provenance:
        told = json.dumps(dict(m.provenance), indent=2, sort_keys=True)
        parts += ["## Provenance", fenced(told, "json")]
    return with_front_matter(data, "\n\n".join(parts) + "\n")


def add_measurement(folder: Path, record: Equivalence) -> None:
    """Say in the folder's card what `equivalence.json` holds; a folder without a card gets none."""
    card = folder / CARD
    if not card.is_file():
        return
    consumer = record["consumer"]
    reader = " ".join(filter(None, (consumer["name"], consumer["version"])))
    lines = [
        f"On {len(record['prompts'])} texts of {record['tokens']} tokens together, in {record['dtype']}: the "
        f"largest difference between the logits of the intervened model and those of this export (in "
        f"{reader}) is {record['max_logit_difference']:.2g}; the interventions themselves change "
        f"them by up to {record['max_logit_effect']:.2g}. `equivalence.json` names the texts."
    ]
    if record["exactness"] == "approximate":
        lines.append(
            f"**This is an approximation.** Mean KL(intervened model ‖ export) per token: "
            f"{record['mean_kl']:.3g} nats; KL(intervened model ‖ untouched model) is "
            f"{record['mean_kl_untouched']:.3g}."
            + (" It is further off than no edit at all." if is_worse_than_nothing(record) else "")
        )
        lines += [f"- {line}" for line in record["approximations"]]
    text = card.read_text(encoding="utf-8").rstrip()
    card.write_text("\n\n".join([text, "## Equivalence", *lines]) + "\n", encoding="utf-8")


def is_worse_than_nothing(record: Equivalence) -> bool:
    """Whether an approximation is further from the intervened model than the untouched model is."""
    return bool(record["mean_kl"] >= record["mean_kl_untouched"])


def own_spec(spec: InterventionSpec) -> InterventionSpec:
    """The spec without what an experiment adds."""
    fields = {name: getattr(spec, name) for name in InterventionSpec.model_fields}
    return InterventionSpec.model_construct(**fields)
