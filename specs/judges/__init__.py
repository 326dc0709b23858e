"""The judges. A new one is a new file here and one line in ``AnyJudge``."""

from typing import Annotated

from subvene.specs._flaws import Named
from subvene.specs.judges.base import BaseJudge
from subvene.specs.judges.openai import OpenAIJudgeSpec
from subvene.specs.judges.reference import ReferenceJudgeSpec
from subvene.specs.judges.trained import TrainedJudgeSpec
from subvene.specs.judges.transformers import TransformersJudgeSpec

AnyJudge = Annotated[
    TrainedJudgeSpec | OpenAIJudgeSpec | TransformersJudgeSpec | ReferenceJudgeSpec,
    Named("kind"),
]

__all__ = [
    "AnyJudge",
    "BaseJudge",
    "OpenAIJudgeSpec",
    "ReferenceJudgeSpec",
    "TrainedJudgeSpec",
    "TransformersJudgeSpec",
]
