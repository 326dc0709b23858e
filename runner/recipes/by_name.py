"""A fit that is asked for by a recipe's name and keywords, as the experiment spec that a file would hold."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from subvene.runner.models.loading import FETCHING
from subvene.specs import ExperimentSpec, ModelSpec, SubveneError, spec_of
from subvene.specs._flaws import nearest
from subvene.specs.interventions import REGISTRY as KINDS
from subvene.specs.pair_rows import given_pairs
from subvene.specs.pairs import PairColumns
from subvene.specs.recipes import REGISTRY as RECIPES_BY_NAME
from subvene.specs.recipes.base import BaseRecipe

_DECLARES = frozenset({"dataset", "file", "name", "prompts", "questions", "systems", "texts", "truthfulqa"})
"""What a mapping has that says where data is, and is not the data."""
_FILES = (".csv", ".json", ".jsonl", ".yaml", ".yml")
_GIVEN = {"file": "rows.jsonl"}
"""What stands where a file would, for rows that were handed over."""


@dataclass(frozen=True)
class Asked:
    """What a call asks for.

    Attributes:
        spec: as a file would declare it.
        data: rows that were handed over in place of a file; None: the spec says where they are.
        overrides: fields of the model reference.
    """

    spec: ExperimentSpec
    data: Any
    overrides: dict[str, Any]


def is_recipe(name: object) -> bool:
    """Whether this is a recipe's name, and not the path of a spec.

    Raises:
        SubveneError: it looks like a name, and there is no such recipe.
    """
    if not isinstance(name, str) or name in RECIPES_BY_NAME:
        return isinstance(name, str)
    if name.isidentifier() and not Path(name).exists():
        raise _unknown("fit", "recipe", name, RECIPES_BY_NAME)
    return False


def name_of(model: Any) -> str:
    """What a spec calls the model that was passed: its name, or where a loaded one came from."""
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if model is None:
        raise SubveneError("fit: pass the model: a Hub id, a folder, or a loaded model with its tokenizer")
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "given")


def asked(recipe: str, model: str, data: Any, fields: Mapping[str, Any]) -> Asked:
    """The spec of one recipe and one intervention that uses what it gives.

    Args:
        recipe: its name.
        model: what the spec calls the model.
        data: what is fitted on: rows, a path, a Hub dataset's id, or what a spec would say; None where it
            stands among the fields, under the recipe's own name for it.
        fields: of the recipe, of the intervention and of `model:`, by name; or `interventions`, a list of
            mappings as a file has them, with the `sources` that they name. `columns` says which columns of
            pairs are meant.

    Raises:
        SubveneError: no such field, or two ways of saying one thing.
        SpecError: a value is none that the field can have, or one is missing.
    """
    how = cast("type[BaseRecipe]", RECIPES_BY_NAME[recipe])
    fields = dict(fields)
    interventions = fields.pop("interventions", None)
    whole = {name: fields.pop(name) for name in ("report_to", "sources") if fields.get(name) is not None}
    edit = None if interventions is not None else _kind(recipe, fields.pop("kind", how.usual_intervention))
    if data is not None:
        if how.data_field is None or fields.get(how.data_field) is not None:
            raise SubveneError(f"fit({recipe!r}): data= and {how.data_field}= say the same; pass one of them")
        fields[how.data_field] = data
    fit, rows = _data(how, fields)
    parts = _shared_out(recipe, how, edit.fields if edit else frozenset(), fields)
    key = parts["fit"].setdefault("key", recipe) if "key" in how.model_fields else _first_trait(fit)
    if edit is not None:
        usual = how.usual_fields(parts["fit"]) if edit.kind == how.usual_intervention else {}
        entry = {"kind": edit.kind, "name": key, edit.reference: {"key": key}, **usual} | parts["edit"]
        interventions = _at_sites(entry, how, edit)
    declared = {
        "subvene": 1,
        "model": {"name": model},
        "fit": {"recipe": recipe} | parts["fit"] | fit,
        "interventions": interventions,
    } | whole
    spec = spec_of(declared, f"fit({recipe!r}, …)")
    if not isinstance(spec, ExperimentSpec):
        raise SubveneError(f"fit({recipe!r}): this declares no experiment")
    return Asked(spec, rows, parts["model"])


def _at_sites(entry: dict[str, Any], how: type[BaseRecipe], edit: _Kind) -> list[dict[str, Any]]:
    """The intervention at each site where what the recipe gives mostly acts; another kind at the first."""
    if "site" in entry or not how.usual_sites:
        return [entry]
    if edit.kind != how.usual_intervention:
        return [entry | {"site": how.usual_sites[0]}]
    return [entry | {"site": site, "name": f"{entry['name']}_{site}"} for site in how.usual_sites]


@dataclass(frozen=True)
class _Kind:
    """The kind that uses what a recipe gives: its name, the field that names the tensors, all its fields."""

    kind: str
    reference: str
    fields: Collection[str]


def _kind(recipe: str, name: str | None) -> _Kind:
    if name is None:
        raise SubveneError(f"fit({recipe!r}): pass interventions=[{{…}}], which use what it gives")
    if name not in KINDS:
        raise _unknown(f"fit({recipe!r})", "kind", name, KINDS)
    references = KINDS[name].ref_fields()
    if len(references) != 1:
        raise SubveneError(
            f"fit({recipe!r}): pass kind {name} in interventions=[{{…}}], with what it is made of"
        )
    return _Kind(name, references[0], KINDS[name].model_fields.keys())


def _unknown(where: str, what: str, name: object, known: Iterable[str]) -> SubveneError:
    known = list(known)
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"expected one of: {', '.join(known)}"
    return SubveneError(f"{where}: there is no {what} {name!r}; {hint}")


def _data(how: type[BaseRecipe], fields: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What the recipe's field says of the data, and the rows if they were handed over."""
    name = how.data_field
    value = None if name is None else fields.pop(name, None)
    columns = fields.pop("columns", None) if name == "pairs" and value is not None else None
    said = {} if columns is None else {"columns": columns}
    if name is None or value is None:
        return {}, None
    if how.dataset_field is None or (isinstance(value, Mapping) and value.keys() & _DECLARES):
        whole = [value] if name == "traits" and isinstance(value, str) else value
        return {name: {**value, **said} if said else whole}, None
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        is_file = text.lower().endswith(_FILES) or Path(text).expanduser().is_file()
        return {name: {"file" if is_file else how.dataset_field: text, **said}}, None
    if name == "pairs":
        return {
            name: given_pairs(value, columns=_pair_columns(columns)).model_dump(
                mode="json", exclude_none=True
            )
        }, None
    return ({name: _GIVEN} if how.model_fields[name].is_required() else {}), value


