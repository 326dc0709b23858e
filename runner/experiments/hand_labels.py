"""Labels by hand for a sample of a run's answers, and what its judge is worth by them.

The judge's stated accuracy is on other models' answers; on this run's it is known once somebody has read
some. The sample is a CSV without the judge's verdicts, so that whoever labels does not see them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from subvene.runner.experiments.results import Condition, Item, Results
from subvene.runner.files.csv_file import csv_text
from subvene.runner.files.ledger import digest
from subvene.runner.judges import Judgement
from subvene.runner.judges.training.agreement import Agreement, agreement
from subvene.specs import SubveneError
from subvene.specs.rows import file_rows

#: The columns to fill in, by what tables call the quality.
ASPECTS = ("true", "info")
_WORDS = {
    "yes": True,
    "y": True,
    "true": True,
    "1": True,
    "no": False,
    "n": False,
    "false": False,
    "0": False,
}
_COLUMNS = ("id", "question", "answer", *ASPECTS)


class HandLabelError(SubveneError, ValueError):
    """A file of labels by hand is none, or of another run."""


def sample_csv(results: Results, n: int, seed: int = 0) -> str:
    """A sample of the answers that were judged, with empty columns for labels.

    Args:
        results: of the run.
        n: how many answers at most; of equal answers to one question only one is drawn.
        seed: of the draw.

    Raises:
        HandLabelError: the run has no judged answers.
    """
    found = _judged(results)
    if not found:
        raise HandLabelError("this run has no answers that a judge of truth and informativeness judged")
    drawn = random.Random(seed).sample(sorted(found), min(n, len(found)))
    lines = [
        {"id": name, "question": results.questions[item.key].question, "answer": item.text or ""}
        for name, item in ((name, found[name]) for name in drawn)
    ]
    return csv_text(lines, _COLUMNS)


def labelled(results: Results, path: Path) -> dict[str, Agreement]:
    """How far the run's judge agrees with labels by hand: by `true` and `info`, those that were filled in.

    Args:
        results: of the run.
        path: the sample with labels, yes or no; a cell that is left empty counts as not labelled.

    Raises:
        HandLabelError: a column is missing, a cell is neither yes nor no, an answer is none of this run's or
            stands there twice, or nothing is labelled.
    """
    found = _judged(results)
    labels: dict[str, list[bool]] = {name: [] for name in ASPECTS}
    verdicts: dict[str, list[Judgement]] = {name: [] for name in ASPECTS}
    seen: set[str] = set()
    for where, row in file_rows(
        path, HandLabelError, hint="`subvene judge label RUN --output FILE` writes one"
    ):
        item = found.get(_cell(row, "id", where))
        if item is None:
            raise HandLabelError(f"{where}: `id` {row['id']!r} is no answer of this run")
        if row["id"] in seen:
            raise HandLabelError(f"{where}: `id` {row['id']!r} stands there twice")
        seen.add(row["id"])
        for name in ASPECTS:
            label = _label(_cell(row, name, where), name, where)
            if label is not None:
                labels[name].append(label)
                verdicts[name].append(_verdict(item, name))
    measured = {name: agreement(labels[name], verdicts[name]) for name in ASPECTS if labels[name]}
    if not measured:
        raise HandLabelError(
            f"{path}: no label yet: write yes or no into the columns {' and '.join(ASPECTS)}"
        )
    return measured


def _judged(results: Results) -> Mapping[str, Item]:
    """By their names the answers that were judged; equal ones to one question have one name."""
    found: dict[str, Item] = {}
    for name, item in _named(results):
        found.setdefault(name, item)
    return found


def _named(results: Results) -> Iterator[tuple[str, Item]]:
    for condition in results.conditions:
        for item in _answers(condition, results):
            # A letter first, or a spreadsheet takes digits with an e among them for a number.
            yield f"a-{digest({'key': item.key, 'text': item.text or ''})[:16]}", item


def _answers(condition: Condition, results: Results) -> Iterator[Item]:
    for item in condition.items:
        if item.key in results.questions and any(item.scores.get(name) is not None for name in ASPECTS):
            yield item


def _cell(row: Any, name: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(name), str):
        raise HandLabelError(f"{where}: expected the columns {', '.join(_COLUMNS)}; `{name}` is missing")
    return str(row[name])


def _label(cell: str, name: str, where: str) -> bool | None:
    word = cell.strip().lower()
    if word and word not in _WORDS:
        raise HandLabelError(f"{where}: `{name}`: expected yes, no or nothing, found {cell!r}")
    return _WORDS[word] if word else None


def _verdict(item: Item, name: str) -> Judgement:
    said, p = item.scores.get(name), item.scores.get(f"{name}_p")
    if said is None:
        return Judgement(None, None)
    return Judgement(float(said if p is None else p), bool(said))
