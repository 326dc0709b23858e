"""Samples: what the model writes, coefficient by coefficient."""

from typing import Annotated, Literal, Self

from annotated_types import MinLen
from pydantic import Field, model_validator

from subvene.specs._fields import Count, Text
from subvene.specs._flaws import Expect, Flaw, refuse
from subvene.specs.evaluations.base import CoefficientEvaluation

Columns = Annotated[
    dict[Text, Annotated[tuple[Text, ...], Expect("a list of texts, one per prompt")]],
    MinLen(1),
    Expect("a non-empty mapping from names to lists of texts"),
]


class SamplesSpec(CoefficientEvaluation):
    """Generates a response to every prompt at every coefficient, for people to read."""

    kind: Literal["samples"] = Field(default="samples", description="Responses to read.")
    prompts: Annotated[tuple[Text, ...], MinLen(1), Expect("a non-empty list of prompts")] = Field(
        description="The user's turns, put into the model's chat template."
    )
    columns: Columns | None = Field(
        default=None,
        description="Further columns of the data, each a list with one text per prompt: what `{field: NAME}` "
        "positions and sources with `column: NAME` read.",
    )
    max_new_tokens: Count = Field(default=64, description="Longest response, in tokens.")

    @model_validator(mode="after")
    def _one_value_a_prompt(self) -> Self:
        flaws = [
            Flaw(
                ("columns", name),
                f"{len(self.prompts)} texts, one per prompt",
                values,
                found=f"{len(values)}",
            )
            for name, values in (self.columns or {}).items()
            if len(values) != len(self.prompts)
        ]
        if flaws:
            refuse("SamplesSpec", flaws)
        return self

    @property
    def rows(self) -> list[dict[str, str]] | None:
        """The columns of each prompt; None where there are none."""
        if self.columns is None:
            return None
        return [{name: values[i] for name, values in self.columns.items()} for i in range(len(self.prompts))]
