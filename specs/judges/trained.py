"""The trained judge: a classifier that ships with the package."""

from typing import Literal

from pydantic import Field

from subvene.specs._fields import Text
from subvene.specs.judges.base import BaseJudge


class TrainedJudgeSpec(BaseJudge):
    """A classifier fitted on human-labelled judgements; needs no key and no download."""

    kind: Literal["trained"] = Field(default="trained", description="The classifier that ships with subvene.")
    folder: Text | None = Field(
        default=None,
        description="A judge of your own, as `subvene judge fit` writes it; left out: the shipped one.",
    )
