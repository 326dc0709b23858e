"""What the interventions did, as a table of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import by_label
from subvene.runner.reports.markup import Html, element, folded, join, table

_ROLES = ("prompt", "cursor", "response")
RECEIPT_COLUMNS = (
    "Intervention",
    "Tokens edited",
    "Rows edited",
    "Mean ‖Δ‖/‖h‖",
    "Largest",
    "Strength",
    "Where",
)


def receipts(results: Results) -> Html | None:
    """What the interventions did."""
    lines: list[list[str]] = []
    nothing = []
    for label, cells in by_label(results.conditions).items():
        found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for cell in cells:
            for measurement, parts in cell.receipts.items():
                for part in cast(list[dict[str, Any]], parts):
                    found.setdefault((measurement, part["name"]), []).append(part)
        if not found:
            nothing.append(label)
        for (measurement, name), of_name in found.items():
            lines.append([label, measurement.replace("_", " "), name, *receipt_cells(of_name)])
    if not lines:
        return None
    columns = ["Condition", "Measurement", *RECEIPT_COLUMNS]
    about = (
        "Tokens edited at each site: of the prompt, its last token (the cursor), the response; all seeds and "
        "folds together. ‖Δ‖/‖h‖ is how large the edit is beside the activation that it meets."
    )
    shown = [element("p", about), table("What each intervention did", columns, lines, class_="numbers")]
    if nothing:
        without = "Without an intervention at run time (the untouched model, a baked checkpoint): "
        shown.append(element("p", without, ", ".join(nothing), "."))
    return join(shown)


def receipt_cells(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What one intervention did in several runs, as cells for `RECEIPT_COLUMNS` but the first."""
    edited = {role: sum(part["edited"].get(role, 0) for part in parts) for role in _ROLES}
    weights = [sum(part["edited"].values()) for part in parts]
    sites = list(dict.fromkeys(site for part in parts for site in part["sites"]))
    where: str = ", ".join(sites)
    if len(sites) > 3:
        where = folded(f"{len(sites)} sites", element("p", where))
    return [
        " + ".join(f"{n:,} {role}" for role, n in edited.items() if n) or "none",
        f"{sum(part['rows_edited'] for part in parts):,} of {sum(part['rows'] for part in parts):,}",
        _weighed([part["mean_relative"] for part in parts], weights),
        f"{max(part['max_relative'] for part in parts):.3f}",
        _strength(parts, weights),
        where,
    ]


def _strength(parts: Sequence[Mapping[str, Any]], weights: Sequence[int]) -> str:
    if all(part.get("mean_strength") is not None for part in parts):
        return _weighed([part["mean_strength"] for part in parts], weights) + " on average"
    used = sorted({strength for part in parts for strength in part.get("strengths") or ()})
    return ", ".join(f"{strength:g}" for strength in used) or "as declared"


def _weighed(values: Sequence[float | None], weights: Sequence[int]) -> str:
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    total = sum(weight for _, weight in pairs)
    return f"{sum(value * weight for value, weight in pairs) / total:.3f}" if total else "–"
