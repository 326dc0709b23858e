"""Divergence: what the interventions cost on ordinary text."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Text, path_ending
from subvene.specs._flaws import Expect, Flaw, refuse
from subvene.specs.evaluations.base import ConditionEvaluation

_OF_A_DATASET = ("subset", "split", "revision")


TextsPath = Annotated[
    str,
    path_ending(".txt", ".jsonl", ".json", any_case=True),
    Expect("a path that ends in .txt, .jsonl or .json"),
]


class TextsSpec(SpecModel):
    """Texts: a sample that subvene ships, a file, or a Hub dataset."""

    expects: ClassVar[str] = "a mapping with `file` or `dataset`"

    file: TextsPath | None = Field(
        default=None,
        description="A file, relative to this spec's folder: .txt (a paragraph is a text), .jsonl (an object "
        "or a text a line) or .json (a list of either).",
    )
    dataset: Text | None = Field(default=None, description="A Hub dataset id.")
    subset: Text | None = Field(default=None, description="The dataset's configuration.")
    split: Text = Field(default="train", description="The dataset's split.")
    revision: Text | None = Field(default=None, description="Branch, tag or commit of the Hub dataset.")
    field: Text = Field(default="text", description="The field of each row that holds its text.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.file is not None and self.dataset is not None:
            refuse("TextsSpec", [Flaw(("file",), "either `file` or `dataset`", self.file, found="both")])
        stray = [name for name in _OF_A_DATASET if name in self.model_fields_set]
        if stray and self.dataset is None:
            flaws = [Flaw((name,), "`dataset` beside it", getattr(self, name)) for name in stray]
            refuse("TextsSpec", flaws)
        return self


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
    batch_size: Count = Field(default=8, description="Texts per forward pass.")

    @property
    def metrics(self) -> tuple[str, ...]:
        """CE of the edited model, and KL(original ‖ edited)."""
        return ("ce", "kl")
