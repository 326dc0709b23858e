"""What the interventions did, as a table of the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from subvene.runner.edits.receipt import ReceiptRecord
from subvene.runner.edits.source_receipt import SourceRecord
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
SOURCE_COLUMNS = (
    "Source",
    "Read at",
    "Tokens read",
    "Positions",
    "Mean ‖source − base‖/‖base‖",
    "Rows equal to the base",
)
GATES = "How often each gate opened"
GATE_COLUMNS = ("Gate", "Rows in which it opened", "Tokens at which it was open")
Read = tuple[tuple[str, ...], Sequence[ReceiptRecord]]
"""Where an intervention acted, its name the last, and its receipts there."""


def receipts(results: Results) -> Html | None:
    """What the interventions did."""
    lines: list[list[str]] = []
    read: list[Read] = []
    nothing = []
    for label, cells in by_label(results.conditions).items():
        found: dict[tuple[str, str], list[ReceiptRecord]] = {}
        for cell in cells:
            for measurement, parts in cell.receipts.items():
                for part in cast(list[ReceiptRecord], parts):
                    found.setdefault((measurement, part["name"]), []).append(part)
        if not found:
            nothing.append(label)
        for (measurement, name), of_name in found.items():
            where = (label, measurement.replace("_", " "), name)
            lines.append([*where, *receipt_cells(of_name)])
            read.append((where, of_name))
    if not lines:
        return None
    columns = ["Condition", "Measurement", *RECEIPT_COLUMNS]
    about = (
        "Tokens edited at each site: of the prompt, its last token (the cursor), the response; all seeds and "
        "folds together. ‖Δ‖/‖h‖ is how large the edit is beside the activation that it meets."
    )
    shown = [element("p", about), table("What each intervention did", columns, lines, class_="numbers")]
    shown += beside(("Condition", "Measurement"), read)
    if nothing:
        without = "Without an intervention at run time (the untouched model, a baked checkpoint): "
        shown.append(element("p", without, ", ".join(nothing), "."))
    return join(shown)


def beside(columns: Sequence[str], parts: Sequence[Read]) -> list[Html]:
    """What was read of sources and what gates decided, a table of each where there is any.

    Args:
        columns: what stands before the intervention's name.
        parts: in their order.
    """
    tables = (sources(columns, parts), gates(columns, parts))
    return [found for found in tables if found is not None]


def sources(columns: Sequence[str], parts: Sequence[Read]) -> Html | None:
    """What was read of the runs of sources, and put into the base.

    Args:
        columns: what stands before the intervention's name.
        parts: in their order; those that read of no source are left out.

    Returns:
        A table; None if nothing was read.
    """
    lines = []
    for where, receipts_of in parts:
        read = [part["source"] for part in receipts_of if part.get("source") is not None]
        for name, place in dict.fromkeys((one["name"], one["place"]) for one in read):
            same = [one for one in read if (one["name"], one["place"]) == (name, place)]
            lines.append([*where, name, place, *_source_cells(same)])
    if not lines:
        return None
    about = (
        "Sources: what another run computed, and how far it lay from the activation whose place it took; "
        "where it is equal in a row, nothing was put there that was not there."
    )
    heads = [*columns, "Intervention", *SOURCE_COLUMNS]
    return join([element("p", about), table("What was read of each source", heads, lines, class_="numbers")])


def gates(columns: Sequence[str], parts: Sequence[Read]) -> Html | None:
    """What the gates of interventions decided.

    Args:
        columns: what stands before the intervention's name.
        parts: in their order; those without a gate are left out.

    Returns:
        A table; None if there is no gate.
    """
    lines = gate_lines(parts)
    if not lines:
        return None
    about = (
        "Gates: of the rows and tokens that an intervention's positions select, those at which its gate was "
        "open, wholly or by degrees, and the same of every gate that it is made of."
    )
    heads = [*columns, "Intervention", *GATE_COLUMNS]
    return join([element("p", about), table(GATES, heads, lines, class_="numbers")])


def gate_lines(parts: Sequence[Read]) -> list[list[str]]:
    """Of every gate, and every gate that it is made of: where it is, and how often it opened."""
    lines = []
    for where, receipts_of in parts:
        found = [part["gate"] for part in receipts_of if part.get("gate") is not None]
        if not found:
            continue
        asked = [sum(one["rows_asked"] for one in found), sum(one["tokens_asked"] for one in found)]
        opened = [sum(one["rows_opened"] for one in found), sum(one["tokens_opened"] for one in found)]
        names = [node["place"] for node in found[0]["gates"]] or ["during"]
        lines.append([*where, names[0], *_openings(opened, asked)])
        for i, name in enumerate(names[1:], start=1):
            nodes = [one["gates"][i] for one in found]
            of_part = [sum(node["rows"] for node in nodes), sum(node["tokens"] for node in nodes)]
            lines.append([*where, name, *_openings(of_part, asked)])
    return lines


def _openings(opened: Sequence[int], asked: Sequence[int]) -> list[str]:
    return [f"{n:,} of {of:,}" for n, of in zip(opened, asked, strict=True)]


def _source_cells(parts: Sequence[SourceRecord]) -> list[str]:
    """What several runs read of one source at one place, as cells for `SOURCE_COLUMNS` but the first two."""
    ends = [(part["first"], part["last"]) for part in parts]
    places = [place for pair in ends for place in pair if place is not None]
    weights = [part["rows_fed"] for part in parts]
    return [
        f"{sum(part['tokens'] for part in parts):,} in {sum(part['rows'] for part in parts):,} rows",
        f"{min(places)} to {max(places)}" if places else "none",
        _weighed([part["mean_distance"] for part in parts], weights),
        f"{sum(part['rows_equal'] for part in parts):,} of {sum(weights):,}",
    ]


def receipt_cells(parts: Sequence[ReceiptRecord]) -> list[str]:
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
        _largest([part["max_relative"] for part in parts]),
        _strength(parts, weights),
        where,
    ]


def _strength(parts: Sequence[ReceiptRecord], weights: Sequence[int]) -> str:
    if all(part.get("mean_strength") is not None for part in parts):
        return _weighed([part["mean_strength"] for part in parts], weights) + " on average"
    used = sorted({strength for part in parts for strength in part.get("strengths") or ()})
    return ", ".join(f"{strength:g}" for strength in used) or "as declared"


def _largest(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):.3f}" if known else "–"


def _weighed(values: Sequence[float | None], weights: Sequence[int]) -> str:
    pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    total = sum(weight for _, weight in pairs)
    return f"{sum(value * weight for value, weight in pairs) / total:.3f}" if total else "–"
