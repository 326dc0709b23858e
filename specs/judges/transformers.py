"""The transformers judge: a local causal language model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from subvene.specs._fields import Count
from subvene.specs.judges.base import BaseJudge
from subvene.specs.model import ModelSpec


class TransformersJudgeSpec(BaseJudge):
    """A local judge read by its probability of ` yes`, such as the open Llama-2 truth and info judges."""

    kind: Literal["transformers"] = Field(default="transformers", description="A local causal LM.")
    truth_model: ModelSpec = Field(description="The model that judges truth.")
    info_model: ModelSpec = Field(
        description="The model that judges informativeness; it may be the same one."
    )
    batch_size: Count = Field(default=16, description="Answers per forward pass.")
