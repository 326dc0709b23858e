"""Where rows come from: a file, or a data set of the Hub."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Text, path_ending
from subvene.specs._flaws import Expect, Flaw, refuse

RowsPath = Annotated[
    str,
    path_ending(".jsonl", ".json", ".csv", any_case=True),
    Expect("a path that ends in .jsonl, .json or .csv"),
]
_OF_A_DATASET = ("subset", "split", "revision")


class RowSource(SpecModel):
    """Rows of a file or of a Hub dataset, and not of both."""

    expects: ClassVar[str] = "a mapping with `file` or `dataset`"
    needs_one: ClassVar[bool] = True
    """Whether there are no rows without a file or a dataset."""

    file: RowsPath | None = Field(
        default=None,
        description="A file, relative to this spec's folder: one JSON object a line (.jsonl), a JSON list, "
        "or CSV.",
    )
    dataset: Text | None = Field(default=None, description="A Hub dataset id.")
    subset: Text | None = Field(default=None, description="The dataset's configuration.")
    split: Text = Field(default="train", description="The dataset's split.")
    revision: Text | None = Field(default=None, description="Branch, tag or commit of the Hub dataset.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [name for name in ("file", "dataset") if getattr(self, name) is not None]
        if len(named) == 2 or (self.needs_one and not named):
            found = "both" if named else "neither"
            flaw = Flaw(("file",), "either `file` or `dataset`", self.file, found=found)
            refuse(type(self).__name__, [flaw])
        stray = [name for name in _OF_A_DATASET if name in self.model_fields_set]
        if stray and self.dataset is None:
            flaws = [Flaw((name,), "`dataset` beside it", getattr(self, name)) for name in stray]
            refuse(type(self).__name__, flaws)
        return self
