"""The site's reference, made of the code: every field of a spec, every command, every public name.

Fields come from the JSON Schema that editors read, commands from the command line itself. `docs/hooks.py`
puts the pages into the site; nothing of them is kept in the repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import subvene
import subvene.runner
import subvene.specs

ROOT = Path(__file__).resolve().parents[1]
Schema: TypeAlias = Mapping[str, Any]

GROUPS = {
    "interventions": ("Interventions", "list of [interventions](#interventions)"),
    "fit": ("Recipes", "a [recipe](#recipes), or a list of them"),
    "evaluate": ("Evaluations", "list of [evaluations](#evaluations)"),
}
"""A field of a file whose alternatives have a heading of their own, and what its type is called."""


def fields_page() -> str:
    """Every field that a file may have, by where it stands, with type, bounds and default."""
    schema = json.loads((ROOT / "examples" / "subvene.schema.json").read_text("utf-8"))
    parts: dict[str, Schema] = schema["$defs"]
    lines = [
        "# Every field of a file",
        "",
        "Made of `subvene schema`. A field without a default must be given.",
        "",
    ]
    lines += ["## A file", "", *_table(schema, {field: words for field, (_, words) in GROUPS.items()})]
    seen: set[str] = set()
    for field, (title, _) in GROUPS.items():
        lines += [f"## {title}", ""]
        for name in dict.fromkeys(_named_in(schema["properties"][field])):
            seen.add(name)
            lines += _section(name, parts[name])
    lines += ["## Parts of these", ""]
    for name in sorted(parts.keys() - seen):
        if "properties" in parts[name]:
            lines += _section(name, parts[name])
    return "\n".join(lines)


def _section(name: str, part: Schema) -> list[str]:
    fixed = [(key, field["const"]) for key, field in part["properties"].items() if "const" in field]
    heading = f"`{fixed[0][0]}: {fixed[0][1]}`" if fixed else f"`{name}`"
    about = str(part.get("description", "")).strip()
    return [f"### {heading} {{ #{name} }}", "", about, "", *_table(part)]


def _table(part: Schema, types: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    required = part.get("required", ())
    lines = ["| field | type | default | |", "|---|---|---|---|"]
    for name, field in part["properties"].items():
        default = (
            "**required**"
            if name in required
            else f"`{json.dumps(field.get('default'), ensure_ascii=False)}`"
        )
        words = " ".join(str(field.get("description", "")).split())
        lines.append(_row(f"`{name}`", types.get(name) or _type(field), default, words))
    return [*lines, ""]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: Schema) -> str:
    """A field's type in words, with its bounds; parts that have a section are links to it."""
    if "$ref" in field:
        name = str(field["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name})" if name != "JsonValue" else "any value"
    if "const" in field or "enum" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if options := field.get("anyOf") or field.get("oneOf"):
        words = [_type(option) for option in options if option.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if field.get("type") == "array":
        items = field.get("items")
        return "list of " + _type(items) if isinstance(items, Mapping) else "list"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        return "mapping to " + _type(values) if isinstance(values, Mapping) else "mapping"
    return f"{field.get('type', 'any value')}{_bounds(field)}"


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_LARGEST = 2**63 - 1


def _bounds(field: Schema) -> str:
    given = [
        f"{sign} {field[name]}" for name, sign in _BOUNDS.items() if field.get(name) not in (None, _LARGEST)
    ]
    return f" {', '.join(given)}" if given else ""


def _named_in(field: object) -> Iterator[str]:
    """The names of all parts that a field's schema refers to, in their order."""
    if isinstance(field, Mapping):
        if "$ref" in field:
            yield str(field["$ref"]).rpartition("/")[2]
        for key, value in field.items():
            if key != "discriminator":
                yield from _named_in(value)
    elif isinstance(field, list):
        for value in field:
            yield from _named_in(value)


def commands_page() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    from subvene.runner.cli.app import COMMANDS, _loaded

    lines = [
        "# Every command",
        "",
        "[The command line](../cli.md) has what they share: exit codes, what is printed where.",
        "",
    ]
    for name in COMMANDS:
        lines += _command(f"subvene {name}", _loaded(name))
    return "\n".join(lines)


def _command(name: str, command: Any, level: int = 2) -> list[str]:
    lines = [f"{'#' * level} `{name}`", "", *_paragraphs(command.help or ""), ""]
    context = command.context_class(command)
    records = [record for option in command.params if (record := option.get_help_record(context))]
    if records:
        lines += ["| | |", "|---|---|"]
        lines += [_row(f"`{names}`", " ".join(words.split())) for names, words in records]
        lines.append("")
    for sub, made in getattr(command, "commands", {}).items():
        lines += _command(f"{name} {sub}", made, level + 1)
    return lines


def _paragraphs(text: str) -> Iterable[str]:
    return (line.strip() for line in text.replace("\f", "\n").splitlines())


def api_page() -> str:
    """The public names, each with its signature and docstring, which mkdocstrings reads from the source."""
    lines = ["# The Python interface", ""]
    lines += ["`from subvene import …` gives what most programs need; importing it loads no torch.", ""]
    parts = {name: part for part in (subvene.specs, subvene.runner) for name in part.__all__}
    for name in sorted(parts.keys() & set(subvene.__all__), key=_rank):
        home = getattr(parts[name], name)
        lines += [f"## {name}", "", f"::: {home.__module__}.{home.__qualname__}"]
        lines += ["    options: {inherited_members: true}"] * (name == "IntervenedModel")
        lines.append("")
    return "\n".join(lines)


def _rank(name: str) -> tuple[bool, bool, str]:
    """What a reader looks for first: the model and `fit`, other functions and classes, then errors."""
    return name.endswith("Error"), name not in ("IntervenedModel", "fit"), name.lower()


PAGES: dict[str, Callable[[], str]] = {
    "reference/fields.md": fields_page,
    "reference/commands.md": commands_page,
    "reference/python.md": api_page,
}
