"""What evaluations of facts have in common, which trace where a model has an answer from."""

from pydantic import Field

from subvene.specs.evaluations.base import BaseEvaluation
from subvene.specs.facts import Facts


class TracingEvaluation(BaseEvaluation):
    """An evaluation of the model as it is, whose own states are put into other runs of it."""

    facts: Facts = Field(description="The facts: a `file` of them, or `facts` written out.")
