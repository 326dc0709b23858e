"""Experts: neurons that tell two sets of texts apart, and gains that dampen them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from subvene.specs._fields import Count, Finite
from subvene.specs._flaws import Flaw, refuse
from subvene.specs.recipes.contrasted import ContrastedRecipe
from subvene.specs.sites import Site


class ExpertsSpec(ContrastedRecipe):
    """Gains for neurons, by how well each tells positive texts from negative ones (AurA, Det0, Damp).

    The positive texts show what is to be dampened (toxic ones, say). How they are paired does not matter.
    """

    methods: ClassVar[Mapping[str, str]] = {
        "AurA, Det0, Damp": "Suau et al. 2024, arXiv:2407.12824",
    }
    usual_intervention: ClassVar[str | None] = "scaling"

    recipe: Literal["experts"] = Field(default="experts", description="Gains that dampen experts.")
    site: Site = Field(default="mlp_neurons", description="Where the neurons are.")
    gains: Literal["aura", "det0", "damp"] = Field(
        default="aura",
        description="`aura`: g = 1 − 2·(AUROC − 0.5) for every expert, a neuron with AUROC > 0.5; `det0`: 0 "
        "for the chosen experts; `damp`: `factor` for the chosen experts. 1 for all other neurons.",
    )
    k: Count | None = Field(
        default=None,
        description="Of `det0` and `damp`: how many experts are chosen over all layers, those of highest "
        "AUROC. Left out: all of them.",
    )
    factor: Finite | None = Field(default=None, description="Of `damp`: the gain of the chosen experts.")
    tokens: ClassVar[Literal["max"]] = "max"
    """A neuron's activation in a text is its highest one, over the contrasted tokens."""

    @model_validator(mode="after")
    def _fields_of_the_gains(self) -> Self:
        if flaws := list(self._flaws()):
            refuse("ExpertsSpec", flaws)
        return self

    def _flaws(self) -> Iterator[Flaw]:
        if self.k is not None and self.gains == "aura":
            yield Flaw(("k",), "nothing beside `gains: aura`, which takes every expert", self.k)
        if self.factor is not None and self.gains != "damp":
            yield Flaw(("factor",), "nothing but beside `gains: damp`", self.factor)
        if self.factor is None and self.gains == "damp":
            yield Flaw(("factor",), "a number, the gain of the experts", None, "missing_field")
