"""Rows as facts, with the names that the data sets of causal tracing give to the same things."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from subvene.specs.facts import Fact, InlineFacts
from subvene.specs.rows import Fail, Row, RowsError, short

_COLUMNS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "subject": ("subject",),
    # As the file of known facts of Meng et al. (2022) has it.
    "answer": ("answer", "attribute"),
    "foil": ("foil",),
    "swap": ("swap",),
}
_NEEDED = ("prompt", "subject", "answer")


class ReadFacts(InlineFacts):
    """Facts that were read from rows, and which columns were not."""

    _unread: tuple[str, ...] = ()

    @property
    def unread(self) -> tuple[str, ...]:
        """Columns that nobody read."""
        return self._unread


def facts_of(rows: Iterable[Row], source: str, fail: Fail = RowsError) -> ReadFacts:
    """Facts of rows, each with where it stands.

    Raises:
        RowsError: or what `fail` makes: a row is no fact, or there are no rows.
    """
    unread: dict[str, None] = {}
    facts = tuple(_fact(row, where, unread, fail) for where, row in rows)
    if not facts:
        raise fail(f"{source}: holds no fact")
    read = ReadFacts(facts=facts)
    read._unread = tuple(unread)
    return read


def _fact(row: Any, where: str, unread: dict[str, None], fail: Fail) -> Fact:
    if not isinstance(row, Mapping):
        raise fail(f"{where}: expected a row with columns, found {short(row)}")
    fields: dict[str, Any] = {}
    for field, names in _COLUMNS.items():
        given = {name: row[name] for name in names if row.get(name) not in (None, "")}
        if len(set(map(str, given.values()))) > 1:
            raise fail(f"{where}: {' and '.join(given)} say different things; keep one of them")
        if given:
            fields[field] = next(iter(given.values()))
        elif field in _NEEDED:
            listed = ", ".join(map(str, row)) or "none"
            wanted = " or ".join(f"`{name}`" for name in names)
            raise fail(f"{where}: expected a column {wanted}; the columns are: {listed}")
    known = {name for names in _COLUMNS.values() for name in names}
    unread.update(dict.fromkeys(str(name) for name in row if name not in known))
    try:
        return Fact.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        context = first.get("ctx", {})
        column = ".".join(map(str, first["loc"]))
        found = context.get("found", short(first["input"]))
        raise fail(
            f"{where}: {column}: expected {context.get('expected', first['msg'])}, found {found}"
        ) from None
