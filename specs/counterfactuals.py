"""Counterfactual data: a text, another one whose state is put into it, and what is then to come out."""

from typing import Annotated, ClassVar

from annotated_types import MinLen
from pydantic import AfterValidator, Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Fraction, Text, different
from subvene.specs._flaws import Expect
from subvene.specs.row_source import RowSource


class CounterfactualsSpec(RowSource):
    """Rows of a base, a source and the label of the two: a file or a Hub dataset."""

    base: Text = Field(default="base", description="The column of the text that a state is put into.")
    source: Text = Field(default="source", description="The column of the text whose state that is.")
    label: Text = Field(
        default="label",
        description="The column of how the base is to go on then. What is measured is the first token of it "
        "behind the base.",
    )
    base_label: Text = Field(
        default="base_label",
        description="The column of how the base goes on by itself; rows may be without it.",
    )
    source_label: Text = Field(
        default="source_label",
        description="The column of how the source goes on by itself; rows may be without it.",
    )
    chat: bool = Field(
        default=False, description="Put the texts into the model's chat template, each as a user's turn."
    )
    limit: Count | None = Field(
        default=None, description="At most so many rows, the first ones; left out: all."
    )


class GroupSplitSpec(SpecModel):
    """Which rows are held out: whole values of some columns, which then stand on one side alone."""

    expects: ClassVar[str] = "a mapping with `by` and perhaps `test`"

    by: Annotated[
        tuple[Text, ...],
        MinLen(1),
        AfterValidator(different),
        Expect("a non-empty list of different columns"),
    ] = Field(
        description="Columns whose values are held out whole, such as the names that the texts are about. "
        "One value is never on both sides, whichever of the columns it stands in; a row with values of both "
        "sides is left out, and counted.",
    )
    test: Fraction = Field(default=0.3, description="Share of the values that is held out.")
