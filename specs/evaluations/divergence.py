"""Divergence: what the interventions cost on ordinary text."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from subvene.specs._fields import Count, Text, path_ending
from subvene.specs._flaws import Expect
from subvene.specs.evaluations.base import ConditionEvaluation
from subvene.specs.row_source import RowSource

TextsPath = Annotated[
    str,
    path_ending(".txt", ".jsonl", ".json", any_case=True),
    Expect("a path that ends in .txt, .jsonl or .json"),
]


class TextsSpec(RowSource):
    """Texts: a sample that subvene ships, a file, or a Hub dataset."""

    needs_one: ClassVar[bool] = False

    file: TextsPath | None = Field(
        default=None,
        description="A file, relative to this spec's folder: .txt (a paragraph is a text), .jsonl (an object "
        "or a text a line) or .json (a list of either).",
    )
    field: Text = Field(default="text", description="The field of each row that holds its text.")


class DivergenceSpec(ConditionEvaluation):
    """Cross-entropy of the edited model, and KL(original ‖ edited), per token of given texts.

    A text's first token counts as its prompt, so `response` edits all of it, as `all` does.
    """

    kind: Literal["divergence"] = Field(default="divergence", description="CE and KL on given texts.")
    texts: TextsSpec = Field(
        default=TextsSpec.of_defaults(), description="The texts; left out: the sample that subvene ships."
    )
    max_tokens: Count = Field(default=128, description="The first so many tokens of each text are read.")
    limit: Count = Field(default=100, description="At most so many texts, the first ones.")
    validation: Count | None = Field(
        default=None,
        description="So many of its texts, the first ones, are for the budgets of `choose` alone: no "
        "condition is tested on them.",
    )
    batch_size: Count = Field(default=8, description="Texts per forward pass.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """CE of the edited model, and KL(original ‖ edited)."""
        return ("ce", "kl")
