"""The two kinds of file: interventions on a model, and an experiment with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge, Le, MinLen
from pydantic import BeforeValidator, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from subvene.specs._base import SpecModel
from subvene.specs._fields import Seed, Seeds, Text
from subvene.specs._flaws import Expect, Flaw, Loc, one_of, refuse
from subvene.specs.composition import composition_flaws
from subvene.specs.conditions import ConditionSpec
from subvene.specs.evaluations import (
    AnyEvaluation,
    ConditionEvaluation,
    LocalizationSpec,
    TraitEvaluation,
    TraitSweepSpec,
    TruthfulQASpec,
)
from subvene.specs.interventions import AnyIntervention, SteeringSpec
from subvene.specs.localization_flaws import localization_flaws
from subvene.specs.model import ModelSpec
from subvene.specs.recipes import AnyRecipe, PersonaSpec
from subvene.specs.tensors import TensorRef
from subvene.specs.variants import condition_flaws

Folds = Annotated[int, Strict(), Ge(2), Le(100), Expect("an integer from 2 to 100")]

SOURCE_OF_TENSORS = "`file`, since this file has no `fit:`"


def _integer(value: object) -> object:
    if type(value) is not int:  # True and 1.0 equal 1, and a Literal asks no more than that
        raise PydanticCustomError("integer", "integer")
    return value


class InterventionSpec(SpecModel):
    """Which interventions act on which model."""

    expects: ClassVar[str] = "a mapping with `subvene`, `model` and `interventions`"

    subvene: Annotated[Literal[1], BeforeValidator(_integer), Expect("the format version 1")] = Field(
        description="Version of the file format."
    )
    model: ModelSpec = Field(description="The model whose activations are edited.")
    interventions: Annotated[
        tuple[AnyIntervention, ...], MinLen(1), Expect("a non-empty list of interventions")
    ] = Field(description="What is done, in this order; later interventions see what earlier ones did.")

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        first: dict[str, int] = {}
        flaws = []
        for i, intervention in enumerate(self.interventions):
            name = intervention.name
            if name is not None and first.setdefault(name, i) != i:
                expected = f"a name of its own (interventions[{first[name]}] has this one)"
                flaws.append(Flaw(("interventions", i, "name"), expected, name))
        if flaws:
            refuse("InterventionSpec", flaws)
        return self

    def tensor_refs(self) -> Iterator[tuple[Loc, TensorRef]]:
        """Yields every reference to stored tensors with its place, ``("interventions", 0, "vector")``."""
        for i, intervention in enumerate(self.interventions):
            for field, ref in intervention.tensor_refs():
                yield ("interventions", i, field), ref


class ExperimentSpec(InterventionSpec):
    """Interventions with what is done around them: where tensors come from, and what is measured."""

    fit: AnyRecipe | None = Field(
        default=None, description="How tensors without a `file` come about; left out: all of them are stored."
    )
    evaluate: tuple[AnyEvaluation, ...] = Field(default=(), description="What is measured, in this order.")
    conditions: tuple[ConditionSpec, ...] = Field(
        default=(),
        description="The arms that are compared; left out: the untouched model and the interventions as they "
        "stand.",
    )
    seed: Seed = Field(default=0, description="Seed of everything that is drawn at random.")
    seeds: Seeds | None = Field(
        default=None,
        description="Several seeds in place of `seed`, each a fit and a measurement.",
    )
    folds: Folds | None = Field(
        default=None,
        description="Number of folds of the questions: each fold is tested with a fit that saw only the "
        "others. A question's fold depends on its own text alone.",
    )
    output: Text | None = Field(
        default=None, description="Folder for the results, relative to the working directory."
    )

    @model_validator(mode="after")
    def _tensors_come_from_somewhere(self) -> Self:
        flaws = []
        for loc, ref in self.tensor_refs():
            if ref.file is not None:
                continue
            if self.fit is None:
                flaws.append(Flaw((*loc, "file"), SOURCE_OF_TENSORS, ref, "missing_field"))
            elif ref.key not in self.fit.keys:
                keys = one_of(self.fit.keys) if len(self.fit.keys) > 1 else f"'{self.fit.keys[0]}'"
                expected = f"{keys}, the key that `fit:` gives, or a `file` beside the key"
                flaws.append(Flaw((*loc, "key"), expected, ref.key))
        if flaws:
            refuse("ExperimentSpec", flaws)
        return self

    @property
    def compares_conditions(self) -> bool:
        """Whether this is a comparison of conditions, rather than a look at some coefficients of one fit."""
        return not self.asks_localization and any(
            isinstance(evaluation, ConditionEvaluation) for evaluation in self.evaluate
        )

    @property
    def asks_localization(self) -> bool:
        """Whether this asks if the heads that a heuristic finds are better places for edits than others."""
        return any(isinstance(evaluation, LocalizationSpec) for evaluation in self.evaluate)

    @property
    def measures_traits(self) -> bool:
        """Whether this is a persona experiment: traits are swept, or conditions compared for each of them."""
        return any(isinstance(evaluation, TraitEvaluation) for evaluation in self.evaluate)

    @property
    def steered_traits(self) -> dict[str, int]:
        """Trait of `fit: {recipe: persona}` → the place in `interventions` of what steers along it."""
        keys = self.fit.keys if isinstance(self.fit, PersonaSpec) else ()
        found: dict[str, int] = {}
        for i, declared in enumerate(self.interventions):
            if isinstance(declared, SteeringSpec) and declared.vector.file is None:
                found.setdefault(declared.vector.key, i)
        return {key: i for key, i in found.items() if key in keys}

    @model_validator(mode="after")
    def _traits_can_be_measured(self) -> Self:
        flaws: list[Flaw] = []
        steered = self.steered_traits if self.measures_traits else {}
        for i, declared in enumerate(self.interventions if steered else ()):
            key = declared.vector.key if isinstance(declared, SteeringSpec) else None
            if key in steered and steered[key] != i:
                expected = f"another trait, since interventions[{steered[key]}] steers along this one"
                flaws.append(Flaw(("interventions", i, "vector", "key"), expected, key))
        kinds: set[str] = set()
        for i, evaluation in enumerate(self.evaluate if self.measures_traits else ()):
            if not isinstance(evaluation, TraitEvaluation):
                expected = "trait_sweep or trait_conditions, as other entries are (in a file of its own, "
                flaws.append(
                    Flaw(("evaluate", i), f"{expected}this one is fine)", None, found=evaluation.kind)
                )
            elif not isinstance(self.fit, PersonaSpec):
                expected = "another evaluation, since this one needs `fit: {recipe: persona}`"
                flaws.append(Flaw(("evaluate", i), expected, None, found=evaluation.kind))
            elif not self.steered_traits:
                expected = "an intervention of kind steering whose vector is one of the traits"
                flaws.append(Flaw(("interventions",), expected, None, found="none"))
            elif evaluation.kind in kinds:
                expected = "one entry of this kind"
                flaws.append(Flaw(("evaluate", i), expected, None, found=f"a second {evaluation.kind}"))
            elif isinstance(evaluation, TraitSweepSpec) and "trait_conditions" in kinds:
                expected = "trait_sweep before trait_conditions, which uses what it chooses"
                flaws.append(Flaw(("evaluate", i), expected, None, found="trait_sweep"))
            kinds.add(evaluation.kind)
        if flaws:
            refuse("ExperimentSpec", flaws[:1])
        return self

    @model_validator(mode="after")
    def _conditions_can_be_compared(self) -> Self:
        flaws = list(self._flaws_of_a_comparison()) or list(composition_flaws(self))
        if not flaws and self.conditions:
            flaws = list(condition_flaws(self))
        if flaws:
            refuse("ExperimentSpec", flaws)
        return self

    def _flaws_of_a_comparison(self) -> Iterator[Flaw]:
        if self.seeds is not None and "seed" in self.model_fields_set:
            yield Flaw(("seeds",), "either `seed` or `seeds`", None, found="both")
        if self.asks_localization:
            yield from localization_flaws(self)
            return
        if not self.compares_conditions:
            for field in ("conditions", "seeds", "folds"):
                if getattr(self, field):
                    kinds = "truthfulqa or divergence"
                    expected = f"nothing, since no entry of `evaluate` compares conditions ({kinds})"
                    yield Flaw((field,), expected, None, found=f"`{field}`")
            return
        for i, evaluation in enumerate(self.evaluate):
            if not isinstance(evaluation, ConditionEvaluation):
                expected = (
                    "an evaluation that compares conditions, as other entries do (in a file of its own, "
                )
                yield Flaw(("evaluate", i), f"{expected}this one is fine)", None, found=evaluation.kind)
                continue
            for seed in evaluation.seeds or ():
                if seed not in self.all_seeds:
                    expected = f"seeds of the experiment: {', '.join(map(str, self.all_seeds))}"
                    yield Flaw(("evaluate", i, "seeds"), expected, evaluation.seeds)
                    break
        learns = self.fit is not None and self.fit.learns_from is not None
        if self.folds is not None and not learns:
            expected = "nothing, since no `fit:` learns from questions"
            yield Flaw(("folds",), expected, self.folds)
        chosen = [i for i, condition in enumerate(self.conditions) if condition.choose is not None]
        questions = any(isinstance(evaluation, TruthfulQASpec) for evaluation in self.evaluate)
        for i in chosen:
            if not questions or not learns:
                expected = (
                    "nothing, since it needs a `fit:` that learns from TruthfulQA and a truthfulqa evaluation"
                )
                yield Flaw(("conditions", i, "choose"), expected, None, found="choose")

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds: `seeds`, or the one `seed`."""
        return self.seeds if self.seeds is not None else (self.seed,)


OWN_FIELDS = tuple(name for name in ExperimentSpec.model_fields if name not in InterventionSpec.model_fields)
"""The top-level fields of which any one makes a file an experiment."""
