"""Sampling: how responses are generated."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Le
from pydantic import AllowInfNan, BeforeValidator, Field, JsonValue, Strict, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count
from subvene.specs._flaws import Expect, Flaw, refuse

_MODEL: Literal["model"] = "model"


class SamplingSpec(SpecModel):
    """How responses are generated: every row has a seed of its own, whatever batch it is in."""

    expects: ClassVar[str] = (
        "`model`, or a mapping with any of `settings`, `rollouts`, `temperature`, `top_p`, `max_new_tokens`"
    )

    settings: Literal["given", "model"] = Field(
        default="given",
        description="`given`: `temperature` and `top_p`, and nothing else; `model`: what the checkpoint's "
        "own generation_config.json says of how it samples. `sampling: model` is short for `{settings: "
        "model}`.",
    )
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

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        flaws = [
            Flaw((name,), "no value of its own beside `settings: model`", getattr(self, name))
            for name in ("temperature", "top_p")
            if self.settings == _MODEL and name in self.model_fields_set
        ]
        if flaws:
            refuse("SamplingSpec", flaws)
        return self

    def said(self) -> dict[str, JsonValue]:
        """All that a response depends on, JSON values; without what the checkpoint says of it."""
        left_out = {"batch_size", "settings"}
        if self.settings == _MODEL:
            left_out = {"batch_size", "temperature", "top_p"}
        return self.model_dump(mode="json", exclude=left_out)


def _whole(value: Any) -> Any:
    return {"settings": _MODEL} if value == _MODEL else value


Sampling = Annotated[
    SamplingSpec, BeforeValidator(_whole, json_schema_input_type=Literal["model"] | SamplingSpec)
]
"""A sampling, or `model`."""
