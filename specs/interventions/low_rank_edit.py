"""Low-rank edits: a trainable change that reads some heads and writes to chosen ones."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from subvene.specs._fields import AllOrIndices, Count, Index, Seed, Strength
from subvene.specs._flaws import Flaw, refuse
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

_EXAMPLE: dict[str, Any] = {"layer": 1, "factors": {"key": "edit"}}


class LowRankEditSpec(BaseIntervention):
    """A localized low-rank edit: o ← o + s·Σ_r ⟨a_r, o⟩·b_r, with b_r zero outside the written heads."""

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": _EXAMPLE,
        ", other positions": _EXAMPLE | {"positions": "response"},
    }

    kind: Literal["low_rank_edit"] = Field(default="low_rank_edit", description="A trainable low-rank edit.")
    layer: Index | None = Field(
        default=None,
        description=f"{LAYER} Left out: every layer that `factors` holds, with the heads and the rank that "
        "they were trained with.",
    )
    write_heads: AllOrIndices = Field(
        default="all",
        description="0-based query heads that the edit changes, or `all` that the factors write to.",
    )
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

    @model_validator(mode="after")
    def _one_layer_or_stored_ones(self) -> Self:
        if self.layer is not None:
            return self
        flaws = []
        if self.factors is None:
            flaws.append(
                Flaw(("layer",), "an integer >= 0, or `factors` that are stored", self, found="neither")
            )
        for field in ("write_heads", "read_heads"):
            if (heads := getattr(self, field)) != "all":
                flaws.append(Flaw((field,), "`layer` beside it, since these are heads of one layer", heads))
        if "rank" in self.model_fields_set:
            flaws.append(Flaw(("rank",), "`layer` beside it, since stored layers have their own", self.rank))
        if flaws:
            refuse("LowRankEditSpec", flaws)
        return self

    @property
    def site(self) -> Site:
        """Low-rank edits always act on the input of the output projection."""
        return "attention_heads"

    @property
    def reads_whole_key(self) -> bool:
        """Every stored layer, unless it names its own."""
        return self.layer is None
