"""What `subvene show` knows of a spec or an artifact, as plain values. Imports torch; loads no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from pydantic import JsonValue

from subvene.interventions import REGISTRY, Sizes, TensorTable, Tokens
from subvene.interventions._pyvene import pyvene
from subvene.interventions.positions import needs_length
from subvene.runner.artifacts.stock import why_not_stock
from subvene.runner.cli._source import Source, tokenised
from subvene.runner.cli._words import positions_in_words
from subvene.runner.edits.compile import NO_SIZES, check_sizes, entry_name, load_tensors, place
from subvene.runner.edits.gate_compile import gating_of
from subvene.runner.edits.order import Edits, PairOrder, pairs_of
from subvene.runner.edits.text_positions import places_of
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import sizes_from_config
from subvene.runner.models.fingerprint import ModelFingerprint
from subvene.runner.models.loading import load_config, load_tokenizer
from subvene.specs import (
    AnyIntervention,
    FieldTokens,
    InterventionSpec,
    LastOf,
    Positions,
    SubveneError,
    TensorRef,
)
from subvene.specs.positions import TEXT_POSITIONS


class StoredTensor(TypedDict):
    """Of a tensor of an intervention."""

    shape: list[int]
    norm: float


class Described(TypedDict):
    """Of one intervention; `problem` says why its tensors are not known."""

    name: str
    kind: str
    operation: str
    sites: list[str]
    positions: JsonValue
    positions_in_words: str
    strength: float | tuple[float, ...]
    settings: dict[str, JsonValue]
    tensors: dict[str, StoredTensor]
    problem: str | None


class Token(TypedDict):
    """A token of a prompt, and by which interventions it is edited."""

    id: int
    text: str
    role: str
    edited: dict[str, bool]


class PromptTokens(TypedDict):
    """A prompt and its tokens."""

    text: str
    tokens: list[Token]


class Description(TypedDict):
    """Everything: of the model what is known of its make, of each intervention, of the order of each pair."""

    what: str
    path: str
    model: str
    made_for: Mapping[str, Json] | ModelFingerprint | None
    model_problem: str | None
    interventions: list[Described]
    order: list[PairOrder]
    provenance: dict[str, JsonValue]
    stored_tensors: int | None
    stock_pyvene: bool | None
    stock_problem: str | None
    prompt: NotRequired[PromptTokens]


def describe(source: Source) -> Description:
    """Everything but the tokens of a prompt.

    Raises:
        CompileError: the spec names layers or heads that its model does not have.
    """
    spec, stored = source.spec, source.artifact
    sizes, made_for, listed, problem = _sizes(source)
    stock_problem = why_not_stock(spec, is_decoder="modules" not in (made_for or {}))
    if sizes is not None:
        check_sizes(spec, sizes)
    interventions: list[Described] = []
    edits = []
    for i, declared in enumerate(spec.interventions):
        built, trouble = _built(source, declared, sizes)
        edits.append(built)
        key = next((ref.key for _, ref in declared.tensor_refs()), entry_name(spec, i))
        interventions.append(
            {
                "name": entry_name(spec, i),
                "kind": declared.kind,
                "operation": (REGISTRY[declared.kind].__doc__ or "").partition("\n")[0].rstrip("."),
                "sites": list(built) or [_declared_place(declared)],
                "positions": declared.model_dump(mode="json")["positions"],
                "positions_in_words": positions_in_words(declared.positions),
                "strength": declared.strength,
                "settings": _settings(declared),
                "tensors": _tensors(key, built),
                "problem": trouble,
            }
        )
    return {
        "what": "artifact" if stored else "spec",
        "path": str(source.path),
        "model": spec.model.name,
        "made_for": made_for,
        "model_problem": problem,
        "interventions": interventions,
        "order": pairs_of(spec, edits),
        "provenance": stored.provenance if stored else {},
        "stored_tensors": len(stored.tensors) if stored else None,
        "stock_pyvene": listed and stock_problem is None if spec.interventions else None,
        "stock_problem": stock_problem,
    }


def edited_tokens(spec: InterventionSpec, prompt: str, *, system: str | None, raw: bool) -> PromptTokens:
    """The tokens of a prompt, and which of them each intervention edits. Loads the tokenizer alone."""
    tokenizer = load_tokenizer(spec.model)
    ids = tokenised(tokenizer, prompt, system=system, raw=raw)
    index = torch.arange(len(ids)).unsqueeze(0)
    tokens = Tokens(index, torch.ones_like(index, dtype=torch.bool), torch.tensor([len(ids)]))
    edited = {}
    for i, declared in enumerate(spec.interventions):
        # What counts from the end of the response is decided there, and touches no prompt token.
        rule = declared.positions
        edited[entry_name(spec, i)] = _mask(rule, tokens, ids, tokenizer)
    return {
        "text": prompt,
        "tokens": [
            {
                "id": token,
                "text": str(tokenizer.decode([token])),
                "role": "cursor" if i == len(ids) - 1 else "prompt",
                "edited": {name: mask[i] for name, mask in edited.items()},
            }
            for i, token in enumerate(ids)
        ],
    }


def _mask(rule: Positions, tokens: Tokens, ids: list[int], tokenizer: Any) -> list[bool]:
    """The prompt's tokens that a rule selects; none where the end of a response or a row's data decide."""
    needs_data = isinstance(rule, FieldTokens) or (
        isinstance(rule, LastOf) and isinstance(rule.text, FieldTokens)
    )
    if needs_length(rule) or needs_data:
        return [False] * len(ids)
    if isinstance(rule, TEXT_POSITIONS):
        found = places_of(rule, tokenizer, ids, None, "the prompt")
        return [i in found for i in range(len(ids))]
    return list(tokens.mask(rule)[0].tolist())


def _sizes(
    source: Source,
) -> tuple[Sizes | None, Mapping[str, Json] | ModelFingerprint | None, bool | None, str | None]:
    """Sizes, the same as a mapping, whether stock pyvene lists the model, and why none of this is known."""
    if source.artifact:
        made_for = source.artifact.fingerprint
        return source.artifact.sizes, made_for["model"], made_for["stock_pyvene"], None
    try:
        config = load_config(source.spec.model)
        sizes = sizes_from_config(config)
    except SubveneError as error:
        return None, None, None, str(error)
    architecture = next(iter(config.architectures or ()), None)
    listed = {cls.__name__ for cls in pyvene.models.intervenable_modelcard.type_to_dimension_mapping}
    stock = architecture in listed and hasattr(config, "hidden_size")
    return sizes, {"architecture": architecture, **vars(sizes)}, stock, None


def _built(source: Source, declared: AnyIntervention, sizes: Sizes | None) -> tuple[Edits, str | None]:
    """The edits of one entry by place; or none, and why."""
    if sizes is None and declared.module_path is not None:
        sizes = NO_SIZES
    if sizes is None:
        return {}, "not looked at, since the model's sizes are not known"
    refs, of_gate = ([ref for _, ref in found] for found in (declared.tensor_refs(), declared.gate_refs()))
    missing = [ref.key for ref in (*refs, *of_gate) if ref.file is None and not source.artifact]
    if missing:
        return {}, f"{missing[0]} is not fitted yet"
    try:
        built = REGISTRY[declared.kind].build(declared, _table(source, refs), sizes)
        places = [(site, layer) for site, layer, _ in built]
        gating = gating_of(declared, _table(source, of_gate), sizes, places, None)
        for _, _, edit in built:
            edit.gating = gating
    except SubveneError as error:
        return {}, str(error)
    return {place(site, layer): edit for site, layer, edit in built}, None


def _table(source: Source, refs: Sequence[TensorRef]) -> TensorTable:
    """The tensors that some references name, those of the artifact among them."""
    tensors: dict[str, torch.Tensor] = dict(source.artifact.tensors) if source.artifact else {}
    for ref in refs:
        if ref.file is not None:
            tensors |= load_tensors(source.folder / ref.file)
    origin = next((str(source.folder / ref.file) for ref in refs if ref.file), str(source.path))
    return TensorTable(tensors, origin)


def _tensors(key: str, built: Edits) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for where, edit in built.items():
        site, _, layer = where.rpartition("[")
        is_site = layer.rstrip("]").isdigit() and where.endswith("]")
        stored = edit.stored(key, site, int(layer[:-1])) if is_site else edit.stored(key, where, None)
        for name, tensor in stored.items():
            found[name] = {"shape": list(tensor.shape), "norm": float(tensor.detach().float().norm())}
    return found


_COMMON = ("kind", "name", "site", "layer", "component", "positions", "strength", "coefficient")


def _settings(declared: AnyIntervention) -> dict[str, JsonValue]:
    """What only this kind has (heads, rank, bounds, …), as far as it is not left at its default."""
    left_out = {*_COMMON, *(field for field, _ in declared.tensor_refs())}
    settings = declared.model_dump(mode="json", exclude_defaults=True, exclude=left_out, by_alias=True)
    if declared.when is not None:
        # Its `measure` is a default, and says what it is.
        settings["when"] = declared.when.model_dump(mode="json", exclude_none=True, by_alias=True)
    return settings


def _declared_place(declared: AnyIntervention) -> str:
    site = declared.site or declared.module_path or ""
    if site == "" and (component := getattr(declared, "component", None)):
        site = component  # pyvene's name of a part of a block
    by_layer = getattr(declared, "heads", None)
    layers = list(by_layer) if isinstance(by_layer, dict) else [getattr(declared, "layer", None)]
    return ", ".join(place(site, layer) for layer in layers)
