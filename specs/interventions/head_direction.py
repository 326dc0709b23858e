"""Head directions: shift chosen attention heads, as inference-time intervention (ITI) does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen
from pydantic import Field

from subvene.specs._fields import Indices, LayerKey, Strength
from subvene.specs._flaws import Expect
from subvene.specs.interventions.base import STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

_EXAMPLE: dict[str, Any] = {"directions": {"key": "heads"}, "heads": {"1": [0, 1]}, "strength": 1.0}


class HeadDirectionSpec(BaseIntervention):
    """Inference-time intervention: o_h ← o_h + α·σ_h·θ̂_h at chosen heads (Li et al., 2023).

    With `adaptive: one_minus_p` α becomes α·(1 − p), p being what the head's own probe says.
    """

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": _EXAMPLE,
        ", other positions": _EXAMPLE | {"positions": "response"},
        ", `adaptive: one_minus_p`": _EXAMPLE | {"adaptive": "one_minus_p"},
    }

    kind: Literal["head_direction"] = Field(default="head_direction", description="Head directions (ITI).")
    directions: TensorRef = Field(
        description="Directions per layer, `{key}.attention_heads[{layer}]` of shape [n_heads, head_dim], "
        "with the standard deviations σ folded in or stored beside them as `….sigma` of shape [n_heads]."
    )
    strength: Strength = Field(description=f"α. {STRENGTH}")
    adaptive: Literal["none", "one_minus_p"] = Field(
        default="none",
        description="`one_minus_p`: α·(1 - p) in place of α, for each token and head, where p = "
        "sigmoid(⟨w_h, o_h⟩ + b_h) is the probability that the head's probe gives the activation before the "
        "edit. The probes are stored beside the directions, as `….probe_weight` of shape [n_heads, head_dim] "
        "and `….probe_bias` of shape [n_heads]. `none`: α everywhere.",
    )
    heads: (
        Annotated[
            dict[LayerKey, Indices], MinLen(1), Expect("a non-empty mapping from layers to lists of heads")
        ]
        | None
    ) = Field(
        default=None,
        description="The heads that are edited: 0-based layer → list of 0-based query heads. Left out: every "
        "stored layer and head.",
    )

    @property
    def site(self) -> Site:
        """Head directions always act on the input of the output projection."""
        return "attention_heads"

    @property
    def reads_whole_key(self) -> bool:
        """Every stored layer and head, unless it names its own."""
        return self.heads is None
