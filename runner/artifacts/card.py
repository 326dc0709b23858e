"""The model card of an artifact: what it edits, how it was made, what was measured, how to load it.

A card is written when an artifact is saved and finished when it is pushed: only then is it known where it
will lie, and perhaps under which licence and with which measurements.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import HFValidationError, validate_repo_id
from yaml import YAMLError

from subvene.runner.artifacts.stock import reads_sources, why_not_stock
from subvene.runner.artifacts.vouchers import Fingerprint
from subvene.runner.edits.receipt import Receipt
from subvene.runner.files.json_value import Json
from subvene.runner.files.markdown import table
from subvene.runner.models.fingerprint import BlocksFingerprint, ModulesFingerprint
from subvene.specs import InterventionSpec, SubveneError, dump_spec
from subvene.specs.document import parse_document

HERE = "this-folder"
"""What a card calls its own place until it is pushed."""

MEASURED, LICENCE = "Measured", "Licence"
_HERE = rf'\1("{HERE}"'
_NO_LICENCE = (
    "None is stated: nobody gave one when this was written, so the Hub's front matter names none. "
    "The base model keeps its own."
)
_NOT_MEASURED = "Nothing that was measured came with this folder."
_USE = (
    "For research on what a language model's activations mean and on how edits of them change what it "
    "writes, with the base model named above. The edits change the model's behaviour, also where nobody "
    "looked: measure it on your own prompts, beside the untouched model (`with m.disabled(): …`), before you "
    "rely on it."
)


class CardError(SubveneError):
    """A model card that the Hub would refuse."""


def model_card(
    spec: InterventionSpec,
    fingerprint: Fingerprint,
    provenance: Mapping[str, Json],
    receipt: Receipt | None = None,
) -> str:
    """Markdown with the Hub's YAML front matter.

    Raises:
        CardError: the front matter does not say what was put into it.
    """
    kinds = list(dict.fromkeys(declared.kind for declared in spec.interventions))
    base, model = hub_id(spec.model.name), fingerprint["model"]
    data = ModelCardData(
        library_name="subvene",
        base_model=base,
        base_model_relation="adapter" if base else None,
        pipeline_tag=None if "modules" in model else "text-generation",
        tags=["pyvene", "activation-steering", *kinds],
    )
    parts = [
        f"# Interventions on {spec.model.name}",
        "Declared edits of the model's activations while it runs; its weights are not part of this folder.",
        "## What it does",
        fenced(dump_spec(spec), "yaml"),
        _made_for(model),
        "## Intended use",
        _USE,
        "## How to load it",
        _how_to_load(model),
        "`m.receipt` then says how many tokens each intervention edited.",
        *_stock(spec, fingerprint),
        f"## {MEASURED}",
        _NOT_MEASURED,
    ]
    if receipt is not None:
        parts += ["## Receipt of the last run before saving", _receipt_table(receipt)]
    # Tables of numbers stay in the tensor file's metadata: a card is read by people.
    provenance = {name: value for name, value in provenance.items() if not _is_table(value)}
    if provenance:
        parts += ["## Provenance", fenced(json.dumps(dict(provenance), indent=2, sort_keys=True), "json")]
    parts += [f"## {LICENCE}", _NO_LICENCE]
    return with_front_matter(data, "\n\n".join(parts) + "\n")


def finished(
    text: str,
    *,
    repo_id: str,
    licence: str | None = None,
    measured: str | None = None,
) -> str:
    """A card as it is pushed: it names its repository, and the licence and measurements where they are given.

    All else stays as it stands: people edit their cards.

    Args:
        text: the card as it was saved, and perhaps edited since.
        repo_id: where it goes.
        licence: a licence as the Hub names it (`apache-2.0`); None leaves what the card says.
        measured: tables of what was measured, Markdown; None leaves what the card says.

    Raises:
        CardError: the front matter is not valid.
    """
    try:
        _check_front_matter(text)
        card = ModelCard(text)
    except (ValueError, TypeError, YAMLError) as error:
        raise CardError(f"README.md: its front matter is not valid: {error}") from error
    data = cast(ModelCardData, card.data)
    # What was pulled from one repository may go to another.
    body = re.sub(r'(IntervenedModel\.from_pretrained|IntervenableModel\.load)\("[^"]*"', _HERE, card.text)
    body = body.replace(f'"{HERE}"', f'"{repo_id}"').lstrip("\n")
    if licence is not None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
            raise CardError(
                f"licence {licence!r}: expected one of the Hub's names for licences, such as apache-2.0, mit "
                "or cc-by-4.0 (https://huggingface.co/docs/hub/repositories-licenses)"
            )
        data.license = licence
        body = _with_section(body, LICENCE, f"{licence}, of this folder. The base model keeps its own.")
    if measured is not None:
        body = _with_section(body, MEASURED, measured)
    return with_front_matter(data, body)


def with_measured(text: str, table: str) -> str:
    """A card with tables of what was measured; all else stays as it stands."""
    return _with_section(text, MEASURED, table)


def _check_front_matter(text: str) -> None:
    """Read the front matter within bounds: the Hub's library expands whatever aliases stand for.

    Raises:
        SpecError: it is no plain mapping, or stands for more than any card holds.
    """
    if (block := REGEX_YAML_BLOCK.search(text)) is not None and block[2].strip():
        parse_document(block[2], "README.md")


def with_front_matter(data: ModelCardData, body: str) -> str:
    """The whole card, read back by the Hub's library to see that the front matter says what it should.

    Raises:
        CardError: it does not.
    """
    text = f"---\n{data.to_yaml()}\n---\n\n{body}"
    try:
        again = ModelCard(text).data.to_dict()
    except (ValueError, TypeError) as error:
        raise CardError(f"README.md: its front matter is not valid: {error}") from error
    if again != data.to_dict():
        raise CardError(f"README.md: its front matter reads back as {again}, expected {data.to_dict()}")
    return text


def hub_id(name: str) -> str | None:
    """The name, if the Hub could have it: its front matter links to no folder of ours."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if Path(name).is_dir() else name


