"""Tables as files: Markdown to read, CSV for other tools, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from subvene.runner.experiments.comparison.composition import composition_lines
from subvene.runner.experiments.comparison.summary import METRICS, in_words
from subvene.runner.files.csv_file import csv_text
from subvene.runner.files.storage import write_json, write_text
from subvene.runner.measures.missing import missing_in_words, missing_verdicts


def write_tables(results: Mapping[str, Any], folder: Path) -> None:
    """Write `results.md`, `results.csv`, `results.json`, `cells.csv`, and what there is of others.

    `answers.csv` is written if there are answers, `composition.csv` if there is a composition.

    Args:
        results: of a comparison, as in its `results.json`.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.md", markdown(results))
    write_json(folder / "results.json", results["rows"])
    write_text(folder / "results.csv", results_csv(results["rows"]))
    write_text(folder / "cells.csv", csv_text(_cell_lines(results["cells"])))
    if composed := results.get("composition"):
        write_text(folder / "composition.csv", csv_text(composition_lines(composed)))
    answers = list(_answer_lines(results))
    if answers:
        write_text(folder / "answers.csv", csv_text(answers))


def markdown(results: Mapping[str, Any]) -> str:
    """The table with what must be known to read it: spread, judge, chosen points, warnings."""
    used = metrics_used(results["rows"])
    heads = [METRICS[m] for m in used]
    missing = any(row.get("missing") for row in results["rows"])
    heads += ["verdicts missing"] if missing else []
    lines = ["| condition | " + " | ".join(heads) + " | n |"]
    lines.append("|---" * (len(heads) + 2) + "|")
    for row in results["rows"]:
        values = [in_words(row["metrics"].get(m)) for m in used]
        if "not_finite" in row:
            values = ["not finite"] * len(used)
        values += [str(row["missing"])] if missing else []
        n = max((summary["n"] for summary in row["metrics"].values()), default=0)
        lines.append(f"| {row['label']} | " + " | ".join(values) + f" | {n} |")
    lines += ["", *(f"- {note}" for note in notes(results))]
    return "\n".join(lines) + "\n"


def notes(results: Mapping[str, Any]) -> list[str]:
    """What must stand beside the table."""
    said = ["mean ± standard deviation over n (seed, fold) cells; a fold's weight is its number of questions"]
    if missing := missing_verdicts(cell["by_question"] for cell in results["cells"]):
        said.insert(0, f"WARNING: {missing_in_words(missing)}")
    if any("kl" in row["metrics"] for row in results["rows"]):
        said.append(
            "CE and KL(original ‖ edited) in nats per token; KL is against the untouched model always"
        )
    if any("true_info" in row["metrics"] for row in results["rows"]):
        said.append(
            "True×Info is the product of the two means, as published; True∧Info the share of answers "
            "that are both"
        )
    said += [judge_in_words(judge) for judge in results.get("judges", [])]
    seen = sum(cell["questions_seen_in_fit"] for cell in results["cells"])
    if seen:
        said.append(
            f"WARNING: {seen} answers are to questions that the fit saw; give the experiment `folds:` for a "
            "test on others"
        )
    said += [
        f"{row['label']}: not finite: {row['not_finite']}" for row in results["rows"] if "not_finite" in row
    ]
    for entry in results.get("grid") or []:
        if "not_finite" in entry:
            where = f"{entry['condition']}, seed {entry['seed']}, fold {entry['fold']}"
            point = ", ".join(f"{path} = {value}" for path, value in entry["point"].items())
            said.append(f"{where}: {point} is not finite on the validation questions and was not chosen from")
    for chosen in results.get("chosen", []):
        point = ", ".join(f"{path} = {value}" for path, value in chosen["point"].items())
        said.append(
            f"chosen on validation questions for {chosen['condition']}, seed {chosen['seed']}, "
            f"fold {chosen['fold']}: {point}"
        )
    return said


def judge_in_words(judge: Mapping[str, Any]) -> str:
    """The judge and its stated agreement with human labels."""
    parts = []
    for aspect, stated in (judge.get("accuracy") or {}).items():
        if not stated:
            parts.append(f"{aspect} not measured")
            continue
        part = f"{aspect} {stated['accuracy']:.3f}"
        if stated.get("majority") is not None:
            part += f" (majority {stated['majority']:.3f})"
        parts.append(part)
    agreement = ", ".join(parts) if parts else "not measured; see `subvene judge check`"
    return f"judge {judge['kind']}: accuracy on held-out human labels: {agreement}"


def metrics_used(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics that any row has, in the table's order."""
    found = {name for row in rows for name in row["metrics"]}
    return [name for name in METRICS if name in found]


def results_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of the table as CSV: mean, sd and n of every metric."""
    return csv_text(_summary_lines(rows))


def _summary_lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"condition": row["condition"], "label": row["label"], "point": json.dumps(row["point"])}
        | {
            f"{name}_{part}": summary[part]
            for name in metrics_used(rows)
            if (summary := row["metrics"].get(name)) is not None
            for part in ("mean", "sd", "n")
        }
        | {"verdicts_missing": row.get("missing", 0)}
        | _if_not_finite(row)
        for row in rows
    ]


def _if_not_finite(one: Mapping[str, Any]) -> dict[str, str]:
    """The column that says why there are no numbers; only there where there are none."""
    return {"not_finite": one["not_finite"]} if "not_finite" in one else {}


def _cell_lines(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    plain = ("condition", "label", "seed", "fold", "questions", "questions_seen_in_fit")
    return [
        {name: cell[name] for name in plain}
        | {"point": json.dumps(cell["point"])}
        | cell["metrics"]
        | _if_not_finite(cell)
        for cell in cells
    ]


def _answer_lines(results: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for cell in results["cells"]:
        for key, found in cell["by_question"].items():
            if "answer" in found:
                place = {name: cell[name] for name in ("condition", "label", "seed", "fold")}
                question = results["questions"][key]["question"]
                yield place | {"key": key, "question": question} | found
