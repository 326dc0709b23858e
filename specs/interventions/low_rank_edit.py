"""Low-rank edits: a trainable change that reads some heads and writes to chosen ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from subvene.specs._fields import AllOrIndices, Count, Index, Seed, Strength
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef


class LowRankEditSpec(BaseIntervention):
    """A localized low-rank edit: o ← o + s·Σ_r ⟨a_r, o⟩·b_r, with b_r zero outside the written heads."""

    kind: Literal["low_rank_edit"] = Field(default="low_rank_edit", description="A trainable low-rank edit.")
    layer: Index = Field(description=LAYER)
    write_heads: AllOrIndices = Field(description="0-based query heads that the edit changes, or `all`.")
    read_heads: AllOrIndices = Field(
        default="all", description="0-based query heads that the edit depends on, or `all`."
    )
    rank: Count = Field(default=1, description="Number of pairs a_r, b_r.")
    factors: TensorRef | None = Field(
        default=None,
        description="The factors, `{key}.attention_heads[{layer}].a` and `.b`, both [rank, "
        "n_heads*head_dim]. Left out: a fresh pair to be trained, A Kaiming-uniform and B zero.",
    )
    seed: Seed = Field(default=0, description="Seed of the fresh factors; without effect on stored ones.")
    strength: Strength = Field(default=1.0, description=f"s. {STRENGTH}")

    @property
    def site(self) -> Site:
        """Low-rank edits always act on the input of the output projection."""
        return "attention_heads"
