"""Which TruthfulQA questions are meant."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Text
from subvene.specs._flaws import Flaw, refuse


class QuestionsSpec(SpecModel):
    """TruthfulQA (Lin et al., 2022) from the Hub or from a file; told apart by content, never by row."""

    expects: ClassVar[str] = "a mapping with `file`, or with `name` of a Hub dataset"

    name: Text = Field(
        default="truthfulqa/truthful_qa",
        description="The Hub dataset. $SUBVENE_TRUTHFULQA, if it names a CSV file, is read in its place.",
    )
    revision: Text | None = Field(default=None, description="Branch, tag or commit of the Hub dataset.")
    file: Text | None = Field(
        default=None,
        description="A file with TruthfulQA's columns (.csv, .jsonl, a JSON list), relative to this spec's "
        "folder, in place of the Hub.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.file is not None and {"name", "revision"} & self.model_fields_set:
            expected = "either `file` or `name` with `revision`"
            refuse("QuestionsSpec", [Flaw(("file",), expected, self.file, found="both")])
        return self
