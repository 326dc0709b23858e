"""Labels by hand: out as a CSV without verdicts, in with labels, and the accuracy by them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from subvene.runner.cli.app import app
from subvene.runner.experiments.hand_labels import HandLabelError, labelled, sample_csv
from subvene.runner.experiments.results import Condition, Item, QuestionText, Results

SAID = {
    "a": ("Bees collect nectar.", True, True),
    "b": ("I have no comment.", True, False),
    "c": ("=1+1 legs", False, True),
    "d": ("In Norway.", True, True),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    items = tuple(
        Item(
            key=key,
            text=text,
            scores={"true": true, "true_p": 0.9 if true else 0.2, "info": info, "info_p": float(info)},
        )
        for key, (text, true, info) in SAID.items()
    )
    again = Item(key="a", text=SAID["a"][0], scores={"true": True, "info": True})
    results = Results(
        kind="comparison",
        conditions=(
            Condition(name="one", label="one", items=(*items, Item(key="t", scores={"ce": 1.0}))),
            Condition(name="two", label="two", items=(again,)),
        ),
        questions={key: QuestionText(question=f"Question {key}?") for key in SAID},
    )
    (tmp_path / "run").mkdir()
    results.save(tmp_path / "run")
    return tmp_path / "run"


def read_rows(sample: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(sample.read_text("utf-8").splitlines()))


def filled(sample: Path, labels: dict[str, tuple[str, str]]) -> Path:
    rows = read_rows(sample)
    with sample.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for row in rows:
            true, info = labels.get(row["question"], ("", ""))
            writer.writerow(row | {"true": true, "info": info})
    return sample


def test_labels_go_out_and_come_back_as_a_user_types_it(run: Path, tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    wrote = CliRunner().invoke(app, ["judge", "label", str(run), "-o", str(sample), "-n", "50"])
    assert wrote.exit_code == 0, wrote.output
    rows = read_rows(sample)
    assert sorted(row["question"] for row in rows) == [f"Question {key}?" for key in SAID]
    assert {row["true"] + row["info"] for row in rows} == {""}  # no verdict to be seen
    filled(sample, {"Question a?": ("yes", "Yes"), "Question b?": ("no", "no"), "Question c?": ("no", "")})
    read = CliRunner().invoke(app, ["judge", "label", str(run), "--labels", str(sample), "--json"])
    assert read.exit_code == 0, read.output
    found = json.loads(read.stdout)
    assert (found["true"]["n"], found["info"]["n"]) == (3, 2)
    assert found["true"]["accuracy"] == pytest.approx(2 / 3)  # b is called true, and is not
    assert (found["true"]["accuracy_on_yes"], found["true"]["accuracy_on_no"]) == (1.0, 0.5)
    assert found["info"]["accuracy"] == 1.0
    shown = CliRunner().invoke(app, ["judge", "label", str(run), "--labels", str(sample)])
    assert "0.667" in shown.output
    again = CliRunner().invoke(app, ["judge", "label", str(run), "-o", str(sample)])
    assert again.exit_code != 0
    assert "exists" in again.output


def test_sample_is_the_same_for_a_seed_and_another_for_another(run: Path) -> None:
    results = Results.load(run)
    assert sample_csv(results, 2, 1) == sample_csv(results, 2, 1)
    assert len({sample_csv(results, 2, seed) for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("a-", "b-", 1), "is no answer of this run"),
        (lambda text: text.replace(",,", ",maybe,", 1), "expected yes, no or nothing, found 'maybe'"),
        (lambda text: text.replace("answer,true", "answer,truth"), "`true` is missing"),
        (lambda text: text, "no label yet"),
        (lambda text: text + text.splitlines()[-1] + "\n", "stands there twice"),
    ],
)
def test_what_is_no_labelled_sample_is_refused(run: Path, tmp_path: Path, change, says: str) -> None:  # type: ignore[no-untyped-def]
    sample = tmp_path / "sample.csv"
    sample.write_text(change(sample_csv(Results.load(run), 50)), encoding="utf-8")
    with pytest.raises(HandLabelError, match=says):
        labelled(Results.load(run), sample)


def test_run_without_judged_answers_has_nothing_to_label() -> None:
    with pytest.raises(HandLabelError, match="no answers"):
        sample_csv(Results(kind="comparison"), 5)
