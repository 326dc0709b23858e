"""What a file must be like that measures interchanges, and what interventions may name of a `das` fit."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw, nearest, one_of
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.interventions import PyveneSpec
from subvene.specs.kinds import DASSpec, InterchangeSpec


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
