"""The transformers judge: a local causal language model."""

from typing import Any, Literal, cast

from pydantic import Field

from subvene.specs._fields import Count
from subvene.specs.judges.base import TwoModelJudge
from subvene.specs.model import ModelSpec


class TransformersJudgeSpec(TwoModelJudge):
    """A local judge read by its probability of ` yes`, such as the open Llama-2 truth and info judges."""

    kind: Literal["transformers"] = Field(default="transformers", description="A local causal LM.")
    model: ModelSpec | None = Field(default=None, description="One model for everything that is judged.")
    truth_model: ModelSpec = Field(
        default=cast(Any, None),  # `_models` fills it in
        description="The model that judges truth (of persona vectors: the trait); left out: `model`.",
    )
    info_model: ModelSpec = Field(
        default=cast(Any, None),  # `_models` fills it in
        description="The model that judges informativeness (of persona vectors: coherence); left out: "
        "`model`.",
    )
    batch_size: Count = Field(default=16, description="Answers per forward pass.")
