"""Noise: add random vectors, as causal tracing corrupts the embeddings of a subject."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import MinLen
from pydantic import Field, model_validator

from subvene.specs._fields import Index, Seed, Strength
from subvene.specs._flaws import Expect, Flaw, Shaped, refuse
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site

_SEEDS = "an integer >= 0 and < 2**63, or a non-empty list of them (one per row of the batch)"


def _shape(value: object) -> int:
    return int(isinstance(value, list | tuple))


class NoiseSpec(BaseIntervention):
    """Adds Gaussian noise to the activations, as causal tracing does: h ← h + s·ε, ε ~ N(0, 1)."""

    also_called: ClassVar[dict[str, str]] = {**BaseIntervention.also_called, "sigma": "strength"}

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {"layer": 1, "strength": 0.1}}

    kind: Literal["noise"] = Field(default="noise", description="Add noise.")
    site: Site | None = Field(
        default=None, description="The tensor that noise is added to; left out: `block_output`."
    )
    component: Literal["block_input"] | None = Field(
        default=None,
        description="Instead of `site`: `block_input`, the stream before the block; before block 0, the "
        "embeddings.",
    )
    layer: Index = Field(description=LAYER)
    seed: Annotated[
        Annotated[Seed, Expect(_SEEDS)] | Annotated[tuple[Seed, ...], MinLen(1), Expect(_SEEDS)],
        Shaped(_shape, _SEEDS),
    ] = Field(
        default=0,
        description="What the noise is drawn from, together with a token's position, and with nothing else: "
        "it is the same in every batch, in scoring and in generation. One number for all rows, or a list "
        "with one per row of the batch.",
    )
    strength: Strength = Field(
        description=f"s, the standard deviation, in the units of the activations. {STRENGTH}"
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if flaws := list(self._flaws()):
            refuse("NoiseSpec", flaws)
        return self

    def _flaws(self) -> Iterator[Flaw]:
        if self.component is not None and self.site is not None:
            yield Flaw(("component",), "`site` or `component`", self.component, found="both")

    @property
    def place(self) -> str:
        """The site or component that is edited."""
        return self.component or self.site or "block_output"
