"""TruthfulQA: multiple choice, and generated answers before a judge."""

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import AfterValidator, Field

from subvene.specs._fields import Count, Text, different
from subvene.specs._flaws import Expect
from subvene.specs.evaluations.base import ChoosingEvaluation
from subvene.specs.judges import JudgeOrTwo, TrainedJudgeSpec
from subvene.specs.questions import QuestionsSpec

METRICS = ("mc1", "mc2", "mc3", "true", "info", "true_info")
_METRICS = {
    "multiple_choice": ("mc1", "mc2", "mc3"),
    "generation": ("empty", "true", "info", "true_info", "true_and_info"),
}
_MEASURES = "a non-empty list of different measures: multiple_choice, generation"


class TruthfulQASpec(ChoosingEvaluation):
    """True, Info, True×Info, MC1, MC2 and MC3 (Lin et al., 2022; Li et al., 2023)."""

    kind: Literal["truthfulqa"] = Field(default="truthfulqa", description="TruthfulQA.")
    data: QuestionsSpec = Field(default=QuestionsSpec.of_defaults(), description="The questions.")
    measure: Annotated[
        tuple[Literal["multiple_choice", "generation"], ...],
        MinLen(1),
        AfterValidator(different),
        Expect(_MEASURES),
    ] = Field(
        default=("multiple_choice", "generation"),
        description="`multiple_choice` gives MC1, MC2 and MC3; `generation` gives True and Info.",
    )
    preset: Literal["qa", "instruction_qa", "chat"] = Field(
        default="instruction_qa",
        description="What stands before a question: `qa` the primer; `instruction_qa` the instruction, a "
        "blank line and the primer; `chat` the model's template with the instruction as the system prompt.",
    )
    primer: Text | None = Field(
        default=None,
        description="A text file of question–answer pairs (`Q: …`, `A: …`, a blank line between), relative "
        "to the folder of this spec; left out: the six pairs that subvene ships.",
    )
    instruction: Text | None = Field(
        default=None, description="A text file with the instruction; left out: the one that subvene ships."
    )
    judge: JudgeOrTwo = Field(
        default=TrainedJudgeSpec.of_defaults(),
        description="Who judges the generated answers; of a list of two the second gives a second opinion, "
        "and the tables state how far the two agree (Cohen's kappa).",
    )
    max_new_tokens: Count = Field(default=50, description="Longest answer, in tokens.")
    limit: Count | None = Field(
        default=None, description="At most so many questions per fold, chosen by content; left out: all."
    )
    batch_size: Count = Field(default=32, description="Questions at a time.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of its measures."""
        return tuple(metric for measure in self.measure for metric in _METRICS[measure])

    @property
    def choosing(self) -> tuple[str, ...]:
        """All of which more is better."""
        return tuple(metric for metric in METRICS if metric in self.metrics)
