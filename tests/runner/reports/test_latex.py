"""LaTeX of the tables that a run writes."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_tables import tables_in

from subvene.runner.reports import latex as latex_module
from subvene.runner.reports.blocks import Items, Table
from subvene.runner.reports.documents import document_files
from subvene.runner.reports.latex import escaped, tabulars

TABLE = Table.of(
    ["condition", "True×Info", "KL", "note"],
    [
        ("a_b & c", "0.412 ± 0.013", "0.10", "50 % of `x_1`"),
        ("**best**", "–", "2,000", "p < 0.05 \\| more"),
    ],
)


def test_a_table_is_booktabs_with_as_many_cells_in_every_line() -> None:
    made = tabulars([TABLE], "results of a comparison run")
    assert made.startswith("% results of a comparison run")
    lines = made.splitlines()
    assert lines[2:5] == [
        r"\begin{tabular}{lrrl}",
        r"\toprule",
        r"condition & True$\times$Info & KL & note \\",
    ]
    assert r"a\_b \& c & 0.412 $\pm$ 0.013 & 0.10 & 50 \% of x\_1 \\" in lines
    assert r"best & -- & 2,000 & p $<$ 0.05 | more \\" in lines
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    for line in lines:
        if line.endswith(r"\\"):
            assert len(re.split(r"(?<!\\)&", line)) == 4
    assert made.count(r"\begin{tabular}") == made.count(r"\end{tabular}") == 1


@pytest.mark.parametrize("text", ["\\", "{", "}", "$", "#", "^", "~", "100%", "a_b", "&", "naïve 日本"])
def test_nothing_of_a_text_is_a_command(text: str) -> None:
    made = escaped(text)
    for command in (r"\textbackslash{}", r"\textasciitilde{}", r"\textasciicircum{}"):
        made = made.replace(command, "")
    assert not re.search(r"(?<!\\)[&%$#_{}~^]", made)
    assert not re.search(r"\\[a-zA-Z]", made)


def test_only_files_with_a_table_have_one_beside_them() -> None:
    made = document_files("results", [TABLE, Items(("a note with | a pipe",))], "comparison")
    assert set(made) == {"results.md", "results.tex"}
    assert len(tables_in(made["results.md"])) == 1
    assert set(document_files("notes", [Items(("no table here",))], "comparison")) == {"notes.md"}


def test_an_escaped_dollar_before_maths_stays_escaped() -> None:
    assert escaped("cost $±1") == r"cost \$$\pm$1"
    assert escaped("α×β") == r"$\alpha\times\beta$"


def words_of(path: Path) -> Iterator[str]:
    """The texts that a source file writes, without its docstrings."""
    tree = ast.parse(path.read_text("utf-8"))
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.value


def test_every_character_of_our_own_words_is_one_that_latex_takes() -> None:
    runner = Path(latex_module.__file__).parents[1]
    sources = [
        *runner.glob("reports/*.py"),
        *runner.glob("experiments/**/*.py"),
        *runner.glob("measures/*.py"),
    ]
    # What markup.py names are ends of lines of JavaScript, which it takes out.
    written = {
        char for path in sources if path.name != "markup.py" for word in words_of(path) for char in word
    }
    assert {"×", "±", "Δ", "ā"} <= written
    # Letters with accents are what inputenc takes.
    letters = {char for char in written if unicodedata.normalize("NFD", char)[0].isascii()}
    assert {char for char in written - letters if not escaped(char).isascii()} == set()
