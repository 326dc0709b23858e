"""The types of single fields: strict, bounded, and each with its own words for what it wants.

Strict because YAML already tells numbers from text: ``layer: "3"`` is a mistake, not a 3.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, MinLen
from pydantic import AfterValidator, AllowInfNan, Strict
from pydantic_core import PydanticCustomError

from subvene.specs._flaws import Expect, Shaped

# 2**63 - 1: the largest seed that torch.manual_seed takes, and far beyond any index.
_LARGEST = 2**63 - 1

_Values = TypeVar("_Values", bound=tuple[Hashable, ...])


def _bounded(value: int) -> int:
    if abs(value) > _LARGEST:
        raise PydanticCustomError("too_large", "too large")
    return value


def _different(values: _Values) -> _Values:
    if len(set(values)) != len(values):
        raise PydanticCustomError("repeated", "repeated")
    return values


def full_match(pattern: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise PydanticCustomError("pattern", "pattern")
        return text

    return AfterValidator(check)


def _list_or_scalar(value: object) -> int:
    return 1 if isinstance(value, list | tuple) else 0


_RawInt = Annotated[int, Strict(), AfterValidator(_bounded)]
_RawFloat = Annotated[float, Strict(), AllowInfNan(False)]

Index = Annotated[_RawInt, Ge(0), Expect("an integer >= 0")]
Count = Annotated[_RawInt, Ge(1), Expect("an integer >= 1")]
Seed = Annotated[_RawInt, Ge(0), Expect("an integer >= 0 and < 2**63")]
AnyIndex = Annotated[_RawInt, Expect("an integer (negative counts from the end)")]
# Keys of a JSON mapping are always text, hence not strict.
LayerKey = Annotated[int, AfterValidator(_bounded), Ge(0), Expect("a layer, an integer >= 0")]
Finite = Annotated[_RawFloat, Expect("a finite number")]

Text = Annotated[str, MinLen(1), Expect("non-empty text")]
Identifier = Annotated[
    str,
    full_match(r"[A-Za-z_][A-Za-z0-9_]*"),
    Expect("a name of letters, digits and underscores that does not begin with a digit"),
]
Indices = Annotated[
    tuple[Index, ...],
    MinLen(1),
    AfterValidator(_different),
    Expect("a non-empty list of different integers >= 0"),
]
SignedIndices = Annotated[
    tuple[AnyIndex, ...],
    MinLen(1),
    AfterValidator(_different),
    Expect("a non-empty list of different integers"),
]
FiniteList = Annotated[
    tuple[Finite, ...],
    MinLen(1),
    AfterValidator(_different),
    Expect("a non-empty list of different finite numbers"),
]

_STRENGTH = "a finite number, or a non-empty list of finite numbers (one per row of the batch)"
Strength = Annotated[
    Annotated[_RawFloat, Expect(_STRENGTH)] | Annotated[tuple[Finite, ...], MinLen(1), Expect(_STRENGTH)],
    Shaped(_list_or_scalar, _STRENGTH),
]
"""A number, or one number per row of the batch."""

_CHOICE = "`all`, or a non-empty list of different integers >= 0"
AllOrIndices = Annotated[
    Annotated[Literal["all"], Expect(_CHOICE)] | Indices,
    Shaped(_list_or_scalar, _CHOICE),
]
"""``all``, or chosen 0-based indices."""
