"""Features of a sparse autoencoder: added, clamped, scaled or ablated."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import MinLen
from pydantic import Field, model_validator

from subvene.specs._fields import Finite, Index, Indices, Strength, list_or_scalar
from subvene.specs._flaws import Expect, Flaw, Shaped, refuse
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.saes import AnySae, StoredSae
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

_EXAMPLE: dict[str, Any] = {"layer": 1, "features": [0, 2], "sae": {"key": "s", "architecture": "standard"}}
_VALUES = "a finite number, or a list of finite numbers, one per feature"
Values = Annotated[
    Annotated[Finite, Expect(_VALUES)] | Annotated[tuple[Finite, ...], MinLen(1), Expect(_VALUES)],
    Shaped(list_or_scalar, _VALUES),
]


class SaeFeatureSpec(BaseIntervention):
    """Changes features of an SAE and keeps its reconstruction error: h ← h + s·Σ_i (a'_i − a_i)·d_i."""

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        ", `do: add`": _EXAMPLE | {"do": "add", "value": 4.0},
        ", `do: add`, normalized": _EXAMPLE
        | {
            "do": "add",
            "value": 0.5,
            "sae": {"key": "s", "architecture": "standard", "normalize": "layer_norm"},
        },
        ", `do: clamp`": _EXAMPLE | {"do": "clamp", "value": [4.0, 2.0]},
        ", `do: scale`": _EXAMPLE
        | {"do": "scale", "value": 3.0, "sae": {"key": "s", "architecture": "gated"}},
        ", `do: ablate`": _EXAMPLE
        | {"do": "ablate", "sae": {"key": "s", "architecture": "topk", "latents": 6, "k": 4}},
    }
    also_called: ClassVar[dict[str, str]] = BaseIntervention.also_called | {
        "feature": "features",
        "operation": "do",
        "release": "sae",
    }

    kind: Literal["sae_feature"] = Field(
        default="sae_feature", description="Change features of a sparse autoencoder."
    )
    sae: AnySae = Field(
        description="The SAE: `{release: …, id: …}` as SAELens names it, `{folder: …}` as SAELens saves it, "
        "or what an artifact keeps of one, by its parts `{key}.{site}[{layer}].…`: `decoder` [features, "
        "width] and, unless `do: add`, `encoder` [features, or of `topk` all latents, width], `bias` "
        "(as many; of `gated` the magnitudes'), `shift` [width], of `jumprelu` `threshold`, of `gated` "
        "`gate_bias` and `r_mag` (as many)."
    )
    site: Site = Field(
        default="block_output",
        description="The tensor that the SAE reads. Left out with a release or a folder: its own.",
    )
    layer: Index | None = Field(
        default=None, description=f"{LAYER} Left out: the SAE's own; of stored tensors, every one that is."
    )
    features: Indices = Field(description="The latents, 0-based, that are changed.")
    do: Literal["add", "clamp", "scale", "ablate"] = Field(
        description="What becomes of a feature's activation a: `add` a + value, active or not; `clamp` "
        "value; `scale` value·a; `ablate` 0."
    )
    value: Values | None = Field(
        default=None,
        description="Of `add`, `clamp` and `scale`: one number for all features, or a list with one for "
        "each. In the units of the SAE's activations; of `scale` a factor.",
    )
    strength: Strength = Field(default=1.0, description=f"s; 1 makes the whole change. {STRENGTH}")

    @model_validator(mode="after")
    def _values_of_features(self) -> Self:
        if flaws := list(self._flaws()):
            refuse("SaeFeatureSpec", flaws)
        return self

    def _flaws(self) -> Iterator[Flaw]:
        if self.do == "ablate" and self.value is not None:
            yield Flaw(("value",), "none: ablation leaves nothing of an activation", self.value)
        if self.do != "ablate" and self.value is None:
            yield Flaw(("value",), _VALUES, None, "missing_field")
        if isinstance(self.value, tuple) and len(self.value) != len(self.features):
            yield Flaw(("value",), f"one number per feature, {len(self.features)}", self.value)
        if isinstance(self.sae, StoredSae):
            yield from self.sae.feature_flaws("features", max(self.features))

    @property
    def values(self) -> tuple[float, ...]:
        """The number of each feature; 0 for ablation."""
        if isinstance(self.value, tuple):
            return self.value
        return (0.0 if self.value is None else self.value,) * len(self.features)

    @property
    def reads_whole_key(self) -> bool:
        """Every stored layer, unless it names its own."""
        return self.layer is None

    def stored_refs(self, file: str, key: str, names: Collection[str]) -> dict[str, TensorRef]:
        """Returns the SAE, its tensors where an artifact keeps them."""
        if not isinstance(self.sae, StoredSae):
            return super().stored_refs(file, key, names)
        return {"sae": self.sae.model_copy(update={"file": file, "key": key})}
