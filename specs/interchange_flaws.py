"""What a file must be like that measures interchanges, and what interventions may name of a `das` fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from subvene.specs._flaws import Flaw, nearest, one_of
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.interventions import PyveneSpec
from subvene.specs.kinds import DASSpec, InterchangeSpec
from subvene.specs.positions import LastTokens, Positions, TokenIndices
from subvene.specs.sources import SourceRef, SourceSpec

if TYPE_CHECKING:
    from subvene.specs.recipes.das import PlaceSpec


def interchange_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what is wrong with what a file declares beside its interchanges."""
    keys = [recipe.key for recipe in spec.fits if isinstance(recipe, DASSpec)]
    for field in ("conditions", "seeds", "folds", "repeats"):
        if getattr(spec, field):
            expected = "nothing, since `interchange` measures the cells of one fit"
            yield Flaw((field,), expected, None, found=f"`{field}`")
    for i, evaluation in enumerate(spec.evaluate):
        if not isinstance(evaluation, InterchangeSpec):
            expected = "interchange, as other entries are (in a file of its own, this one is fine)"
            yield Flaw(("evaluate", i), expected, None, found=evaluation.kind)
        elif not keys:
            expected = "a `das` fit in `fit:`, whose cells are measured"
            yield Flaw(("evaluate", i), expected, None, found="none")
        elif evaluation.key is None and len(keys) > 1:
            yield Flaw(("evaluate", i, "key"), one_of(keys), None, "missing_field")
        elif evaluation.key is not None and evaluation.key not in keys:
            hint = nearest(evaluation.key, keys)
            yield Flaw(("evaluate", i, "key"), one_of(keys), evaluation.key, hint=hint)


def cell_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields interventions that are declared otherwise than the cell whose state they have."""
    for i, declared in enumerate(spec.interventions):
        if not isinstance(declared, PyveneSpec) or declared.state is None or declared.state.file is not None:
            continue
        for recipe in spec.fits:
            if not isinstance(recipe, DASSpec) or (cell := recipe.cell_of(declared.state.key)) is None:
                continue
            fields = recipe.declared | {"site": recipe.site, "layer": cell[0]}
            fields = {"low_rank_dimension": None, "subspaces": None, "subspace_partition": None} | fields
            for field, wanted in fields.items():
                given = getattr(declared, "class_name" if field == "class" else field)
                if given != wanted:
                    shown = "nothing" if wanted is None else repr(wanted)
                    expected = f"{shown}, as the cell {declared.state.key} was trained"
                    yield Flaw(("interventions", i, field), expected, given)
            as_trained = f", as the cell {declared.state.key} was trained"
            for loc, shown, given in _elsewhere(declared, recipe.places[cell[1]], recipe.site, cell[0]):
                yield Flaw(("interventions", i, *loc), f"{shown}{as_trained}", None, found=given)
            for loc, shown, found in _other_input(declared, recipe, spec.sources):
                yield Flaw(loc, f"{shown}{as_trained}", found)


def _elsewhere(
    declared: PyveneSpec, place: PlaceSpec, site: str, layer: int
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Where an intervention acts or reads otherwise than a cell: the field, what is wanted, what is there."""
    if _plain(declared.positions) != _plain(place.base):
        yield ("positions",), _in_words(place.base), _in_words(declared.positions)
    ref = declared.source
    if not isinstance(ref, SourceRef):
        yield ("source",), "a mapping with `from`, since a run is read", "a constant"
        return
    if ref.component is not None:
        yield ("source", "component"), "nothing", repr(ref.component)
    if (ref.site or site) != site:
        yield ("source", "site"), repr(site), repr(ref.site)
    if (layer if ref.layer is None else ref.layer) != layer:
        yield ("source", "layer"), str(layer), str(ref.layer)
    read = declared.positions if ref.positions is None else ref.positions
    if _plain(read) != _plain(place.source):
        yield ("source", "positions"), _in_words(place.source), _in_words(read)
    if ref.pair != place.pair:
        yield ("source", "pair"), repr(place.pair), repr(ref.pair)


def _other_input(
    declared: PyveneSpec, recipe: DASSpec, sources: Mapping[str, SourceSpec]
) -> Iterator[tuple[tuple[str, ...], str, object]]:
    """Where rows give an artifact another input than the cell's: the field, what is wanted, what is there."""
    if not isinstance(declared.source, SourceRef):
        return
    name = declared.source.origin
    read = sources.get(name)
    if read is None or read.column is None:
        return
    if read.column != recipe.data.source:
        yield ("sources", name, "column"), repr(recipe.data.source), read.column
    if read.chat not in (None, recipe.data.chat):
        yield ("sources", name, "chat"), str(recipe.data.chat).lower(), read.chat


def _plain(rule: Positions) -> Positions:
    """A rule, or another one that names the same tokens of every prompt."""
    if rule == "all":
        return "prompt"
    if rule in ("last_prompt_token", TokenIndices(indices=(-1,))):
        return LastTokens(last=1)
    return rule


def _in_words(rule: Positions) -> str:
    return repr(rule) if isinstance(rule, str) else json.dumps(rule.model_dump(exclude_defaults=True))
