"""Activation patching: which states carry what two inputs differ in, in either direction."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge, Le, MinLen
from pydantic import AfterValidator, Field, Strict, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import AllOrIndices, Count, different
from subvene.specs._flaws import Expect, Flaw, refuse
from subvene.specs.evaluations.causal_tracing import TraceMetric
from subvene.specs.evaluations.tracing import TracingEvaluation
from subvene.specs.sites import CoreSite

Direction = Literal["denoising", "noising"]

_DIRECTIONS = "a non-empty list of different directions: denoising, noising"


class PatchedSite(SpecModel):
    """What is patched: one site, whole or head by head, token by token or all tokens at once."""

    expects: ClassVar[str] = "a mapping with `site` and perhaps `heads` and `positions`"

    site: CoreSite = Field(description="The site whose state is put into the other run.")
    heads: AllOrIndices | None = Field(
        default=None,
        description="Of `attention_heads`: 0-based query heads that are patched one by one (`all`, or a "
        "list); left out: all heads at once.",
    )
    positions: Literal["each", "all"] = Field(
        default="each", description="`each` token by itself, or `all` tokens of the text at once."
    )

    @model_validator(mode="after")
    def _heads_of_heads(self) -> Self:
        if self.heads is not None and self.site != "attention_heads":
            expected = "nothing, since only attention_heads has heads"
            refuse("PatchedSite", [Flaw(("heads",), expected, self.heads)])
        return self


PatchedSites = Annotated[
    tuple[PatchedSite, ...],
    MinLen(1),
    AfterValidator(different),
    Expect("a non-empty list of different mappings with `site` and perhaps `heads` and `positions`"),
]
Directions = Annotated[tuple[Direction, ...], MinLen(1), AfterValidator(different), Expect(_DIRECTIONS)]
Share = Annotated[int, Strict(), Ge(2), Le(100_000), Expect("an integer from 2 to 100000")]


class AttributionSpec(SpecModel):
    """Attribution patching (Nanda, 2023): every effect at once, to first order, from one backward pass.

    A first look: where states differ by much it can be wrong in size and in sign. So the true effects of a
    sample of cells are always computed beside it, and how well it ranks them is said.
    """

    expects: ClassVar[str] = "a mapping with `sample`"

    sample: Share = Field(
        default=40, description="So many cells of each fact and site, drawn at random, are truly patched."
    )


class PatchingSpec(TracingEvaluation):
    """Activation patching (Vig et al., 2020; Heimersheim and Nanda, 2024) between a fact and its `swap`.

    `denoising` puts states of the fact's run into the run about the other subject: what is enough to bring
    the answer back. `noising` puts states of that run into the fact's: what is needed for it.
    """

    kind: Literal["patching"] = Field(
        default="patching", description="States of one run in another, in either direction."
    )
    directions: Directions = Field(
        default=("denoising", "noising"), description="Which run's states are put into which."
    )
    sites: PatchedSites = Field(
        default=(
            PatchedSite(site="block_output"),
            PatchedSite(site="attention_heads", heads="all", positions="all"),
        ),
        description="What is patched, one after the other.",
    )
    layers: AllOrIndices = Field(default="all", description="0-based layers: `all`, or a list.")
    metric: TraceMetric = Field(
        default="logit_difference",
        description="What is measured of the answer's first token; the logit difference needs a `foil`.",
    )
    attribution: AttributionSpec | None = Field(
        default=None,
        description="In place of patching every cell: a first-order estimate of all cells, and the true "
        "effects of a sample of them.",
    )
    resamples: Count = Field(default=10_000, description="Bootstrap samples of the facts, for intervals.")
