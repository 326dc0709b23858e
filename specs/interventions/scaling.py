"""Scaling: a gain for each neuron or head, as dampening and ablating them does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from subvene.specs._fields import Finite, Index, Indices, Strength
from subvene.specs._flaws import Flaw, refuse
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

HEADED: tuple[Site, ...] = ("attention_heads", "query", "key", "value")
"""The sites that are made of heads."""


class ScalingSpec(BaseIntervention):
    """Multiplies neurons or heads by a gain each: h_i ← h_i + s·(g_i − 1)·h_i."""

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        " at `mlp_neurons`": {"layer": 1, "gains": {"key": "g"}},
        " of heads": {"layer": 1, "site": "attention_heads", "heads": [1], "gain": 0.0},
        " at `block_output`": {"layer": 1, "site": "block_output", "gains": {"key": "g"}},
    }

    kind: Literal["scaling"] = Field(default="scaling", description="Multiply neurons or heads by gains.")
    site: Site = Field(default="mlp_neurons", description="The tensor that is multiplied.")
    layer: Index | None = Field(
        default=None, description=f"{LAYER} Left out: every layer that `gains` holds at the site."
    )
    gains: TensorRef | None = Field(
        default=None,
        description="The gains g, `{key}.{site}[{layer}]` of shape [width of the site], or [heads] at a site "
        "of heads; 1 leaves a neuron as it is. AurA, Det0 and Damp are ways to choose them.",
    )
    gain: Finite | None = Field(
        default=None, description="Instead of `gains`, one g for the `neurons` or `heads` that are named."
    )
    neurons: Indices | None = Field(
        default=None, description="The 0-based columns of the site that `gain` multiplies."
    )
    heads: Indices | None = Field(
        default=None,
        description="The 0-based heads that `gain` multiplies, at `attention_heads`, `query`, `key` (those "
        "that queries share) or `value`; `gain: 0` ablates them.",
    )
    strength: Strength = Field(default=1.0, description=f"s; 1 multiplies by the gains. {STRENGTH}")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if flaws := list(self._flaws()):
            refuse("ScalingSpec", flaws)
        return self

    def _flaws(self) -> Iterator[Flaw]:
        named = [field for field in ("neurons", "heads") if getattr(self, field) is not None]
        if self.gains is None and self.gain is None:
            yield Flaw(("gains",), "`gains`, or `gain` with `neurons` or `heads`", None, "missing_field")
        if self.gains is not None:
            for field in [*(["gain"] if self.gain is not None else []), *named]:
                yield Flaw((field,), "nothing beside `gains`, which has all of them", getattr(self, field))
        elif self.gain is not None and len(named) != 1:
            found = "both" if named else "neither"
            yield Flaw(("gain",), "`neurons` or `heads` beside it", self.gain, found=found)
        if self.gains is None and self.layer is None:
            yield Flaw(("layer",), "an integer >= 0, or `gains` that are stored", None, "missing_field")
        if self.heads is not None and self.site not in HEADED:
            expected = f"no heads, but at {', '.join(HEADED)}"
            yield Flaw(("heads",), expected, self.heads)

    @property
    def reads_whole_key(self) -> bool:
        """Every stored layer, unless it names its own."""
        return self.layer is None

    def stored_refs(self, file: str, key: str, names: Any) -> dict[str, TensorRef]:
        """Where the gains are kept; nothing of one that names its neurons or heads."""
        return {} if self.gains is None else super().stored_refs(file, key, names)
