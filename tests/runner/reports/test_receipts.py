"""The source side of receipts: what several runs read of one source, added up."""

from __future__ import annotations

from typing import Any

from subvene.runner.reports.receipts import sources


def part(source: dict[str, Any] | None) -> dict[str, Any]:
    return {"name": "swap"} if source is None else {"name": "swap", "source": source}


def source(**fields: Any) -> dict[str, Any]:
    whole = {"name": "other", "place": "block_output[1]", "rows": 2, "tokens": 4, "first": 3, "last": 5}
    return {**whole, "mean_distance": 0.5, "rows_fed": 2, "rows_equal": 0, **fields}


def test_runs_of_one_source_are_added_up() -> None:
    more = source(rows=6, tokens=6, first=None, last=None, mean_distance=0.9, rows_fed=6, rows_equal=1)
    elsewhere = source(place="block_output[0]", first=0, last=0)
    parts = [part(source()), part(None), part(more), part(elsewhere)]
    found = sources(("Condition",), [(("edited", "swap"), parts)])
    assert found is not None
    rows = str(found).split("<tr>")
    (one,) = [row for row in rows if "block_output[1]" in row]
    # (2 × 0.5 + 6 × 0.9) / 8, each run weighed by the rows that it fed.
    for cell in ("10 in 8 rows", "3 to 5", "0.800", "1 of 8"):
        assert f">{cell}</td>" in one
    (other,) = [row for row in rows if "block_output[0]" in row]
    assert ">0 to 0</td>" in other


def test_without_sources_there_is_no_table() -> None:
    assert sources(("Condition",), [(("edited", "swap"), [part(None)])]) is None