def _pair_columns(columns: Any) -> PairColumns | None:
    try:
        return None if columns is None else PairColumns.model_validate(columns)
    except ValueError as error:
        raise SubveneError(f"fit: columns: expected {PairColumns.expects}, found {columns!r}") from error


def _shared_out(
    recipe: str, how: type[BaseRecipe], of_the_edit: Collection[str], fields: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Each field where it belongs: the recipe's before the intervention's; `site` is both's."""
    owners = {
        "fit": how.model_fields.keys(),
        "edit": of_the_edit,
        "model": (ModelSpec.model_fields.keys() - {"name"}) | FETCHING,
    }
    parts: dict[str, dict[str, Any]] = {part: {} for part in owners}
    for name, value in fields.items():
        having = [part for part, names in owners.items() if name in names and name not in ("kind", "recipe")]
        if not having:
            known = sorted({known for names in owners.values() for known in names} - {"kind", "recipe"})
            raise _unknown(f"fit({recipe!r})", "field", name, known)
        for part in having if name == "site" else having[:1]:
            parts[part][name] = value
    return parts


def _first_trait(fit: Mapping[str, Any]) -> str:
    """The key of a recipe that gives one tensor for each of its traits."""
    first = (fit.get("traits") or ["trait"])[0]
    return str(first["name"] if isinstance(first, Mapping) else first)
