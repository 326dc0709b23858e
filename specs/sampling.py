"""Sampling: how responses are generated."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le
from pydantic import AllowInfNan, Field, Strict

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count
from subvene.specs._flaws import Expect


class SamplingSpec(SpecModel):
    """How responses are generated: every row has a seed of its own, whatever batch it is in."""

    expects: ClassVar[str] = "a mapping with any of `rollouts`, `temperature`, `top_p`, `max_new_tokens`"

    rollouts: Count = Field(default=1, description="Responses per prompt, each from a seed of its own.")
    temperature: Annotated[float, Strict(), Ge(0), AllowInfNan(False), Expect("a number >= 0")] = Field(
        default=1.0, description="Divides the logits; 0 takes the likeliest token."
    )
    top_p: Annotated[
        float, Strict(), Gt(0), Le(1), AllowInfNan(False), Expect("a number above 0 and at most 1")
    ] = Field(
        default=1.0,
        description="Only the likeliest tokens that together hold this share of the probability are drawn.",
    )
    max_new_tokens: Count = Field(default=64, description="Longest response, in tokens.")
    batch_size: Count = Field(default=64, description="Responses at a time; the text does not depend on it.")
