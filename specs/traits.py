"""Traits: what a persona vector is fitted for."""

from typing import Annotated, ClassVar, Literal, get_args

from annotated_types import MinLen
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from subvene.specs._base import SpecModel
from subvene.specs._fields import Identifier, Text
from subvene.specs._flaws import Expect, Shaped

_Shipped = Literal["apathetic", "formal", "humorous", "impolite", "optimistic", "sycophantic", "verbose"]
SHIPPED_TRAITS: tuple[str, ...] = get_args(_Shipped)

_TRAIT = f"one of {', '.join(SHIPPED_TRAITS)}, or a mapping with `name` and `file`"
_TRAITS = f"a non-empty list of traits of different names, each {_TRAIT}"


class TraitSpec(SpecModel):
    """A trait file in the form that Chen et al. (2025) published."""

    expects: ClassVar[str] = _TRAIT

    name: Identifier = Field(
        description="The trait as an adjective, as system prompts name it; also the key of its vectors."
    )
    file: Text = Field(
        description="JSON with `instruction` (a list of `pos` and `neg`), `questions` and `eval_prompt`, "
        "relative to the folder of this spec."
    )
    evaluation: Text | None = Field(
        default=None,
        description="A second file of that form, whose `questions` are those of the evaluation; left out: "
        "the `evaluation_questions` of `file`.",
    )


AnyTrait = Annotated[
    Annotated[_Shipped, Expect(_TRAIT)] | TraitSpec,
    Shaped(lambda value: 0 if isinstance(value, str) else 1, _TRAIT),
]
"""A shipped trait by its name, or one of the user's."""


def trait_name(trait: str | TraitSpec) -> str:
    """Returns what a declared trait is called."""
    return trait if isinstance(trait, str) else trait.name


def _differently_named(traits: tuple[str | TraitSpec, ...]) -> tuple[str | TraitSpec, ...]:
    if len({trait_name(trait) for trait in traits}) != len(traits):
        raise PydanticCustomError("repeated", "repeated")
    return traits


Traits = Annotated[tuple[AnyTrait, ...], MinLen(1), AfterValidator(_differently_named), Expect(_TRAITS)]
