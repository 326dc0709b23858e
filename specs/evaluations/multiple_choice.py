"""Multiple choice: what an edit costs in everyday knowledge."""

from typing import Literal

from pydantic import Field

from subvene.specs._fields import Count
from subvene.specs.evaluations.base import ConditionEvaluation


class MultipleChoiceSpec(ConditionEvaluation):
    """The share of right choices among four, on the questions of everyday knowledge that subvene ships.

    A question is a plain text and the prompt; the model takes the choice of the largest log-probability per
    token.
    """

    kind: Literal["multiple_choice"] = Field(
        default="multiple_choice", description="Accuracy on everyday questions."
    )
    limit: Count | None = Field(
        default=None, description="At most so many questions, the first ones; left out: all 60."
    )
    batch_size: Count = Field(default=32, description="Questions at a time.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The share of right choices."""
        return ("accuracy",)
