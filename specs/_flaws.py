"""Pydantic's errors, rewritten where they arise so that one mistake gives one clear error.

A validator knows what it wanted; a translator working afterwards would have to guess. Hence the markers
(``Expect``, ``Shaped``, ``Named``) sit on the types, and the loader only adds lines and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

from pydantic import (
    BaseModel,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from subvene.specs._nodes import MAX_PROBLEMS

Loc = tuple[str | int, ...]
FlawType = Literal["expected", "missing_field", "unknown_field"]


# Nothing longer is a misspelt name, and comparing takes time that grows with the square of the length.
_LONGEST_NAME = 80


def nearest(name: object, valid: Iterable[str]) -> str | None:
    """Returns the valid name closest to a misspelt one, None when nothing is close."""
    text = str(name).lower()
    if len(text) > _LONGEST_NAME:
        return None
    by_lower = {option.lower(): option for option in reversed(list(valid))}
    matches = get_close_matches(text, list(by_lower), n=1)
    return by_lower[matches[0]] if matches else None


def one_of(names: Iterable[object]) -> str:
    """Returns ``one of: a, b, c``."""
    return "one of: " + ", ".join(str(name) for name in names)


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing wrong with a value.

    Attributes:
        loc: Keys and indices that lead to it, from the value being validated.
        expected: What would have been right.
        input: What stands there.
        type: How the loader places it: on the value, on the key, or on the mapping that lacks a field.
        hint: The nearest valid name.
        found: What to show instead of the input, where the input alone would not explain.
    """

    loc: Loc
    expected: str
    input: object
    type: FlawType = "expected"
    hint: str | None = None
    found: str | None = None

    def details(self) -> InitErrorDetails:
        """Returns the flaw in the form that pydantic raises."""
        context = {"expected": self.expected}
        template = "expected {expected}"
        if self.hint is not None:
            context["hint"] = self.hint
            template += "; did you mean '{hint}'?"
        if self.found is not None:
            context["found"] = self.found
        return InitErrorDetails(
            type=PydanticCustomError(self.type, template, context), loc=self.loc, input=self.input
        )


def refuse(title: str, flaws: Iterable[Flaw]) -> NoReturn:
    """Raises one pydantic error that carries all the flaws, each with its own place."""
    raise ValidationError.from_exception_data(title, [flaw.details() for flaw in flaws])


def relay(title: str, errors: Sequence[ErrorDetails | Flaw], skip: int = 0) -> NoReturn:
    """Raises errors again, the first ``skip`` parts of every pydantic place left out."""
    lines = []
    # One more than is shown, which tells that there are more: every level would copy all of them.
    for error in errors[: MAX_PROBLEMS + 1]:
        if isinstance(error, Flaw):
            lines.append(error.details())
            continue
        custom = PydanticCustomError(error["type"], error["msg"], error.get("ctx"))
        lines.append(InitErrorDetails(type=custom, loc=error["loc"][skip:], input=error["input"]))
    raise ValidationError.from_exception_data(title, lines)


@dataclass(frozen=True, slots=True)
class Expect:
    """Marks a type with what it wants, in words: every error of the value itself becomes that sentence."""

    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._check, handler(source))

    def _check(self, value: object, inner: ValidatorFunctionWrapHandler) -> object:
        try:
            return inner(value)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            # A list whose members are all wrong is also reported as too short: the members say it better.
            inside = [line for line in errors if line["loc"]]
            if inside:
                relay("value", inside)
            if errors[0]["type"] == "expected":
                raise
            refuse("value", [Flaw((), self.text, value)])


@dataclass(frozen=True, slots=True)
class Shaped:
    """Marks a union whose member is chosen by the shape of the value, so that only one member complains.

    Attributes:
        choose: Returns the index of the member, None when the value fits none.
        text: What the union as a whole wants.
    """

    choose: Callable[[object], int | None]
    text: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        members = {str(i): handler.generate_schema(member) for i, member in enumerate(get_args(source))}
        union = core_schema.tagged_union_schema(members, discriminator=self._tag)
        return core_schema.no_info_wrap_validator_function(self._check, union)

    def _tag(self, value: object) -> str | None:
        index = self.choose(value)
        return None if index is None else str(index)

    def _check(self, value: object, inner: ValidatorFunctionWrapHandler) -> object:
        try:
            return inner(value)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            if errors[0]["type"].startswith("union_tag"):
                refuse("value", [Flaw((), self.text, value)])
            relay("value", errors, skip=1)


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """Marks the base of models that stand in a registry, each under its own name in the field ``field``.

    The registry is looked at when a value is checked: what is registered later is found, too, and no
    validator is built of what a file does not name.
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
        if isinstance(value, BaseModel):
            name = getattr(value, self.field, None)
        else:
            name = value.get(self.field) if isinstance(value, Mapping) else None
        member = self.registry.get(name) if isinstance(name, str) else None
        if member is None:
            refuse("value", [untagged(self.field, value, list(self.registry))])
        if isinstance(value, member):
            return value
        return member.model_validate(value, context=info.context)


@dataclass(frozen=True, slots=True)
class Named:
    """Marks a union of models of which each carries its own name in the field ``field``."""

    field: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        types = get_args(source) or (source,)
        names = [literal_options(member.model_fields[self.field].annotation)[0] for member in types]
        if len(set(names)) != len(names):
            raise TypeError(f"two classes are registered under one {self.field}: {names}")
        members = Registered(self.field, dict(zip(names, types, strict=True)))
        return handler.generate_schema(Annotated[BaseModel, members])


def untagged(field: str, value: object, names: list[str]) -> Flaw:
    """Returns what is wrong with a value that names none of the members."""
    if not isinstance(value, Mapping):
        return Flaw((), f"a mapping with `{field}`, {one_of(names)}", value)
    if field in value:
        given = value[field]
        return Flaw((field,), one_of(names), given, hint=nearest(given, names))
    for key in value:
        if nearest(key, [field]):
            return Flaw((key,), f"`{field}`, {one_of(names)}", key, "unknown_field", field)
    return Flaw((field,), one_of(names), value, "missing_field")


def literal_options(annotation: Any) -> tuple[str, ...]:
    """Returns the values of a ``Literal``, empty for any other annotation."""
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()
