"""Markup in which text cannot become markup: whatever is not `Html` is escaped where it is put in."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go

from subvene.runner.files.json_value import Fields, Json
from subvene.runner.reports.blocks import Over, Table

_WITHOUT_CONTENT = ("input",)
IN_PAGE = 200_000
"""Characters of tables that a page has in it, so that it stays small however many answers a run has."""
_MEDIA_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".md": "text/markdown",
    ".tex": "application/x-tex",
}


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        drawn: by plotly.
        about: what it shows.
        name: of its file, without an ending; the page gives it, by section.
    """

    drawn: go.Figure
    about: str
    name: str = ""


class Html(str):
    """Markup. Every other string is text.

    Attributes:
        figures: that stand in it, in their order.
    """

    figures: tuple[Figure, ...] = ()


def join(parts: Iterable[str]) -> Html:
    """Text and markup one after the other."""
    parts = list(parts)
    made = Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))
    made.figures = tuple(figure for part in parts if isinstance(part, Html) for figure in part.figures)
    return made


def element(name: str, *children: str, **attributes: str | bool | None) -> Html:
    """An element.

    Args:
        name: `p`, `table`, …
        *children: text, which is escaped, and markup.
        **attributes: `class_` is `class`, `data_x` is `data-x`; True gives one without a value, None and
            False none.
    """
    opened = name
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            opened += f" {key}"
        elif value is not None and value is not False:
            opened += f' {key}="{html.escape(value)}"'
    content = join(children)
    made = Html(f"<{opened}>" if name in _WITHOUT_CONTENT else f"<{opened}>{content}</{name}>")
    made.figures = content.figures
    return made


def items(*lines: str) -> Html:
    """A list."""
    return element("ul", *(element("li", line) for line in lines))


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = "") -> Html:
    """A table whose first cell names the row, in a box of its own that scrolls if it is too wide.

    Args:
        caption: what the table shows.
        columns: one heading a column; none for a table of names and values.
        rows: one text or markup a column.
        class_: its look.
    """
    head = (
        [element("thead", element("tr", *(element("th", c, scope="col") for c in columns)))]
        if columns
        else []
    )
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest))
        for first, *rest in rows
    ]
    whole = element(
        "table",
        element("caption", element("span", caption)),
        *head,
        element("tbody", *body),
        class_=class_ or None,
    )
    return element("div", whole, class_="scroll", role="region", tabindex="0", aria_label=caption)


def shown(block: Table, caption: str | None = None) -> Html:
    """A block's table with its numbers under each other, spreads in small type.

    Args:
        block: the table.
        caption: left out: the block's title.
    """
    rows = [
        [_in_cell(said, below=isinstance(cell, Over)) for said, cell in zip(row, cells, strict=True)]
        for row, cells in zip(block.parts(), block.rows, strict=True)
    ]
    heads = [column.titled for column in block.columns]
    return table(block.title if caption is None else caption, heads, rows, class_="numbers")


def facts(caption: str, values: Mapping[str, Json]) -> Html:
    """A nested mapping as a table of names and values."""
    rows = [(name, element("code", value)) for name, value in _flat(values)]
    return table(caption, (), rows, class_="facts")


def data_block(value: str) -> Html:
    """JSON text for a script to read; nothing in it can end the block."""
    for character in "<>&\u2028\u2029":
        value = value.replace(character, f"\\u{ord(character):04x}")
    return Html(f'<script type="application/json">{value}</script>')


def plot(figure: go.Figure, about: str) -> Html:
    """A figure with a caption; the page's script draws it."""
    # The page gives figures their ink; plotly's own look is for white paper, and long.
    figure.update_layout(template=go.layout.Template(), font={"family": "system-ui, sans-serif"})
    box = element("div", class_="plot")
    made = element("figure", box, data_block(str(figure.to_json())), element("figcaption", about))
    made.figures = (Figure(figure, about),)
    return made


def side_by_side(*plots: Html) -> Html:
    """Figures in as many columns as there is room for."""
    return element("div", *plots, class_="side-by-side")


def folded(title: str, content: Html) -> Html:
    """What is seen when its title is clicked."""
    return element("details", element("summary", title), content)


def download(name: str, kind: str, content: str) -> Html:
    """A link to a file that is in the page itself."""
    encoded = base64.b64encode(content.encode()).decode()
    return element("a", name, download=name, href=f"data:{kind};charset=utf-8;base64,{encoded}")


def downloads(files: Mapping[str, str]) -> Html:
    """Links to tables, CSV, Markdown or LaTeX by their names: the smaller ones are in the page itself.

    Args:
        files: what lies in `tables/`, beside the page.
    """
    inside: set[str] = set()
    room = IN_PAGE
    for name in sorted(files, key=lambda name: len(files[name])):
        room -= len(files[name])
        if room >= 0:
            inside.add(name)
    return items(
        *(
            download(name, _MEDIA_TYPES[Path(name).suffix], text)
            if name in inside
            else join(
                [
                    element("a", name, href=f"tables/{name}"),
                    f" ({len(text) / 1e6:.1f} MB, not in this page: in the folder tables/ beside it)",
                ]
            )
            for name, text in files.items()
        )
    )


def _in_cell(said: Over, *, below: bool) -> Html:
    if not said.detail:
        return join([said.main])
    if below:
        return join([said.main, element("div", element("small", said.detail))])
    return join([said.main, element("small", f" {said.detail}")])


def _flat(values: Mapping[str, Json] | Fields, path: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        whole = f"{path}{name}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{whole}.")
        elif isinstance(value, str):
            yield whole, value
        elif value is not None:
            yield whole, json.dumps(value, ensure_ascii=False)


def with_small_spread(cell: str) -> str:
    """`mean ± spread`, the spread in small type; other text as it is."""
    mean, plus_minus, sd = cell.partition(" ± ")
    return join([mean, element("small", plus_minus + sd)]) if sd else cell
