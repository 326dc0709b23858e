"""What an experiment that measures traits must be like."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw
from subvene.specs.evaluations import TraitEvaluation, TraitSweepSpec
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.interventions import SteeringSpec
from subvene.specs.recipes import PersonaSpec


def trait_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what is wrong with an experiment that measures traits, its other fields being valid."""
    if not spec.measures_traits:
        return
    steered = spec.steered_traits
    for i, declared in enumerate(spec.interventions if steered else ()):
        key = declared.vector.key if isinstance(declared, SteeringSpec) else None
        if key in steered and steered[key] != i:
            expected = f"another trait, since interventions[{steered[key]}] steers along this one"
            yield Flaw(("interventions", i, "vector", "key"), expected, key)
    kinds: set[str] = set()
    for i, evaluation in enumerate(spec.evaluate):
        if not isinstance(evaluation, TraitEvaluation):
            expected = "trait_sweep or trait_conditions, as other entries are (in a file of its own, "
            yield Flaw(("evaluate", i), f"{expected}this one is fine)", None, found=evaluation.kind)
        elif not isinstance(spec.fit, PersonaSpec):
            expected = "another evaluation, since this one needs `fit: {recipe: persona}`"
            yield Flaw(("evaluate", i), expected, None, found=evaluation.kind)
        elif not spec.steered_traits:
            expected = "an intervention of kind steering whose vector is one of the traits"
            yield Flaw(("interventions",), expected, None, found="none")
        elif evaluation.kind in kinds:
            expected = "one entry of this kind"
            yield Flaw(("evaluate", i), expected, None, found=f"a second {evaluation.kind}")
        elif isinstance(evaluation, TraitSweepSpec) and "trait_conditions" in kinds:
            expected = "trait_sweep before trait_conditions, which uses what it chooses"
            yield Flaw(("evaluate", i), expected, None, found="trait_sweep")
        kinds.add(evaluation.kind)
