"""Registries of models: what a value is, told by its name when it is read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from pydantic import BaseModel

from subvene.specs._flaws import Registered as Registered
from subvene.specs._flaws import literal_options

_Model = TypeVar("_Model", bound=BaseModel)


def by_name(field: str, base: type[_Model], found: Iterable[object]) -> dict[str, type[_Model]]:
    """Returns the classes of a base among what is found, each under its own name in the field ``field``.

    Raises:
        TypeError: Two of them have one name.
    """
    registry: dict[str, type[_Model]] = {}
    for cls in found:
        if not isinstance(cls, type) or not issubclass(cls, base) or cls is base:
            continue
        name = literal_options(cls.model_fields[field].annotation)[0]
        if registry.setdefault(name, cls) is not cls:
            raise TypeError(f"two classes are registered under the {field} {name!r}")
    return registry