def fenced(text: str, language: str) -> str:
    """A block of code that no line of backticks inside it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _with_section(body: str, title: str, text: str) -> str:
    """The body with this text below the heading `title`; at its end if there is no such heading."""
    section = f"## {title}\n\n{text.strip()}\n"
    found = re.search(rf"^## {re.escape(title)}[ ]*\n(?:(?!## ).*(?:\n|\Z))*", body, re.MULTILINE)
    if found is None:
        return f"{body.rstrip()}\n\n{section}"
    rest = body[found.end() :]
    return body[: found.start()] + section + (f"\n{rest}" if rest else "")


def _made_for(model: BlocksFingerprint | ModulesFingerprint) -> str:
    if "modules" in model:
        modules = "; ".join(
            f"`{path}`, a {what.partition(' ')[0]}" for path, what in model["modules"].items()
        )
        return (
            f"Made for {model['architecture']}, whose modules it names by their paths: {modules}. It edits "
            "the whole tensor that such a module takes (`.input`) or hands on (`.output`)."
        )
    return (
        f"Made for {model['architecture']}: {model['n_layers']} layers, width {model['width']}, "
        f"{model['n_heads']} heads of {model['head_dim']}. Layers and heads count from 0; "
        "`block_output[l]` is the output of block l."
    )


def _how_to_load(model: BlocksFingerprint | ModulesFingerprint) -> str:
    if "modules" in model:
        lines = f'm = IntervenedModel.from_pretrained("{HERE}", model=model)  # a {model["architecture"]}\n'
        lines += "output = m(**inputs)"
    else:
        lines = f'm = IntervenedModel.from_pretrained("{HERE}")\n'
        lines += 'print(m.generate(["Hello"], max_new_tokens=64)[0])'
    return fenced(f"from subvene.runner import IntervenedModel\n\n{lines}", "python")


def _stock(spec: InterventionSpec, fingerprint: Fingerprint) -> list[str]:
    if (reason := why_not_stock(spec, is_decoder="modules" not in fingerprint["model"])) is not None:
        return [f"Stock pyvene does not do what is declared here: {reason}. Load this folder with subvene."]
    if not fingerprint["stock_pyvene"]:
        return [
            f"Stock pyvene cannot rebuild interventions for {fingerprint['model']['architecture']}; load "
            "this folder with subvene."
        ]
    if "modules" in fingerprint["model"]:
        return [
            "Stock pyvene reloads it too, with subvene installed: "
            f'`pyvene.IntervenableModel.load("{HERE}", model)`. Then pass `unit_locations=None`; padding is '
            "not recognised there. It imports the classes that `config.json` names, so give it only folders "
            "of people you trust; subvene does not."
        ]
    revision = f', revision="{spec.model.revision}"' if spec.model.revision else ""
    if hub_id(spec.model.name):
        lines = [
            "import pyvene, transformers",
            "",
            f'model = transformers.AutoModelForCausalLM.from_pretrained("{spec.model.name}"{revision})',
        ]
    else:
        lines = [
            "import pyvene, subvene.runner",
            "",
            f'model, tokenizer = subvene.runner.load_model("{spec.model.name}")',
        ]
    lines.append(f'm = pyvene.IntervenableModel.load("{HERE}", model)')
    if reads_sources(spec):
        return [
            "Stock pyvene reloads it too, with subvene installed:",
            fenced("\n".join(lines), "python"),
            "There every call names what is declared here: `m(base, sources, {'sources->base': (read, "
            "edited)})`, with a source and a list of tokens for each intervention in the file's order, and "
            "of the tokens a list for each row. Without `sources` stock pyvene edits nothing, and says "
            "nothing of it. It imports the classes that `config.json` names, so give it only folders of "
            "people you trust; subvene does not.",
        ]
    return [
        "Stock pyvene reloads it too, with subvene installed:",
        fenced("\n".join(lines), "python"),
        "Then pass `unit_locations=None` and, in `generate`, `intervene_on_prompt=True`. Stock pyvene knows "
        "no positions: there the first call counts as the prompt, and padding is not recognised. It imports "
        "the classes that `config.json` names, so give it only folders of people you trust; subvene does "
        "not.",
    ]


def _receipt_table(receipt: Receipt) -> str:
    rows = []
    for r in receipt:
        sites = r.sites[0] if len(r.sites) == 1 else f"{len(r.sites)} sites"
        counts = [str(r.edited[role]) for role in ("prompt", "cursor", "response")]
        moved = "–" if r.mean_relative is None else f"{r.mean_relative:.3f}"
        rows.append([r.name, sites, str(r.positions), *counts, moved])
    head = ["intervention", "sites", "positions", "prompt", "cursor", "response", "mean ‖Δ‖/‖h‖"]
    return table(head, rows)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(row, list) for row in value)
