"""Two lists of prompts in place of pairs: written out, or in files of the usual forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from subvene.specs import ContrastPrompts, MeanDifferenceSpec, SpecError, load_pairs, resolve_pairs

FILES = {
    "a.txt": "first\r\nsecond\n\n third\n",
    "a.jsonl": '{"instruction": "first"}\n{"prompt": "second"}\n{"question": " third"}\n',
    "a.json": '["first", "second", " third"]',
    "a.csv": 'goal,target,instruction\nfirst,x,y\nsecond,x,y\n" third",x,y\n',
}


def declared(positive: Any) -> ContrastPrompts:
    spec = MeanDifferenceSpec.model_validate(
        {"key": "k", "pairs": {"prompts": {"positive": positive, "negative": ["b"]}}}
    )
    assert isinstance(spec.pairs, ContrastPrompts)
    return spec.pairs


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_prompts_is_the_list_written_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FILES[name], newline="")
    column = {"column": "goal"} if name.endswith("csv") else {}
    read = resolve_pairs(declared({"file": name, **column}), tmp_path)
    assert read == declared(["first", "second", " third"])
    limited = resolve_pairs(declared({"file": name, "limit": 2, **column}), tmp_path)
    assert limited == declared(["first", "second"])


def test_a_file_of_pairs_may_hold_them_and_name_files_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("one\ntwo")
    path = tmp_path / "data" / "pairs.yaml"
    path.write_text("prompts: {positive: {file: a.txt}, negative: [b]}")
    assert load_pairs(path) == declared(["one", "two"])


@pytest.mark.parametrize(
    ("name", "text", "fields", "message"),
    [
        ("no.txt", None, {}, "cannot be read"),
        ("a.txt", "\n", {}, "holds no prompt"),
        ("a.txt", "b", {"column": "c"}, "`column` is of rows"),
        ("a.jsonl", '{"goal": "b"}', {}, r"a\.jsonl:1: expected a column `prompt` .*the columns are: goal"),
        ("a.jsonl", '{"goal": "b"}', {"column": "gaol"}, "no column 'gaol'; there is: goal"),
        ("a.jsonl", '{"prompt": "b", "output": "c"}', {}, "output: a response cannot be used here"),
        ("a.jsonl", '{"prompt": " "}', {}, "expected non-empty text"),
    ],
)
def test_what_is_no_list_of_prompts_is_said_with_its_place(
    tmp_path: Path, name: str, text: str | None, fields: Any, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=message):
        resolve_pairs(declared({"file": name, **fields}), tmp_path)


@pytest.mark.parametrize("positive", [[], [""], {"fil": "a.txt"}, {"file": "a.pdf"}, "a", 3])
def test_what_cannot_be_meant_is_refused(positive: Any) -> None:
    with pytest.raises(ValueError, match="positive"):
        declared(positive)
