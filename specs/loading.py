"""From a file to a checked spec, every problem of the file reported at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from subvene.specs._flaws import Flaw, Loc, nearest, one_of, refuse
from subvene.specs._nodes import MAX_PROBLEMS
from subvene.specs.document import Document, Format, parse_document, read_document
from subvene.specs.errors import Problem, SpecError
from subvene.specs.experiment import OWN_FIELDS, SOURCE_OF_TENSORS, ExperimentSpec, InterventionSpec
from subvene.specs.tensors import TensorRef

_SHOWN = 60
_T = TypeVar("_T")

# pydantic's own words are about Python types; these are the ones of a file.
_PLAIN_WORDS = {
    "string_type": "text",
    "string_unicode": "text without lone surrogates",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "bool_type": "true or false",
}


def load_spec(
    path: str | Path, *, own_tensors: bool = False, engine: str | None = None
) -> InterventionSpec | ExperimentSpec:
    """Reads and checks a spec; an ExperimentSpec if the file has any of an experiment's own fields.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.json`` file.
        own_tensors: The file belongs to an artifact: a tensor reference may leave its ``file`` out, and
            may name no file outside the artifact's folder.
        engine: ``vllm`` or the URL of a server, in place of the file's ``engine:``.

    Raises:
        SpecError: With every problem of the file.
    """
    return _spec(read_document(path), own_tensors, engine)


def load_placed(path: str | Path) -> tuple[InterventionSpec | ExperimentSpec, Document]:
    """Reads and checks a spec, and returns it with the document, which knows where everything stands.

    Raises:
        SpecError: As of ``load_spec``.
    """
    document = read_document(path)
    return _spec(document, own_tensors=False), document


def parse_spec(
    text: str, file: str = "<string>", format: Format = "yaml", *, own_tensors: bool = False
) -> InterventionSpec | ExperimentSpec:
    """Checks the text of a spec.

    Args:
        text: YAML or JSON.
        file: What problems call the file.
        format: ``yaml`` or ``json``.
        own_tensors: As in ``load_spec``.

    Raises:
        SpecError: With every problem of the text.
    """
    return _spec(parse_document(text, file, format), own_tensors)


def spec_of(
    declared: Mapping[str, object], what: str = "<mapping>", *, own_tensors: bool = False
) -> InterventionSpec | ExperimentSpec:
    """Checks a spec that is given as a mapping; problems name its fields, and no lines.

    Args:
        declared: What a file would hold; numbers of numpy are numbers.
        what: What problems call it.
        own_tensors: As in ``load_spec``.

    Raises:
        SpecError: With every problem.
    """
    try:
        return parse_spec(json.dumps(declared, default=_plain), what, "json", own_tensors=own_tensors)
    except SpecError as error:
        raise SpecError(replace(one, line=None, column=None) for one in error.problems) from None


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's; anything else as its text, for the checks."""
    return value.item() if hasattr(value, "item") else str(value)


def _spec(
    document: Document, own_tensors: bool, engine: str | None = None
) -> InterventionSpec | ExperimentSpec:
    kind = ExperimentSpec if _is_experiment(document.data) else InterventionSpec
    given = (
        {}
        if engine is None or kind is InterventionSpec
        else {"engine": engine if engine == "vllm" else {"url": engine}}
    )
    spec = checked(document, lambda data: kind.model_validate({**data, **given}))
    flaws = list(_tensor_flaws(spec, own_tensors))
    if flaws:
        try:
            refuse("spec", flaws)
        except ValidationError as error:
            raise _located(error, document) from None
    return spec


def _is_experiment(data: Mapping[str | int, object]) -> bool:
    fields = tuple(ExperimentSpec.model_fields)
    return any(
        name in OWN_FIELDS or (name not in fields and nearest(name, fields) in OWN_FIELDS) for name in data
    )


def _tensor_flaws(spec: InterventionSpec, own_tensors: bool) -> Iterator[Flaw]:
    for loc, ref in spec.tensor_refs():
        if not own_tensors:
            if ref.file is None and not isinstance(spec, ExperimentSpec):
                yield Flaw((*loc, "file"), SOURCE_OF_TENSORS, ref, "missing_field")
        elif ref.file is not None and _leaves_folder(ref.file):
            yield Flaw((*loc, "file"), "a path within the artifact's folder", ref.file)


def _leaves_folder(file: str) -> bool:
    posix, windows = PurePosixPath(file), PureWindowsPath(file)
    # An artifact is made on one system and opened on another: a path must stay inside on both.
    return posix.is_absolute() or bool(windows.anchor) or ".." in windows.parts


def checked(document: Document, validate: Callable[[Mapping[str | int, object]], _T]) -> _T:
    """Returns what a document says, as ``validate`` makes it of its data.

    Raises:
        SpecError: With every problem of the document, each at its place.
    """
    try:
        return validate(document.data)
    except ValidationError as error:
        raise _located(error, document) from None


def _located(error: ValidationError, document: Document) -> SpecError:
    errors = error.errors(include_url=False)
    problems = [_problem(details, document) for details in errors[:MAX_PROBLEMS]]
    problems.sort(key=lambda problem: (problem.line or 0, problem.column or 0))
    if len(errors) > MAX_PROBLEMS:
        last, expected = problems[-1], f"at most {MAX_PROBLEMS} problems in a file"
        problems.append(Problem(document.file, last.line, last.column, "", expected, "more than that"))
    return SpecError(problems)


def _problem(error: ErrorDetails, document: Document) -> Problem:
    loc: Loc = error["loc"]
    at_key = error["type"] == "unknown_field"
    if loc and loc[-1] == "[key]":
        loc, at_key = loc[:-1], True
    place = document.locate(loc)
    mark = place.value
    if error["type"] == "missing_field":
        mark = document.locate(loc[:-1]).value
    elif at_key and place.key is not None:
        mark = place.key
    context = error.get("ctx", {})
    expected, hint = _expectation(error)
    found = context.get("found") or (
        "nothing" if error["type"] == "missing_field" else _shown(error["input"])
    )
    return Problem(document.file, mark.line, mark.column, place.path, expected, found, hint)


def _expectation(error: ErrorDetails) -> tuple[str, str | None]:
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        options = [option.strip("'") for option in context["expected"].replace(" or ", ", ").split(", ")]
        given = error["input"]
        return one_of(options), nearest(given, options) if isinstance(given, str) else None
    if "expected" in context:
        return context["expected"], context.get("hint")
    return _PLAIN_WORDS.get(error["type"], error["msg"]), None


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, TensorRef):
        value = value.model_dump(exclude_none=True)
    try:
        text = repr(value)
    except ValueError:
        return "a number of very many digits"
    if len(text) > _SHOWN:
        text = text[: _SHOWN - 1] + "…"
    if isinstance(value, dict):
        return f"the mapping {text}" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"the list {text}" if value else "an empty list"
    return text
