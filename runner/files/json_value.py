"""JSON values as types: what can be written, digested and recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict, cast

from pydantic import JsonValue


class Fields(TypedDict):
    """Any TypedDict: one that has these fields, which are none, and others; their values are JSON too."""


Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | Fields | None"
"""What can be written. What comes of reading is pydantic's `JsonValue`, every list and object of its own."""


def as_read(value: Mapping[str, Json]) -> dict[str, JsonValue]:
    """A JSON object as whoever reads it will have it.

    Raises:
        ValueError: a number in it is not finite.
    """
    return cast("dict[str, JsonValue]", json.loads(json.dumps(value, allow_nan=False)))
