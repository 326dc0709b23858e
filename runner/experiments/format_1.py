"""Results of the first format, as runs wrote them until 0.1: read into today's type."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from subvene.runner.experiments.persona.format_1 import upgraded_persona
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import digest
from subvene.runner.measures.missing import item_parts

Document = Mapping[str, Any]


def upgraded(document: Document) -> dict[str, Json]:
    """A document of format 1 as one of format 2; of what study it is, its own fields say.

    Raises:
        KeyError, TypeError, AttributeError: it is none.
    """
    for field, convert in _KINDS.items():
        if field in document:
            return {"format": 2, **convert(document)}
    raise KeyError("kind")


def _comparison(document: Document) -> dict[str, Json]:
    usages = document.get("judge_usage", [])
    judges = document.get("judges", [])
    sections = {"composition": _composition(document["composition"])} if document.get("composition") else {}
    return {
        "kind": "comparison",
        "manifest": document.get("manifest", {}),
        "conditions": [_cell(cell) for cell in document["cells"]],
        "choices": _choices(document.get("grid", []), document.get("chosen", [])),
        "fits": document.get("fits", []),
        "judges": [
            {"about": about, "usage": usages[i] if i < len(usages) else {}} for i, about in enumerate(judges)
        ],
        "questions": document.get("questions", {}),
        "sections": sections,
    }


def _cell(cell: Document) -> dict[str, Json]:
    counts = {name: cell.get(name, 0) for name in ("questions", "questions_seen_in_fit")}
    return {
        "name": cell["condition"],
        **{name: cell[name] for name in ("label", "point", "seed", "fold")},
        **measured_parts(cell, max(counts["questions"], 1), counts),
    }


def measured_parts(one: Document, n: int, counts: Mapping[str, int]) -> dict[str, Json]:
    """What a cell or an arm says of what was measured of it.

    Args:
        one: with `metrics`, `receipts`, `units`, `by_question`, and `intervals` where there are some.
        n: how many questions its metrics are over.
        counts: what else was counted.
    """
    metrics: dict[str, Json] = {}
    own, intervals = dict(counts), one.get("intervals") or {}
    for name, value in one.get("metrics", {}).items():
        if name.endswith(("_missing", "_without_verdict")):
            own[name] = int(value)
        elif value is not None:
            low, high = intervals.get(name, (None, None))
            metrics[name] = {"mean": value, "low": low, "high": high, "n": n}
    return {
        "metrics": metrics,
        "counts": own,
        "receipts": {name: parts or [] for name, parts in one.get("receipts", {}).items()},
        "units": one.get("units", {}),
        "items": [item_parts(key, values) for key, values in one.get("by_question", {}).items()],
        "artifact": one.get("artifact"),
        "not_finite": one.get("not_finite"),
    }


def _choices(grid: list[Document], chosen: list[Document]) -> list[dict[str, Json]]:
    made: dict[tuple[str, int, int], dict[str, Any]] = {}
    for entry in grid:
        place = (entry["condition"], entry["seed"], entry["fold"])
        (metric, value), *_ = entry["metrics"].items()
        choice = made.setdefault(
            place,
            {"condition": place[0], "seed": place[1], "fold": place[2], "metric": metric, "tried": []},
        )
        choice["tried"].append(
            {
                "point": entry["point"],
                "value": value,
                "n": entry["questions"],
                "not_finite": entry.get("not_finite"),
            }
        )
    points = {(entry["condition"], entry["seed"], entry["fold"]): entry["point"] for entry in chosen}
    return [{**choice, "chosen": points.get(place)} for place, choice in made.items()]


def _composition(composed: Document) -> dict[str, Json]:
    metrics = {
        name: {
            "together": {
                field: value for field, value in scores.items() if field not in ("alone", "baseline", "cells")
            },
            **{field: scores[field] for field in ("alone", "baseline", "cells")},
        }
        for name, scores in composed["metrics"].items()
    }
    return {**composed, "metrics": metrics}


def _localization(document: Document) -> dict[str, Json]:
    selection = document["selection"]
    section = {name: document.get(name) or [] for name in ("evidence", "singles", "comparisons", "verdict")}
    section |= {name: document.get(name) or None for name in ("split", "probes")}
    fields = ("family", "heads", "n_heads", "probe_accuracy", "training")
    arms = {arm["name"]: {name: arm.get(name) for name in fields} for arm in document["arms"]}
    return {
        "kind": "localization",
        "manifest": document.get("manifest", {}),
        "conditions": [_arm(arm) for arm in document["arms"]],
        "choices": [_choice(arm, selection) for arm in document["arms"] if arm.get("candidates")],
        "judges": [{"about": about} for about in document.get("judges", [])],
        "questions": document.get("questions", {}),
        "sections": {"localization": {**section, "arms": arms, "selection": selection}},
    }


def _arm(arm: Document) -> dict[str, Json]:
    measured = measured_parts(arm, max(len(arm.get("by_question") or {}), 1), {})
    place = {"name": arm["name"], "label": arm["name"], "group": arm["group"]}
    return {**place, "point": arm.get("point") or {}, **measured}


def _choice(arm: Document, selection: Document) -> dict[str, Json]:
    return {
        "condition": arm["name"],
        "metric": selection["metric"],
        "tried": [{**tried, "n": selection["questions"]} for tried in arm["candidates"]],
        "chosen": arm.get("point"),
    }


def _look(document: Document) -> dict[str, Json]:
    """Of the texts of its pairs a plain run kept none, nor what its interventions were called."""
    conditions: dict[float, dict[str, Any]] = {}
    questions: dict[str, dict[str, Json]] = {}
    evaluations = []
    for number, found in enumerate(document["evaluations"]):
        kind, records = found["kind"], found["records"]
        earlier = sum(other["kind"] == kind for other in document["evaluations"][:number])
        name = kind if not earlier else f"{kind}_{earlier + 1}"
        keys: dict[str, None] = {}
        for i, record in enumerate(records):
            coefficient = float(record["coefficient"])
            condition = conditions.setdefault(coefficient, _coefficient(coefficient))
            if "not_finite" in record:
                condition["not_finite"] = record["not_finite"]
            if kind == "samples":
                key = digest([number, record["prompt"]])[:16]
                questions[key] = {"question": record["prompt"]}
                items = [{"key": key, "text": record["response"]}]
            else:
                row = found["pairs"][i] or []
                items = [{"key": f"{name} {j + 1}", "scores": {name: value}} for j, value in enumerate(row)]
                condition["metrics"] |= _contrast(name, record, row)
            condition["items"] += items
            keys |= dict.fromkeys(item["key"] for item in items)
        evaluations.append(
            {
                "kind": kind,
                "name": name,
                "coefficients": list(dict.fromkeys(record["coefficient"] for record in records)),
                "keys": list(keys),
                "receipt": found.get("receipt", []),
                "tokens_edited": found.get("tokens_edited"),
            }
        )
    provenance = document.get("provenance") or {}
    difference = document.get("reload_max_logit_difference")
    manifest = {name: document[name] for name in ("environment", "files_relative_to") if name in document}
    return {
        "kind": "look",
        "manifest": manifest,
        "conditions": [conditions[coefficient] for coefficient in sorted(conditions)],
        "fits": [{"condition": "intervened", "artifact": "artifact", "provenance": provenance}]
        if provenance
        else [],
        "questions": questions,
        "sections": {"look": {"evaluations": evaluations, "reload_difference": difference}},
    }


def _coefficient(coefficient: float) -> dict[str, Json]:
    label = f"{coefficient:+g}" if coefficient else "0 (baseline)"
    point = {"coefficient": coefficient}
    return {"name": "intervened", "label": label, "point": point, "metrics": {}, "items": []}


def _contrast(name: str, record: Document, row: list[float]) -> dict[str, Json]:
    if record["mean_difference"] is None:
        return {}
    deviation = statistics.stdev(row) if len(row) > 1 else None
    return {
        name: {"mean": record["mean_difference"], "sd": deviation, "n": len(row)},
        f"{name}_preferred": {"mean": record["positive_preferred"], "n": len(row)},
    }


_KINDS: dict[str, Callable[[Document], dict[str, Json]]] = {
    "cells": _comparison,
    "arms": _localization,
    "traits": upgraded_persona,
    "evaluations": _look,
}
