"""Registries of models: what a value is, told by its name when it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from subvene.specs._flaws import literal_options, refuse, untagged

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """Marks the base of models that stand in a registry, each under its own name in the field ``field``.

    The registry is looked at when a value is checked: what is registered later is found, too.
    """

    field: str
    registry: Mapping[str, type[BaseModel]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        as_it_is = core_schema.wrap_serializer_function_ser_schema(
            lambda value, serialize: serialize(value), schema=core_schema.any_schema()
        )
        return core_schema.with_info_plain_validator_function(self._check, serialization=as_it_is)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        members = {name: TypeAdapter(member).core_schema for name, member in self.registry.items()}
        return handler(core_schema.tagged_union_schema(members, discriminator=self.field))

    def _check(self, value: object, info: core_schema.ValidationInfo) -> object:
        if isinstance(value, tuple(self.registry.values())):
            return value
        name = value.get(self.field) if isinstance(value, Mapping) else None
        member = self.registry.get(name) if isinstance(name, str) else None
        if member is None:
            refuse("value", [untagged(self.field, value, list(self.registry))])
        return member.model_validate(value, context=info.context)


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
