"""Ablation: remove a direction."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from subvene.specs._fields import Index, Strength
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

_EXAMPLE: dict[str, Any] = {"layer": 1, "direction": {"key": "v"}}


class AblationSpec(BaseIntervention):
    """Removes a direction from the activations: h ← h − s·⟨h, v̂⟩·v̂."""

    also_called: ClassVar[dict[str, str]] = {**BaseIntervention.also_called, "vector": "direction"}

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        " at `block_output`": _EXAMPLE,
        " at `attention_heads`": _EXAMPLE | {"site": "attention_heads"},
        " at `attention_output` or `mlp_output`": _EXAMPLE | {"site": "mlp_output"},
    }

    kind: Literal["ablation"] = Field(default="ablation", description="Remove a direction.")
    site: Site = Field(default="block_output", description="The tensor that the direction is removed from.")
    layer: Index | None = Field(
        default=None, description=f"{LAYER} Left out: every layer that `direction` holds at the site."
    )
    direction: TensorRef = Field(
        description="The direction, `{key}.{site}[{layer}]` of shape [width of the site]; its length does "
        "not matter."
    )
    strength: Strength = Field(default=1.0, description=f"s; 1 removes the direction wholly. {STRENGTH}")

    @property
    def reads_whole_key(self) -> bool:
        """Every stored layer, unless it names its own."""
        return self.layer is None
