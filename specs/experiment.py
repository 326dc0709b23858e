"""The two kinds of file: interventions on a model, and an experiment with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import MinLen
from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from subvene.specs._base import SpecModel
from subvene.specs._fields import Seed, Text
from subvene.specs._flaws import Expect, Flaw, Loc, refuse
from subvene.specs.evaluations import AnyEvaluation
from subvene.specs.interventions import AnyIntervention
from subvene.specs.model import ModelSpec
from subvene.specs.recipes import AnyRecipe
from subvene.specs.tensors import TensorRef

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
    seed: Seed = Field(default=0, description="Seed of everything that is drawn at random.")
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
            elif ref.key != self.fit.key:
                expected = f"'{self.fit.key}', the key that `fit:` gives, or a `file` beside the key"
                flaws.append(Flaw((*loc, "key"), expected, ref.key))
        if flaws:
            refuse("ExperimentSpec", flaws)
        return self


OWN_FIELDS = tuple(name for name in ExperimentSpec.model_fields if name not in InterventionSpec.model_fields)
"""The top-level fields of which any one makes a file an experiment."""
