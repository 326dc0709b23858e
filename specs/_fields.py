"""The types of single fields: strict, bounded, and each with its own words for what it wants.

Strict because YAML already tells numbers from text: ``layer: "3"`` is a mistake, not a 3.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, AllowInfNan, Strict, StringConstraints
from pydantic_core import PydanticCustomError

from subvene.specs._flaws import Expect, Shaped

# 2**63 - 1: the largest seed that torch.manual_seed takes, and far beyond any index.
_LARGEST = 2**63 - 1

_Values = TypeVar("_Values", bound=tuple[Hashable, ...])


def different(values: _Values) -> _Values:
    """Returns the values; refuses them if one comes twice."""
    if len(set(values)) != len(values):
        raise PydanticCustomError("repeated", "repeated")
    return values


def full_match(pattern: str) -> StringConstraints:
    """Returns the constraint that the whole text matches; ``$`` is the very end in pydantic's regexes."""
    return StringConstraints(pattern=f"^(?:{pattern})$")


def path_ending(*suffixes: str, any_case: bool = False) -> AfterValidator:
    """Returns the check that a path has a name before one of these endings."""

    def check(file: str) -> str:
        text = file.lower() if any_case else file
        if text in suffixes or not text.endswith(suffixes) or not file.isprintable():
            raise PydanticCustomError("path", "path")
        return file

    return AfterValidator(check)


def list_or_scalar(value: object) -> int:
    return 1 if isinstance(value, list | tuple) else 0


_RawFloat = Annotated[float, Strict(), AllowInfNan(False)]

Index = Annotated[int, Strict(), Ge(0), Le(_LARGEST), Expect("an integer >= 0")]
Count = Annotated[int, Strict(), Ge(1), Le(_LARGEST), Expect("an integer >= 1")]
Seed = Annotated[int, Strict(), Ge(0), Le(_LARGEST), Expect("an integer >= 0 and < 2**63")]
AnyIndex = Annotated[
    int, Strict(), Ge(-_LARGEST), Le(_LARGEST), Expect("an integer (negative counts from the end)")
]
# Keys of a JSON mapping are always text, hence not strict.
LayerKey = Annotated[int, Ge(0), Le(_LARGEST), Expect("a layer, an integer >= 0")]
Finite = Annotated[_RawFloat, Expect("a finite number")]
Fraction = Annotated[
    float, Strict(), Gt(0), Lt(1), AllowInfNan(False), Expect("a number between 0 and 1, both left out")
]

Text = Annotated[str, MinLen(1), Expect("non-empty text")]
Identifier = Annotated[
    str,
    full_match(r"[A-Za-z_][A-Za-z0-9_]*"),
    Expect("a name of letters, digits and underscores that does not begin with a digit"),
]
EnvironmentVariable = Annotated[
    str, full_match(r"[A-Za-z_][A-Za-z0-9_]*"), Expect("the name of an environment variable, not a key")
]
SERVER_URL = full_match(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
Indices = Annotated[
    tuple[Index, ...],
    MinLen(1),
    AfterValidator(different),
    Expect("a non-empty list of different integers >= 0"),
]
SignedIndices = Annotated[
    tuple[AnyIndex, ...],
    MinLen(1),
    AfterValidator(different),
    Expect("a non-empty list of different integers"),
]
FiniteList = Annotated[
    tuple[Finite, ...],
    MinLen(1),
    AfterValidator(different),
    Expect("a non-empty list of different finite numbers"),
]

_STRENGTH = "a finite number, or a non-empty list of finite numbers (one per row of the batch)"
Strength = Annotated[
    Annotated[_RawFloat, Expect(_STRENGTH)] | Annotated[tuple[Finite, ...], MinLen(1), Expect(_STRENGTH)],
    Shaped(list_or_scalar, _STRENGTH),
]
"""A number, or one number per row of the batch."""

_CHOICE = "`all`, or a non-empty list of different integers >= 0"
AllOrIndices = Annotated[
    Annotated[Literal["all"], Expect(_CHOICE)] | Indices,
    Shaped(list_or_scalar, _CHOICE),
]
"""``all``, or chosen 0-based indices."""

Seeds = Annotated[
    tuple[Seed, ...],
    MinLen(1),
    AfterValidator(different),
    Expect("a non-empty list of different integers >= 0"),
]
