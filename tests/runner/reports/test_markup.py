"""Text stays text, wherever it is put."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from subvene.runner.reports.blocks import Column
from subvene.runner.reports.markup import IN_PAGE, Html, data_block, downloads, element, facts, join, table

HOSTILE = "\"'</script><b x=1>&amp;<!--\u2028"


class Read(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, attrs))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    read = Read(element("p", HOSTILE, element("em", "x"), title=HOSTILE, class_="c", hidden=True, id=None))
    assert read.tags == [("p", [("title", HOSTILE), ("class", "c"), ("hidden", None)]), ("em", [])]
    assert "".join(read.text) == HOSTILE + "x"


def test_elements_without_content_are_not_closed() -> None:
    assert element("input", type="search") == '<input type="search">'


def test_markup_with_text_added_is_text() -> None:
    assert join([Html("<b>") + HOSTILE]).startswith("&lt;b&gt;")


@pytest.mark.parametrize(
    "made", [table(HOSTILE, (), [(HOSTILE, HOSTILE)]), facts(HOSTILE, {HOSTILE: HOSTILE})]
)
def test_tables_escape_captions_names_and_values(made: Html) -> None:
    read = Read(made)
    assert not {"b", "script"} & {tag for tag, _ in read.tags}
    assert "".join(read.text) == HOSTILE * 3


def test_data_reads_back_and_cannot_end_its_block() -> None:
    value = json.dumps([HOSTILE], ensure_ascii=False)
    read = Read(data_block(value))
    assert [tag for tag, _ in read.tags] == ["script"]
    assert json.loads("".join(read.text)) == [HOSTILE]
    assert not set("<>&\u2028") & set("".join(read.text))


def test_facts_name_nested_values_by_path() -> None:
    read = Read(facts("caption", {"a": {"b": "text", "c": [1, 2]}, "d": None, "e": False}))
    assert read.text == ["caption", "a.b", "text", "a.c", "[1, 2]", "e", "false"]


def test_small_tables_are_in_the_page_and_large_ones_beside_it() -> None:
    files = {"large.csv": "x" * IN_PAGE, "small.csv": "a,b\n1,2\n"}
    read = Read(downloads(files))
    links = [dict(attributes) for tag, attributes in read.tags if tag == "a"]
    assert links[0] == {"href": "tables/large.csv"}
    assert (links[1]["download"], links[1]["href"][:14]) == ("small.csv", "data:text/csv;")
    assert "(0.2 MB, not in this page: in the folder tables/ beside it)" in "".join(read.text)


@pytest.mark.parametrize(
    ("head", "titled"),
    [
        ("condition", "Condition"),
        ("p", "p"),
        ("p (Holm)", "p (Holm)"),
        ("MC1", "MC1"),
        ("interval of Δ", "Interval of Δ"),
    ],
)
def test_heads_have_a_capital_but_symbols(head: str, titled: str) -> None:
    assert Column(head).titled == titled
