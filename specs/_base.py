"""The base of every model of a spec: closed, frozen, and clear about unknown and missing fields."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import ErrorDetails

from subvene.specs._flaws import Expect, Flaw, literal_options, nearest, one_of, refuse, relay

_FIRST = ("subvene", "kind", "recipe", "measure", "rule", "name", "class_name")
_LAST = ("positions", "when", "during", "must_open")


class SpecModel(BaseModel):
    """A mapping of a spec: no field beyond the declared ones, and no change once it is read.

    Attributes:
        expects: What stands in an error where something else than this mapping was given.
        also_called: Names that people give to a field by habit, and the field's own name.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        # Built when first used: the command line imports every model and often needs none.
        defer_build=True,
    )
    expects: ClassVar[str] = "a mapping"
    also_called: ClassVar[dict[str, str]] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, Mapping | cls):
            refuse(cls.__name__, [Flaw((), cls.expects, data)])
        try:
            return handler(data)
        except ValidationError as error:
            relay(cls.__name__, cls._explained(error.errors(include_url=False), data))

    def _repr_html_(self) -> str:
        """What a notebook shows: the fields that were set, as a JSON file would hold them."""
        from html import escape

        return f"<pre>{escape(self.model_dump_json(exclude_unset=True, by_alias=True, indent=2))}</pre>"

    @classmethod
    def of_defaults(cls) -> Self:
        """Returns what an empty mapping stands for, a field's default; nothing is checked, or built for it.

        Raises:
            TypeError: A field has no default.
        """
        if required := [name for name, field in cls.model_fields.items() if field.is_required()]:
            raise TypeError(f"{cls.__name__} has no default for {', '.join(required)}")
        return super().model_construct()

    @classmethod
    def field_order(cls) -> list[str]:
        """Returns the fields' names as a person would write them: what it is first, at which tokens last."""
        names = list(cls.model_fields)
        first = [name for name in _FIRST if name in names]
        return [*first, *(name for name in names if name not in _FIRST + _LAST)] + [
            name for name in _LAST if name in names
        ]

    @classmethod
    def _explained(cls, errors: list[ErrorDetails], data: Any) -> list[ErrorDetails | Flaw]:
        """Returns the errors with those about this model's own fields put in words.

        A misspelt required field is one mistake, though pydantic reports an unknown and a missing one.
        """
        declared = {name: cls.model_fields[name] for name in cls.field_order()}
        fields = {str(field.validation_alias or name): field for name, field in declared.items()}
        missing = {str(e["loc"][0]) for e in errors if e["type"] == "missing" and len(e["loc"]) == 1}
        absent = [name for name in fields if name not in data]
        explained: list[ErrorDetails | Flaw] = []
        for error in errors:
            if len(error["loc"]) == 1 and error["type"] in ("extra_forbidden", "invalid_key"):
                key = error["loc"][0]
                hint = cls.also_called.get(str(key))
                if hint is None:
                    hint = nearest(key, [*missing, *(name for name in absent if name not in missing)])
                missing.discard(hint or "")
                explained.append(Flaw((key,), one_of(fields), key, "unknown_field", hint))
        for error in errors:
            own = len(error["loc"]) == 1
            if own and error["type"] in ("extra_forbidden", "invalid_key"):
                continue
            if own and error["type"] == "missing":
                name = str(error["loc"][0])
                if name in missing:
                    explained.append(Flaw((name,), expected_of(fields[name]), data, "missing_field"))
                continue
            explained.append(error)
        return explained


def expected_of(field: FieldInfo) -> str:
    """Returns in words what a field wants."""
    for mark in field.metadata:
        if isinstance(mark, Expect):
            return mark.text
    if isinstance(field.annotation, type) and issubclass(field.annotation, SpecModel):
        return field.annotation.expects
    options = literal_options(field.annotation)
    return one_of(options) if options else "a value"
