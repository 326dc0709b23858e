"""Localized edits: low-rank edits at chosen heads, trained on preferences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Fraction, Seed
from subvene.specs._flaws import Flaw, Named
from subvene.specs.recipes.iti import AllHeads, ListedHeads, Ranking, RankingFolds
from subvene.specs.recipes.trained import TrainedRecipe


class _Heads(SpecModel):
    expects: ClassVar[str] = "a mapping with `rule`"


class ProbedHeads(_Heads):
    """The heads where a probe best tells wanted from unwanted answers, as ITI finds them."""

    rule: Literal["probed"] = Field(default="probed", description="The best by probing accuracy.")
    k: Count = Field(default=16, description="How many heads, over all layers.")
    ranking: Ranking = "cross_validation"
    ranking_folds: RankingFolds = 5
    validation: Fraction = Field(
        default=0.2,
        description="Share of the questions, whole questions, that ranks the heads under `ranking: split`.",
    )
    batch_size: Count = Field(default=64, description="Texts per forward pass when heads are probed.")


class DrawnHeads(_Heads):
    """Heads drawn at random: what a localization is to be compared with."""

    rule: Literal["random"] = Field(default="random", description="Drawn at random.")
    k: Count = Field(default=16, description="How many heads, over all layers.")
    seed: Seed | None = Field(default=None, description="Seed of the draw; left out: the experiment's.")


Heads = Annotated[ProbedHeads | DrawnHeads | ListedHeads | AllHeads, Named("rule")]


class LocalizedEditSpec(TrainedRecipe):
    """A trained low-rank edit that writes to chosen heads (Wang and Veitch, 2025)."""

    also_called: ClassVar[dict[str, str]] = TrainedRecipe.also_called | {
        "select": "heads",
        "write_heads": "heads",
    }

    methods: ClassVar[Mapping[str, str]] = {
        "localized edits": "Wang and Veitch 2025",
    }
    usual_intervention: ClassVar[str | None] = "low_rank_edit"

    recipe: Literal["localized_edit"] = Field(
        default="localized_edit", description="A low-rank edit trained on preferences."
    )
    heads: Heads = Field(default=ProbedHeads.of_defaults(), description="The heads that the edit writes to.")
    read_heads: Literal["all", "written"] = Field(
        default="all",
        description="The heads that a reader sees: `all` of its layer, or the `written` ones (with "
        "`per: head`, its own).",
    )
    rank: Count = Field(default=1, description="Number of pairs a, b of each layer (or head).")
    per: Literal["layer", "head"] = Field(
        default="layer", description="One edit for the chosen heads of a layer together, or one for each."
    )
    gate: Literal["adaptive", "constant"] = Field(
        default="adaptive",
        description="`adaptive`: o ← o + Σ_r ⟨a_r, o⟩·b_r, for interventions of kind low_rank_edit; "
        "`constant`: o ← o + b, whatever o is, for interventions of kind head_direction.",
    )

    def _flaws(self) -> Iterator[Flaw]:
        if self.gate == "constant" and self.rank != 1:
            yield Flaw(("rank",), "1, since a constant edit is one vector", self.rank)
        yield from super()._flaws()
