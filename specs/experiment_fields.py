"""What the two kinds of file hold: interventions on a model, and an experiment with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge, Le, MinLen
from pydantic import BeforeValidator, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

from subvene.specs._base import SpecModel
from subvene.specs._fields import Identifier, Seed, Seeds, Text
from subvene.specs._flaws import Expect, Flaw, Loc, Shaped, refuse
from subvene.specs.conditions import ConditionSpec
from subvene.specs.engine import Engine
from subvene.specs.evaluations import AnyEvaluation
from subvene.specs.interventions import AnyIntervention, SteeringSpec
from subvene.specs.interventions.pyvene import share_flaws
from subvene.specs.kinds import (
    InterchangeSpec,
    LocalizationSpec,
    PersonaSpec,
    TracingEvaluation,
    TraitEvaluation,
)
from subvene.specs.model import ModelSpec
from subvene.specs.recipes import AnyRecipe, BaseRecipe
from subvene.specs.sources import SourceSpec, source_flaws
from subvene.specs.tensors import TensorRef
from subvene.specs.trackers import ReportTo, Tracker, trackers_of

_FIT = "a mapping with `recipe`, or a non-empty list of such"

AnyFit = Annotated[
    AnyRecipe | Annotated[tuple[AnyRecipe, ...], MinLen(1), Expect(_FIT)],
    Shaped(lambda value: 1 if isinstance(value, list | tuple) else 0, _FIT),
]
"""One recipe, or several of which each gives its own keys."""
Folds = Annotated[int, Strict(), Ge(2), Le(100), Expect("an integer from 2 to 100")]
Repeats = Annotated[int, Strict(), Ge(2), Le(1000), Expect("an integer from 2 to 1000")]


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
    sources: dict[Identifier, SourceSpec] = Field(
        default_factory=dict,
        description="Named inputs, whose runs the interventions read from.",
    )
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

    @model_validator(mode="after")
    def _sources_are_read(self) -> Self:
        if flaws := [*source_flaws(self.sources, self.interventions), *share_flaws(self.interventions)]:
            refuse("InterventionSpec", flaws)
        return self

    def tensor_refs(self) -> Iterator[tuple[Loc, TensorRef]]:
        """Yields every reference to stored tensors with its place, ``("interventions", 0, "vector")``."""
        for i, intervention in enumerate(self.interventions):
            for field, ref in intervention.tensor_refs():
                yield ("interventions", i, field), ref
            for loc, ref in intervention.gate_refs():
                yield ("interventions", i, *loc), ref


class ExperimentFields(InterventionSpec):
    """The fields of an experiment, each valid by itself, and what follows from them."""

    interventions: tuple[AnyIntervention, ...] = Field(
        default=(),
        description="What is done, in this order; later interventions see what earlier ones did. Left out "
        "only where the model is measured as it is (`causal_tracing`, `patching`), or all cells of a fit are "
        "(`interchange`).",
    )
    fit: AnyFit | None = Field(
        default=None,
        description="How tensors without a `file` come about: a recipe, or a list of recipes that give "
        "different keys. Left out: all of them are stored.",
    )
    evaluate: tuple[AnyEvaluation, ...] = Field(default=(), description="What is measured, in this order.")
    conditions: tuple[ConditionSpec, ...] = Field(
        default=(),
        description="The arms that are compared; left out: the untouched model and the interventions as they "
        "stand.",
    )
    default_arms: bool = Field(
        default=True,
        strict=True,
        description="Where a condition has a `budget`: add what the file does not have of the untouched "
        "model, a system prompt alone (the first one of each trait of `trait_scores`), and a random "
        "direction at each budget.",
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
    repeats: Repeats | None = Field(
        default=None,
        description="So often the questions are dealt into folds, each time anew (repeated cross-fitting): "
        "every question is then tested with so many fits that learnt from other questions, where seeds that "
        "share folds are fits on the same ones. Results number folds on: fold i is fold i mod `folds` of "
        "repeat i // `folds`.",
    )
    engine: Engine | None = Field(
        default=None,
        description="What generates and scores; left out: transformers, in this process.",
    )
    report_to: ReportTo | None = Field(
        default=None,
        description="Trackers that are told the curves of what is trained, by step, and the measures of "
        "every condition and point of a sweep, as a run each: `tensorboard` (files under `tensorboard/` in "
        "the results' folder), `wandb`, `trackio`, `mlflow` (each where its own settings say).",
    )
    output: Text | None = Field(
        default=None, description="Folder for the results, relative to the working directory."
    )

    @property
    def trackers(self) -> tuple[Tracker, ...]:
        """The trackers of `report_to`; empty without any."""
        return trackers_of(self.report_to)

    @property
    def fits(self) -> tuple[BaseRecipe, ...]:
        """The recipes of `fit`, in the file's order; empty without any."""
        if self.fit is None:
            return ()
        return self.fit if isinstance(self.fit, tuple) else (self.fit,)

    def fits_for(self, keys: Iterable[str]) -> tuple[BaseRecipe, ...]:
        """The recipes that give some keys and what these are made from, in the file's order.

        A file's only recipe is always among them.
        """
        if len(self.fits) <= 1:
            return self.fits
        wanted = set(keys)
        for recipe in reversed(self.fits):
            if _is_wanted(recipe, wanted) and recipe.made_from is not None:
                wanted.add(recipe.made_from)
        return tuple(recipe for recipe in self.fits if _is_wanted(recipe, wanted))

    @property
    def fitted_keys(self) -> tuple[str, ...]:
        """The keys without a `file` that the interventions name."""
        return tuple(dict.fromkeys(ref.key for _, ref in self.tensor_refs() if ref.file is None))

    @property
    def compares_conditions(self) -> bool:
        """Whether this is a comparison of conditions, rather than a look at some coefficients of one fit."""
        return not self.asks_localization and any(evaluation.compares for evaluation in self.evaluate)

    @property
    def asks_localization(self) -> bool:
        """Whether this asks if the heads that a heuristic finds are better places for edits than others."""
        return any(isinstance(evaluation, LocalizationSpec) for evaluation in self.evaluate)

    @property
    def traces(self) -> bool:
        """Whether this puts states of the model into other runs of it, rather than edit it."""
        return any(isinstance(evaluation, TracingEvaluation) for evaluation in self.evaluate)

    @property
    def asks_interchange(self) -> bool:
        """Whether this measures what the subspaces of a `das` fit do when they are swapped."""
        return any(isinstance(evaluation, InterchangeSpec) for evaluation in self.evaluate)

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

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds: `seeds`, or the one `seed`."""
        return self.seeds if self.seeds is not None else (self.seed,)


def _is_wanted(recipe: BaseRecipe, keys: set[str]) -> bool:
    """Whether keys are those of a recipe, or of something that it gives under its own."""
    return bool(keys & set(recipe.keys)) or any(map(recipe.gives, keys))
