"""The reference judge: similarity to true references against similarity to false ones."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from subvene.specs.judges.base import BaseJudge


class ReferenceJudgeSpec(BaseJudge):
    """TruthfulQA's automated metrics: true if the closest reference answer is a true one. No info verdict."""

    kind: Literal["reference"] = Field(default="reference", description="Similarity to reference answers.")
    metric: Literal["bleu", "rouge1", "embedding"] = Field(
        default="rouge1", description="The similarity; `embedding` needs an installed sentence encoder."
    )
