"""What a run measured, for the card of an artifact that it kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from subvene.runner.artifacts import hub
from subvene.runner.artifacts.card import CardError
from subvene.runner.artifacts.hub_errors import HubError
from subvene.runner.experiments.comparison.summary import METRICS
from subvene.runner.experiments.study import RESULTS
from subvene.runner.files.markdown import in_cell, table
from subvene.runner.reports.localization_tables import localization_markdown
from subvene.runner.reports.persona_tables import conditions_markdown
from subvene.runner.reports.tables import markdown
from subvene.specs.regular_file import read_text


def measured_of(source: Path, results: Path | None = None) -> str | None:
    """The tables for the card of what is to be pushed; None where no run measured it.

    Args:
        source: an artifact's folder, or the output of `subvene run`.
        results: the `results.json` of a run; None: of the run that the artifact lies in.

    Raises:
        CardError: these are no results of `subvene run`.
        HubError: they cannot be read, or there is nothing that can be pushed.
    """
    folder, run = hub.located(source)
    if results is None and (run is None or not (run / RESULTS).is_file()):
        return None
    place = None if run is None else _place(folder, run)
    return measured(read_results(results or Path(run or "", RESULTS)), place)


def read_results(path: Path) -> Any:
    """A run's `results.json`.

    Raises:
        HubError: it cannot be read as one.
    """
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise HubError(f"{path}: cannot be read as the results of a run ({error})") from error


def _place(folder: Path, run: Path) -> str:
    """Where an artifact lies in its run, as the run's results have it: `artifacts/edit_probed`."""
    return Path(os.path.abspath(folder)).relative_to(run).as_posix()


def measured(results: Mapping[str, Any], place: str | None = None) -> str | None:
    """The tables of a run as Markdown; None where nothing in it is a number.

    Args:
        results: as in the `results.json` of a comparison, a persona run, a localization, or any other
            experiment.
        place: where the artifact lies in that run (`artifacts/edit_probed`), so that its own numbers are told
            apart.

    Raises:
        CardError: these are no results of `subvene run`.
    """
    try:
        if "rows" in results:
            return _own(results["cells"], place, "label") + markdown(results)
        if "arms" in results:
            return _own(results["arms"], place, "name") + localization_markdown(results)
        if "traits" in results:
            own = (place or "").removeprefix("artifacts/")
            some = {own: results["traits"][own]} if own in results["traits"] else results["traits"]
            return conditions_markdown({**results, "traits": some})
        tables = [_records(found) for found in results["evaluations"] if found["kind"] != "samples"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CardError(f"these are no results of `subvene run` ({error!r} is missing)") from error
    return "\n\n".join(tables) or None


def _own(conditions: Sequence[Mapping[str, Any]], place: str | None, name: str) -> str:
    """The numbers of the one condition that the artifact is, before the table of all."""
    lines = []
    for one in conditions:
        if place is None or one.get("artifact") != place:
            continue
        where = ", ".join(f"{field} {one[field]}" for field in ("seed", "fold") if field in one)
        told = {METRICS.get(metric, metric): value for metric, value in one["metrics"].items()}
        values = ", ".join(f"{metric} {_in_words(value)}" for metric, value in told.items())
        which = f"{in_cell(str(one[name]))}{where and f' ({where})'}"
        lines.append(f"This folder is **{which}** of the run below: {values}.")
    return "".join(f"{line}\n\n" for line in lines)


def _records(evaluation: Mapping[str, Any]) -> str:
    """The records of an evaluation: a line each, a column for every plain value."""
    records = evaluation["records"]
    names = [
        name
        for name in dict.fromkeys(name for record in records for name in record)
        if not any(isinstance(record.get(name), dict | list) for record in records)
    ]
    rows = [[_in_words(record.get(name)) for name in names] for record in records]
    return f"**{evaluation['kind']}**\n\n{table([name.replace('_', ' ') for name in names], rows)}"


def _in_words(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
