"""Registries of models: what a value is, told by its name when it is read."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from pydantic import BaseModel

from subvene.specs._flaws import Registered as Registered
from subvene.specs._flaws import literal_options

_Model = TypeVar("_Model", bound=BaseModel)


class Kinds(Mapping[str, type[BaseModel]]):
    """A registry whose classes are imported when they are asked for: a file has few of many kinds.

    Args:
        package: where their modules are.
        classes: by the name that a file uses, `module:Class`.
    """

    def __init__(self, package: str, classes: Mapping[str, str]) -> None:
        self._package, self._classes = package, classes

    def __getitem__(self, name: str) -> type[BaseModel]:
        module, _, cls = self._classes[name].partition(":")
        found: type[BaseModel] = getattr(importlib.import_module(f"{self._package}.{module}"), cls)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)


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
