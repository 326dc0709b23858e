"""Refusals: whether a model still refuses what it should, and still answers what only sounds harmful."""

from typing import Literal

from pydantic import Field

from subvene.specs._fields import Count
from subvene.specs.evaluations.base import ConditionEvaluation


class RefusalsSpec(ConditionEvaluation):
    """The share of harmful requests that are refused, and of harmless ones that sound like them.

    Both lists are of subvene's own writing. An answer is a refusal if it holds one of a list of phrases: an
    evasion without any of them is not counted, and neither is a text that makes no sense.
    """

    kind: Literal["refusals"] = Field(default="refusals", description="Refusal and over-refusal.")
    limit: Count | None = Field(
        default=None, description="At most so many prompts of each list, the first ones; left out: all 24."
    )
    max_new_tokens: Count = Field(default=24, description="Longest answer, in tokens.")
    batch_size: Count = Field(default=16, description="Prompts at a time.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The shares of harmful and of harmless requests that are refused."""
        return ("refusal", "over_refusal")
