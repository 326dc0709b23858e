"""Affine maps: move the activation towards a linear function of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from subvene.specs._fields import Count, Index, Strength
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

_EXAMPLE: dict[str, Any] = {"layer": 1, "map": {"key": "w"}}


class AffineSpec(BaseIntervention):
    """Moves activations towards an affine map of themselves: h ← h + s·(W·h + b − h)."""

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        ", `form: diagonal`": _EXAMPLE | {"form": "diagonal", "site": "mlp_output"},
        ", `form: dense`, at `block_output`": _EXAMPLE,
        ", `form: low_rank`": _EXAMPLE | {"form": "low_rank", "rank": 1, "site": "attention_heads"},
    }

    kind: Literal["affine"] = Field(default="affine", description="Move towards an affine map.")
    site: Site = Field(default="block_output", description="The tensor that is mapped.")
    layer: Index | None = Field(
        default=None, description=f"{LAYER} Left out: every layer that `map` holds at the site."
    )
    map: TensorRef = Field(
        description="The map, by its parts `{key}.{site}[{layer}].…`: `bias` b [width], and of `dense` "
        "`weight` W [width, width], of `diagonal` `weight` W [width], of `low_rank` `a` and `b`, both [rank, "
        "width], which make W = I + Σ_r b_r·a_rᵀ."
    )
    form: Literal["dense", "diagonal", "low_rank"] = Field(default="dense", description="What W is.")
    rank: Count = Field(default=1, description="Of `low_rank`: the number of pairs a_r, b_r.")
    strength: Strength = Field(default=1.0, description=f"s; 1 maps wholly, 0.5 half-way. {STRENGTH}")

    @property
    def reads_whole_key(self) -> bool:
        """Every stored layer, unless it names its own."""
        return self.layer is None
