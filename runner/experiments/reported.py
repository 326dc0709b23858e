"""What trackers are told of a run: every condition, and every point that was tried, as a run of its own.

Each is told once, under a key in the ledger, also where the run is stopped and taken up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

from pydantic import JsonValue

from subvene.runner.experiments.persona.section import SECTION as PERSONA
from subvene.runner.experiments.persona.section import PersonaSection
from subvene.runner.experiments.results import Choice, Condition, Results
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger
from subvene.runner.files.reporting import is_reporting, report_cell


@dataclass(frozen=True)
class ReportedCell:
    """What is told of one condition or point.

    Attributes:
        run: what trackers call it.
        settings: by which it differs from others.
        measures: means by name.
    """

    run: str
    settings: dict[str, JsonValue]
    measures: dict[str, float]


class _Told(TypedDict):
    """What a unit gives."""

    told: bool


def report_results(results: Results, ledger: Ledger) -> None:
    """Tell trackers what they have not been told of a run's results."""
    if is_reporting():
        for cell in _cells(results):
            _report(cell, ledger)


def report_condition(condition: Condition, ledger: Ledger) -> None:
    """Tell trackers of one condition, as soon as it is measured."""
    if is_reporting():
        _report(_of_condition(condition), ledger)


def _report(cell: ReportedCell, ledger: Ledger) -> None:
    def tell() -> _Told:
        report_cell(cell.run, cell.settings, cell.measures)
        return {"told": True}

    if cell.measures:
        told: dict[str, Json] = {"run": cell.run, "settings": cell.settings, "measures": cell.measures}
        ledger.do({"unit": "reported", **told}, tell)


def _cells(results: Results) -> Iterator[ReportedCell]:
    for condition in results.conditions:
        yield _of_condition(condition)
    section = results.section(PERSONA, PersonaSection)
    if section is not None:
        # Of which the choices are a part.
        yield from _of_sweeps(section)
        return
    for choice in results.choices:
        yield from _of_choice(choice)


def _of_condition(condition: Condition) -> ReportedCell:
    settings: dict[str, JsonValue] = {
        "group": condition.group,
        "condition": condition.name,
        **condition.point,
        "seed": condition.seed,
        "fold": condition.fold,
    }
    measures = {name: metric.mean for name, metric in condition.metrics.items()}
    run = _run(condition.group, condition.label, seed=condition.seed, fold=condition.fold)
    return ReportedCell(run, settings, measures)


def _of_choice(choice: Choice) -> Iterator[ReportedCell]:
    for tried in choice.tried:
        if tried.value is None:
            continue
        settings = {"condition": choice.condition, **tried.point, "seed": choice.seed, "fold": choice.fold}
        point = " ".join(f"{path}={value}" for path, value in tried.point.items())
        run = _run(choice.condition, point, "on validation", seed=choice.seed, fold=choice.fold)
        yield ReportedCell(run, settings, {choice.metric: tried.value})


def _of_sweeps(section: PersonaSection) -> Iterator[ReportedCell]:
    for trait, record in section.traits.items():
        for point in record.sweep.points if record.sweep is not None else ():
            measures = {
                name: metric.mean
                for name, metric in (("score", point.score), ("coherence", point.coherence))
                if metric is not None
            }
            measures |= {} if point.contrast is None else {"contrast": point.contrast}
            settings: dict[str, JsonValue] = {
                "trait": trait,
                "layer": point.layer,
                "coefficient": point.coefficient,
            }
            run = _run(trait, f"layer={point.layer} coefficient={point.coefficient:g}")
            yield ReportedCell(run, settings, measures)


def _run(*words: str | None, seed: int | None = None, fold: int | None = None) -> str:
    numbered = [f"{name}={n}" for name, n in (("seed", seed), ("fold", fold)) if n is not None]
    return " ".join([word for word in words if word] + numbered)
