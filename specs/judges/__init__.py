"""The judges. A new one is a new file here and one line in ``AnyJudge``."""

from typing import Annotated

from subvene.specs._flaws import Named, Shaped
from subvene.specs.judges.base import BaseJudge
from subvene.specs.judges.openai import OpenAIJudgeSpec
from subvene.specs.judges.reference import ReferenceJudgeSpec
from subvene.specs.judges.trained import TrainedJudgeSpec
from subvene.specs.judges.transformers import TransformersJudgeSpec

AnyJudge = Annotated[
    TrainedJudgeSpec | OpenAIJudgeSpec | TransformersJudgeSpec | ReferenceJudgeSpec,
    Named("kind"),
]


def _one_or_two(value: object) -> int:
    return int(isinstance(value, list | tuple))


JudgeOrTwo = Annotated[
    AnyJudge | tuple[AnyJudge, AnyJudge],
    Shaped(_one_or_two, "a judge, or a list of two of which the second is a second opinion"),
]
"""Who judges; the second of two is asked for a second opinion, and nothing is chosen by it."""

__all__ = [
    "AnyJudge",
    "BaseJudge",
    "JudgeOrTwo",
    "OpenAIJudgeSpec",
    "ReferenceJudgeSpec",
    "TrainedJudgeSpec",
    "TransformersJudgeSpec",
]
