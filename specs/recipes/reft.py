"""LoReFT: low-rank edits of the residual stream at a few tokens of the prompt, trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from subvene.specs._fields import AllOrIndices, Count
from subvene.specs._flaws import Flaw
from subvene.specs.positions import TEXT_POSITIONS, Positions, TokenIndices, is_within_prompt
from subvene.specs.recipes.trained import Objective, Positive, SFTSpec, TrainedRecipe
from subvene.specs.sites import Site

FIRST_AND_LAST = TokenIndices(indices=(0, -1))
"""f1+l1 of the paper: the first token of the prompt and its last one."""
SITE: Site = "block_output"


class ReFTSpec(TrainedRecipe):
    """Low-rank linear-subspace representation finetuning, LoReFT: h ← h + Rᵀ(W·h + b − R·h)."""

    methods: ClassVar[Mapping[str, str]] = {"LoReFT": "Wu et al. 2024, arXiv:2404.03592"}
    usual_intervention: ClassVar[str | None] = "affine"

    recipe: Literal["reft"] = Field(default="reft", description="LoReFT, for interventions of kind affine.")
    objective: Objective = Field(
        default=SFTSpec.of_defaults(), description="What is minimised; the paper's is `sft`."
    )
    layers: AllOrIndices = Field(
        default="all", description="0-based indices of the decoder blocks whose output is edited, or `all`."
    )
    rank: Count = Field(default=4, description="r: R and W are [r, width] at each layer.")
    positions: Positions = Field(
        default=FIRST_AND_LAST,
        description="The tokens of the prompt that are edited, all by the same R, W and b; the interventions "
        "that use them say the same. Left out: the first and the last one, the paper's f1+l1; its f2+l3 is "
        "`{indices: [0, 1, -3, -2, -1]}`.",
    )
    learning_rate: Positive = Field(default=9e-4, description="Highest learning rate.")

    def _flaws(self) -> Iterator[Flaw]:
        if not is_within_prompt(self.positions) or isinstance(self.positions, TEXT_POSITIONS):
            expected = (
                "tokens of the prompt, counted: `prompt`, `last_prompt_token`, `first`, `last` or `indices`"
            )
            yield Flaw(("positions",), expected, self.positions)
        if self.weight_decay:
            yield Flaw(("weight_decay",), "0, since R is a rotation, which does not decay", self.weight_decay)
        yield from super()._flaws()

    @classmethod
    def usual_fields(cls, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The form of the map, its rank, and where it acts."""
        positions = fields.get("positions", FIRST_AND_LAST.model_dump(mode="json"))
        return {"form": "low_rank", "rank": fields.get("rank", 4), "positions": positions}
