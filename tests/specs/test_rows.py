"""Rows of JSON in which a key stands twice: of two values the last would win in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from subvene.specs.rows import RowsError, file_rows

TWICE = [
    '{"prompt": "a", "label": true, "prompt": "b"}',
    '{"prompt": "a", "prompt": "a"}',
    '{"messages": [{"role": "user", "prompt": "a", "prompt": "b"}]}',
]


@pytest.mark.parametrize("row", TWICE)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_key_that_stands_twice_in_a_row_is_refused(tmp_path: Path, row: str, name: str) -> None:
    path = tmp_path / name
    path.write_text(f'{{"prompt": "c"}}\n{row}\n' if name == "rows.jsonl" else f"[{row}]")
    where = "rows.jsonl:2" if name == "rows.jsonl" else "rows.json"
    with pytest.raises(RowsError, match=f"{where}: not JSON .the key 'prompt' stands there twice"):
        list(file_rows(path))


def test_a_key_of_another_object_may_be_the_same(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "more": {"prompt": "b"}}\n{"prompt": "c"}\n')
    assert [row["prompt"] for _, row in file_rows(tmp_path / "rows.jsonl")] == ["a", "c"]
