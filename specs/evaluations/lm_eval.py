"""Tasks of lm-evaluation-harness, by name: what an edit does to whatever somebody has written a task for."""

from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic import AfterValidator, Field, Strict

from subvene.specs._fields import Count, Text, different
from subvene.specs._flaws import Expect
from subvene.specs.evaluations.base import ConditionEvaluation

_TASKS = "a non-empty list of different names of tasks"
Shots = Annotated[int, Strict(), Ge(0), Expect("an integer >= 0")]


class LmEvalSpec(ConditionEvaluation):
    """The scores that tasks of lm-evaluation-harness give a document each, in the harness itself.

    Needs lm-evaluation-harness: `pip install 'subvene[lm-eval]'`. A context is the prompt, what is scored or
    written after it the response.
    """

    kind: Literal["lm_eval"] = Field(default="lm_eval", description="Tasks of lm-evaluation-harness.")
    tasks: Annotated[tuple[Text, ...], MinLen(1), AfterValidator(different), Expect(_TASKS)] = Field(
        description="The tasks, as `lm-eval ls tasks` names them; of a group its tasks."
    )
    limit: Count | None = Field(
        default=None, description="At most so many documents of each task, the first ones; left out: all."
    )
    num_fewshot: Shots | None = Field(
        default=None,
        description="So many worked examples before each document; left out: as the task has it.",
    )
    include: Text | None = Field(
        default=None, description="A folder with tasks of one's own, relative to the folder of this spec."
    )
    batch_size: Count = Field(default=8, description="Texts at a time.")
