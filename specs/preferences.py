"""Preferences: prompts with an answer that is wanted and one that is not."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Text
from subvene.specs._flaws import Shaped
from subvene.specs.questions import QuestionsSpec
from subvene.specs.row_source import RowSource


class TriplesSpec(RowSource):
    """Triples of a prompt, the answer that is wanted and the one that is not: a file or a Hub dataset."""

    prompt: Text = Field(
        default="prompt",
        description="The field of each row that holds the prompt: text, or messages with `role` and "
        "`content`. Left out: `prompt`, or another of its usual names (`question`, `instruction` with "
        "`input`); a row without it has the prompt in its two lists of messages.",
    )
    chosen: Text = Field(
        default="chosen",
        description="The field that holds the wanted answer: text, or messages of which the last is it.",
    )
    rejected: Text = Field(default="rejected", description="The field that holds the unwanted answer.")
    chat: bool | None = Field(
        default=None,
        description="Put prompts into the model's chat template; left out: where the model has one.",
    )
    end: bool = Field(
        default=True,
        description="Close every answer with the model's end-of-sequence token, so that where to stop is "
        "learned too.",
    )
    limit: Count | None = Field(
        default=None, description="At most so many triples, the first ones; left out: all."
    )


class TruthfulPairsSpec(SpecModel):
    """TruthfulQA: of every question, each true answer against each false one."""

    expects: ClassVar[str] = "a mapping with `truthfulqa`"

    truthfulqa: QuestionsSpec = Field(description="The questions with their answers.")
    preset: Literal["bare", "qa", "instruction_qa", "chat"] = Field(
        default="bare",
        description="What stands before a question: `bare` nothing (`Q: …`, `A:`); `qa` the primer; "
        "`instruction_qa` the instruction, a blank line and the primer; `chat` the model's template, "
        "and nothing else.",
    )
    limit: Count | None = Field(
        default=None, description="At most so many of the questions, chosen by content; left out: all."
    )
    per_question: Count | None = Field(
        default=None,
        description="At most so many pairs of each question, chosen by content; left out: the full product.",
    )
    end: bool = Field(default=False, description="Close every answer with the model's end-of-sequence token.")


def _by_key(value: object) -> int | None:
    if isinstance(value, TriplesSpec | TruthfulPairsSpec):
        return int(isinstance(value, TruthfulPairsSpec))
    if not isinstance(value, Mapping):
        return None
    return int("truthfulqa" in value)


PreferenceData = Annotated[
    TriplesSpec | TruthfulPairsSpec,
    Shaped(_by_key, "a mapping with `file`, with `dataset`, or with `truthfulqa`"),
]
"""Triples in a file or a Hub dataset, or TruthfulQA's answers against each other."""
