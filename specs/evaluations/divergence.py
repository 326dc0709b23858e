"""Divergence: what the interventions cost on ordinary text."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Text
from subvene.specs._flaws import Flaw, refuse
from subvene.specs.evaluations.base import ConditionEvaluation


class TextsSpec(SpecModel):
    """Texts: a sample that subvene ships, a file, or a Hub dataset."""

    expects: ClassVar[str] = "a mapping with `file` or `dataset`"

    file: Text | None = Field(
        default=None,
        description="A .txt file (a paragraph is a text), .jsonl or .json, relative to this spec's folder.",
    )
    dataset: Text | None = Field(default=None, description="A Hub dataset id.")
    subset: Text | None = Field(default=None, description="The dataset's configuration.")
    split: Text = Field(default="train", description="The dataset's split.")
    revision: Text | None = Field(default=None, description="Branch, tag or commit of the Hub dataset.")
    field: Text = Field(default="text", description="The field that holds the text.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.file is not None and self.dataset is not None:
            refuse("TextsSpec", [Flaw(("file",), "either `file` or `dataset`", self.file, found="both")])
        return self


class DivergenceSpec(ConditionEvaluation):
    """Cross-entropy of the edited model, and KL(original ‖ edited), per token of given texts."""

    kind: Literal["divergence"] = Field(default="divergence", description="CE and KL on given texts.")
    texts: TextsSpec = Field(
        default=TextsSpec(), description="The texts; left out: the sample that subvene ships."
    )
    max_tokens: Count = Field(default=128, description="The first so many tokens of each text.")
    limit: Count = Field(default=100, description="At most so many texts.")
    batch_size: Count = Field(default=8, description="Texts per forward pass.")
