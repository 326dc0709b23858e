"""Counterfactual rows are the same from every form in which people have them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from datasets import Dataset
from known_mechanism import known_rows

from subvene.runner.data.counterfactuals import (
    counterfactuals_sha256,
    given_counterfactuals,
    read_counterfactuals,
)
from subvene.specs.counterfactuals import CounterfactualsSpec


def test_a_csv_file_a_data_set_and_a_list_give_the_rows_of_a_jsonl_file(tmp_path: Path) -> None:
    rows = list(known_rows())
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    wanted = read_counterfactuals(CounterfactualsSpec(file="rows.jsonl"), tmp_path)
    found = {
        "csv": read_counterfactuals(CounterfactualsSpec(file="rows.csv"), tmp_path),
        "data set": given_counterfactuals(CounterfactualsSpec(file="rows.csv"), Dataset.from_list(rows)),
        "list": given_counterfactuals(CounterfactualsSpec(file="rows.csv"), rows),
    }
    assert len(wanted) == len(rows)
    for form, read in found.items():
        assert counterfactuals_sha256(read) == counterfactuals_sha256(wanted), form
