"""Distributed alignment search: rotations whose interchange makes a model go on as a source says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Gt, MinLen
from pydantic import AllowInfNan, Field, Strict, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import AllOrIndices, Count, Identifier, Seed
from subvene.specs._flaws import Expect, Flaw, Shaped, refuse
from subvene.specs.counterfactuals import CounterfactualsSpec, GroupSplitSpec
from subvene.specs.positions import Positions
from subvene.specs.recipes.base import OneKeyRecipe
from subvene.specs.recipes.localized_edit import NotNegative, Positive, Share
from subvene.specs.sites import CoreSite
from subvene.specs.sources import IN_ORDER, Pair, is_in_order, is_of_prompt

RotatedClass = Literal[
    "LowRankRotatedSpaceIntervention",
    "RotatedSpaceIntervention",
    "BoundlessRotatedSpaceIntervention",
    "SigmoidMaskRotatedSpaceIntervention",
]
RANKED = frozenset({"LowRankRotatedSpaceIntervention", "RotatedSpaceIntervention"})
"""Classes that swap as many rotated dimensions as they are told; the others learn how many."""
MASKED = frozenset({"BoundlessRotatedSpaceIntervention", "SigmoidMaskRotatedSpaceIntervention"})
"""Classes whose mask has a temperature."""
Temperature = Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a finite number above 0")]


class PlaceSpec(SpecModel):
    """Where a state is put in the base, and where it is read in the source."""

    expects: ClassVar[str] = "a rule for positions, or a mapping with `base` and `source`"

    base: Positions = Field(description="The tokens of the base that are edited.")
    source: Positions = Field(description="The tokens of the source that are read.")
    pair: Pair = Field(
        default="equal",
        description="How tokens of the two are paired, as in an intervention's `source`.",
    )

    @model_validator(mode="after")
    def _of_prompts(self) -> Self:
        flaws = [
            Flaw((name,), "tokens of a prompt, since base and source are prompts", getattr(self, name))
            for name in ("base", "source")
            if not is_of_prompt(getattr(self, name))
        ]
        if self.pair != "broadcast" and self.base != self.source:
            flaws += [
                Flaw((name,), IN_ORDER, getattr(self, name))
                for name in ("base", "source")
                if not is_in_order(getattr(self, name))
            ]
        if flaws:
            refuse("PlaceSpec", flaws)
        return self


def _place_shape(value: object) -> int:
    if isinstance(value, PlaceSpec):
        return 1
    return int(isinstance(value, Mapping) and bool({"base", "source", "pair"} & value.keys()))


_RULE = "a rule for positions, or a mapping with `base` and `source`"
Place = Annotated[Positions | PlaceSpec, Shaped(_place_shape, _RULE)]


class TemperatureSpec(SpecModel):
    """How soft a mask is while it is trained: a straight line over the steps."""

    expects: ClassVar[str] = "a mapping with `first` and `last`"

    first: Temperature = Field(default=50.0, description="Temperature of the first step.")
    last: Temperature = Field(
        default=0.1, description="Temperature of the last step, which the artifact has."
    )


class DASSpec(OneKeyRecipe):
    """Distributed alignment search (Geiger et al., 2024): rotations trained on counterfactual data."""

    also_called: ClassVar[dict[str, str]] = {
        "lr": "learning_rate",
        "class_name": "class",
        "low_rank_dimension": "rank",
        "dimensions": "rank",
    }
    immaterial: ClassVar[frozenset[str]] = frozenset({"pass_tokens"})
    trains: ClassVar[bool] = True

    methods: ClassVar[Mapping[str, str]] = {
        "distributed alignment search (DAS)": "Geiger et al. 2024, arXiv:2303.02536",
    }
    data_field: ClassVar[str | None] = "data"

    recipe: Literal["das"] = Field(default="das", description="Distributed alignment search.")
    data: CounterfactualsSpec = Field(description="Bases, sources and labels.")
    split: GroupSplitSpec = Field(description="Which rows are held out of training.")
    known: bool = Field(
        default=True,
        description="Leave out rows whose texts the model itself does not go on with as the data say "
        "(`base_label` and `source_label`, where a row has them; the likeliest of all answers of the data); "
        "they are counted.",
    )
    class_name: RotatedClass = Field(
        default="LowRankRotatedSpaceIntervention",
        validation_alias="class",
        serialization_alias="class",
        description="The class of pyvene's that is trained.",
    )
    rank: Count | None = Field(
        default=None,
        description="How many rotated dimensions are swapped: `low_rank_dimension` of the low-rank class, "
        "the first so many `subspaces` of the whole rotation. Left out: 1. The classes with a mask learn "
        "which ones.",
    )
    site: CoreSite = Field(default="block_output", description="Where states are swapped.")
    layers: AllOrIndices = Field(default="all", description="0-based layers: `all`, or a list.")
    positions: Annotated[
        dict[Identifier, Place], MinLen(1), Expect("a non-empty mapping from names to rules for positions")
    ] = Field(
        description="Name → the tokens whose states are swapped, one place after the other; a rule for base "
        "and source, or one for each."
    )
    learning_rate: Positive = Field(default=1e-3, description="Highest learning rate of rotations.")
    mask_learning_rate: Positive = Field(
        default=1e-2, description="That of the boundary or the mask of the classes with one."
    )
    boundary_weight: NotNegative = Field(
        default=1.0,
        description="What is added to the boundless class' loss for a boundary at the full width.",
    )
    warmup: Share = Field(
        default=0.1, description="Share of the steps over which the rate rises from 0; then it falls to 0."
    )
    epochs: Count = Field(default=3, description="How often the training rows are gone through.")
    batch_size: Count = Field(default=16, description="Rows per optimizer step.")
    temperature: TemperatureSpec | None = Field(
        default=None,
        description="The temperature of a mask over the steps; for the two classes with one. Left out: from "
        "50 to 0.1.",
    )
    pass_tokens: Count | None = Field(
        default=None,
        description="Most tokens of a forward pass, padding included. Left out: 4096 on a CPU, 16384 "
        "elsewhere.",
    )
    seed: Seed | None = Field(
        default=None,
        description="Of the first rotations, the order of the rows and the held-out values; left out: the "
        "experiment's.",
    )

    @model_validator(mode="after")
    def _of_its_class(self) -> Self:
        flaws = []
        if self.rank is not None and self.class_name not in RANKED:
            expected = f"no rank: {self.class_name} learns how many dimensions it swaps"
            flaws.append(Flaw(("rank",), expected, self.rank))
        if self.temperature is not None and self.class_name not in MASKED:
            flaws.append(
                Flaw(("temperature",), f"no temperature: {self.class_name} has no mask", self.temperature)
            )
        for name, place in self.positions.items():
            if not isinstance(place, PlaceSpec) and not is_of_prompt(place):
                expected = "tokens of a prompt, since base and source are prompts"
                flaws.append(Flaw(("positions", name), expected, place))
        if flaws:
            refuse("DASSpec", flaws)
        return self

    def own_seed(self, experiment: int) -> int:
        """Returns the seed that is used: its own if it has one, or the experiment's."""
        return experiment if self.seed is None else self.seed

    @property
    def places(self) -> dict[str, PlaceSpec]:
        """The places, each with both its rules."""
        return {
            name: place if isinstance(place, PlaceSpec) else PlaceSpec(base=place, source=place)
            for name, place in self.positions.items()
        }

    @property
    def swapped(self) -> int:
        """How many dimensions are swapped, of a class that is told."""
        return self.rank or 1

    @property
    def declared(self) -> dict[str, Any]:
        """The fields by which an intervention of kind `pyvene` declares the class."""
        fields: dict[str, Any] = {"class": self.class_name}
        if self.class_name == "LowRankRotatedSpaceIntervention":
            fields["low_rank_dimension"] = self.swapped
        elif self.class_name == "RotatedSpaceIntervention":
            fields["subspaces"] = tuple(range(self.swapped))
        return fields

    def cell_key(self, layer: int, place: str) -> str:
        """Returns the key under which the state of a cell is stored, `das.block_output[16].verb`."""
        return f"{self.key}.{self.site}[{layer}].{place}"

    @property
    def refs(self) -> tuple[str, ...]:
        """The keys of the cells; of `layers: all`, with a word where the layer stands."""
        layers = ("LAYER",) if self.layers == "all" else self.layers
        return tuple(
            f"{self.key}.{self.site}[{layer}].{place}" for layer in layers for place in self.positions
        )

    def gives(self, key: str) -> bool:
        """Returns whether a key is that of a cell."""
        cell = self.cell_of(key)
        return cell is not None and (self.layers == "all" or cell[0] in self.layers)

    def cell_of(self, key: str) -> tuple[int, str] | None:
        """Returns the layer and the place that a key names; None for the key of something else."""
        places = "|".join(self.positions)
        match = re.fullmatch(rf"{re.escape(self.key)}\.{self.site}\[(0|[1-9][0-9]*)\]\.({places})", key)
        return None if match is None else (int(match[1]), match[2])
