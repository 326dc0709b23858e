"""What recipes of one file must be like together, and where evaluations name what they give."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw, Loc, nearest, one_of
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import TraitScoresSpec
from subvene.specs.tensors import TensorRef


def fit_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields keys that two recipes give, and recipes that are made from what no earlier one gives."""
    several = isinstance(spec.fit, tuple)
    earlier: list[str] = []
    for i, recipe in enumerate(spec.fits):
        loc: Loc = ("fit", i) if several else ("fit",)
        for key in recipe.keys:
            if key in earlier:
                expected = f"a key that no other fit gives ({key!r} is taken)"
                yield Flaw((*loc, "key"), expected, key)
        if recipe.made_from is not None and recipe.made_from not in earlier:
            expected = (
                f"the key of an earlier fit: {one_of(earlier)}"
                if earlier
                else ("a fit before this one whose key `like` names (`fit` is then a list)")
            )
            hint = nearest(recipe.made_from, earlier)
            yield Flaw((*loc, "like"), expected, recipe.made_from, hint=hint)
        earlier += recipe.keys


def measured_refs(spec: ExperimentFields) -> Iterator[tuple[Loc, TensorRef]]:
    """Yields what evaluations read of stored tensors, with its place."""
    for i, evaluation in enumerate(spec.evaluate):
        if isinstance(evaluation, TraitScoresSpec) and evaluation.projection is not None:
            yield ("evaluate", i, "projection", "vector"), evaluation.projection.vector
