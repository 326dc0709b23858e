"""Texts of every source: what is read, and what is said where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from subvene.runner.data.texts import TextsError, read_texts, texts_sha256
from subvene.specs import SpecError, TextsSpec, parse_spec

ROWS = [{"text": "the sun is good", "body": "a b"}, {"text": "hello\nworld \u2028 you", "body": "c"}]


def test_the_sample_is_a_hundred_different_paragraphs_of_plain_text() -> None:
    texts = read_texts(TextsSpec(), Path("nowhere"))
    assert len(texts) == len(set(texts)) == 100
    assert len({text[:20] for text in texts}) > 95
    assert all(70 < len(text.split()) < 125 for text in texts)
    assert all(text.isascii() and text[0] in '"ABCDEFGHIJKLMNOPQRSTUVW' for text in texts)
    assert read_texts(TextsSpec(), Path(), 3) == texts[:3]


@pytest.mark.slow
def test_the_sample_fills_the_tokens_that_are_read(smollm2: tuple[Any, Any]) -> None:
    lengths = [len(smollm2[1](text)["input_ids"]) for text in read_texts(TextsSpec(), Path())]
    assert min(lengths) >= 100
    assert max(lengths) <= 150


def test_paragraphs_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n\none line\n  second \n \n\nother\r\n\r\nlast")
    assert read_texts(TextsSpec(file="t.txt"), tmp_path) == ["one line\n  second", "other", "last"]
    assert read_texts(TextsSpec(file="t.txt"), tmp_path, 2) == ["one line\n  second", "other"]
    assert read_texts(TextsSpec(file=str(tmp_path / "t.txt")), Path("elsewhere"), 1) == ["one line\n  second"]


@pytest.mark.parametrize("field", ["text", "body"])
def test_rows_of_json_files(tmp_path: Path, field: str) -> None:
    wanted = [row[field] for row in ROWS]
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    (tmp_path / "t.jsonl").write_text(lines + "\n")
    (tmp_path / "t.json").write_text(json.dumps(ROWS, indent=1))
    (tmp_path / "plain.json").write_text(json.dumps(wanted))
    (tmp_path / "plain.jsonl").write_text("\n".join(map(json.dumps, wanted)))
    for name in ("t.jsonl", "t.json", "plain.json", "plain.jsonl"):
        assert read_texts(TextsSpec(file=name, field=field), tmp_path) == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, r"gone\.txt: cannot be read \(No such file.*beside the spec"),
        ("t.txt", b" \n\n", r"t\.txt: holds no text"),
        ("t.txt", b"a\xff", r"t\.txt: not UTF-8 text \(byte 1"),
        ("t.jsonl", b'{"text": "a"}\n\n{"b": "b", "id": 3}', r"jsonl:3: no field 'text'; there is: b, id"),
        ("t.jsonl", b'{"text": "a"}\n{"text": " "}', r't\.jsonl:2: text: expected non-empty text, found " "'),
        ("t.jsonl", b'{"text": 3}', r"t\.jsonl:1: text: expected non-empty text, found 3"),
        ("t.jsonl", b'{"text": "a"}\n{"text": ', r"t\.jsonl:2: not JSON"),
        ("t.jsonl", b'{"text": "a"}\n[1]', r"t\.jsonl:2: expected non-empty text, found \[1\]"),
        ("t.json", b'{"text": "a"}', r't\.json: expected a list of rows, found \{"text'),
        ("t.json", b'["a",\n "b",\n {"text": null}]', r"json: \[2\]: text: expected .* found null"),
        ("t.json", b'["a",\n "b"', r"t\.json: not JSON \(.*line 2, column"),
        ("t.json", b"[]", r"t\.json: holds no text"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TextsError, match=message):
        read_texts(TextsSpec(file=name), tmp_path)


def test_a_dataset_is_streamed_up_to_the_limit(tmp_path: Path) -> None:
    """A folder of data files is a dataset, too, and needs no network."""
    rows = [{"text": f"text {i}", "n": i} for i in range(5)]
    rows.insert(1, {"text": "  ", "n": 9})
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = TextsSpec(dataset=str(tmp_path / "corpus"))
    assert read_texts(spec, Path(), 3) == ["text 0", "text 1", "text 2"]
    assert read_texts(spec, Path()) == [f"text {i}" for i in range(5)]
    for change, message in (
        ({"field": "body"}, r"dataset .*corpus, split train, row 0: no field 'body'; there is: n, text"),
        ({"field": "n"}, "expected non-empty text, found 0"),
        (
            {"split": "test"},
            r"dataset .*corpus' \(subset none, split test\) cannot be read: .*give a file",
        ),
        ({"subset": "en"}, "cannot be read"),
    ):
        with pytest.raises(TextsError, match=message):
            read_texts(spec.model_copy(update=change), Path(), 3)


def test_the_hash_is_of_content_and_order() -> None:
    assert texts_sha256(["a", "b"]) != texts_sha256(["b", "a"]) != texts_sha256(["ba"])
    assert texts_sha256(["a", "b"]) == texts_sha256(("a", "b"))


@pytest.mark.parametrize(
    ("texts", "path", "expected"),
    [
        ({"file": "a.csv"}, "texts.file", "a path that ends in .txt, .jsonl or .json"),
        ({"file": ".txt"}, "texts.file", "a path that ends in .txt, .jsonl or .json"),
        ({"file": "a.txt", "dataset": "b"}, "texts.file", "either `file` or `dataset`"),
        ({"file": "a.txt", "split": "b"}, "texts.split", "`dataset` beside it"),
        ({"revision": "main"}, "texts.revision", "`dataset` beside it"),
    ],
)
def test_specs_that_name_no_texts(texts: dict[str, str], path: str, expected: str) -> None:
    declared = {"kind": "divergence", "texts": texts}
    edit = {"kind": "low_rank_edit", "layer": 0, "write_heads": "all"}
    given = {"subvene": 1, "model": {"name": "a"}, "interventions": [edit], "evaluate": [declared]}
    with pytest.raises(SpecError) as caught:
        parse_spec(yaml.safe_dump(given))
    (problem,) = caught.value.problems
    assert problem.path == f"evaluate[0].{path}"
    assert problem.expected == expected
