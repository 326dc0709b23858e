"""Samples: what the model writes, coefficient by coefficient."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Field

from subvene.specs._fields import Count, Text
from subvene.specs._flaws import Expect
from subvene.specs.evaluations.base import CoefficientEvaluation


class SamplesSpec(CoefficientEvaluation):
    """Generates a response to every prompt at every coefficient, for people to read."""

    kind: Literal["samples"] = Field(default="samples", description="Responses to read.")
    prompts: Annotated[tuple[Text, ...], MinLen(1), Expect("a non-empty list of prompts")] = Field(
        description="The user's turns, put into the model's chat template."
    )
    max_new_tokens: Count = Field(default=64, description="Longest response, in tokens.")
