"""LaTeX of the tables that a run writes: booktabs, one tabular for each, without the notes.

A document needs the package booktabs and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from subvene.runner.reports.blocks import Cell, Table

_ESCAPED = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}
_MATHS = {
    "±": r"\pm",
    "×": r"\times",
    "∧": r"\wedge",
    "†": r"\dagger",
    "‖": r"\Vert",
    "→": r"\to",
    "←": r"\leftarrow",
    "↑": r"\uparrow",
    "↓": r"\downarrow",
    "≥": r"\geq",
    "≤": r"\leq",
    "−": "-",
    "Δ": r"\Delta",
    "Σ": r"\Sigma",
    "α": r"\alpha",
    "β": r"\beta",
    "κ": r"\kappa",
    "π": r"\pi",
    "ρ": r"\rho",
    "σ": r"\sigma",
    "τ": r"\tau",
    "⟨": r"\langle",
    "⟩": r"\rangle",
    "·": r"\cdot",
    "²": "^2",
    "≈": r"\approx",
    "∈": r"\in",
    "≠": r"\neq",
    "∞": r"\infty",
    "√": r"\surd",
    "λ": r"\lambda",
    "θ": r"\theta",
    "μ": r"\mu",
    "✓": r"\surd",
    "✗": r"\times",
    "★": r"\star",
}
_TYPED = {
    "’": "'",
    "‘": "`",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "“": "``",
    "”": "''",
    "\N{NO-BREAK SPACE}": "~",
}
_CHARACTERS = {**_ESCAPED, **{char: f"${maths}$" for char, maths in _MATHS.items()}, **_TYPED}
_NUMBER = re.compile(r"[+\-−]?\d[\d,]*(\.\d+)?(e[+\-]?\d+)?%?( ± [\d.]+)?|–|")


def escaped(text: str) -> str:
    """Text as LaTeX prints it; marks of Markdown (bold, code, escapes) are taken away.

    Letters of other scripts stay as they are, as LaTeX reads UTF-8.
    """
    plain = re.sub(
        r"\\([|*_`])", r"\1", re.sub(r"\*\*(.+?)\*\*|`([^`]*)`", lambda m: m[1] or m[2] or "", text)
    )
    made = "".join(_CHARACTERS.get(char, char) for char in plain)
    return re.sub(r"(?<!\\)\$\$", "", made)


def tabulars(tables: Sequence[Table], about: str) -> str:
    """Tables as LaTeX, one tabular each.

    Args:
        tables: at least one.
        about: what they are of, one line, for the comment at the top.
    """
    head = f"% {about}; written by subvene, needs \\usepackage{{booktabs}}"
    return "\n\n".join([head, *(_tabular(table) for table in tables)]) + "\n"


def _tabular(table: Table) -> str:
    rows = table.texts()
    columns = "".join(
        "r"
        if i and all(_is_number(cells[i], row[i]) for cells, row in zip(table.rows, rows, strict=True))
        else "l"
        for i in range(len(table.columns))
    )
    title = [f"% {' '.join(table.title.split())}"] if table.title else []
    lines = [
        *title,
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _line(column.head for column in table.columns),
        r"\midrule",
        *map(_line, rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def _is_number(cell: Cell, text: str) -> bool:
    return not isinstance(cell, str) or _NUMBER.fullmatch(text) is not None


def _line(cells: Iterable[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"
