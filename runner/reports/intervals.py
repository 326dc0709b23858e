"""Intervals of a comparison: how sure its numbers and differences are, over questions, texts and pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from subvene.runner.experiments.intervals import Intervals, intervals_in
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS, in_order
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.blocks import Document, Items, Table
from subvene.runner.reports.markup import Html, element, join, shown


def intervals_csv(results: Results) -> str | None:
    """A line for each row and metric; None where there is no interval."""
    found = intervals_in(results)
    if not found.rows:
        return None
    return csv_text(
        [
            {"label": label, "metric": metric, "low": own.low, "high": own.high, "items": own.items}
            | {"against": found.against, "level": found.level}
            | {
                f"difference{suffix}": getattr(gap, part) if gap is not None else ""
                for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            | {
                part: "" if gap is None or (p := getattr(gap, part)) is None else p
                for part in ("p", "p_holm")
            }
            for label, metrics in found.rows.items()
            for metric, own in metrics.items()
            for gap in [found.differences.get(label, {}).get(metric)]
        ]
    )


def intervals_document(results: Results) -> Document:
    """The table, and what it is over; empty where there is no interval."""
    found = intervals_in(results)
    return [Table.of(_HEADS, list(_lines(found))), Items((_said(found),))] if found.rows else []


def intervals(results: Results) -> Html | None:
    """The section of the page, a table for each metric; None where there is no interval."""
    found = intervals_in(results)
    if not found.rows:
        return None
    parts = [
        shown(Table.of(_HEADS[1:], [line[1:] for line in lines], metric))
        for metric, lines in itertools.groupby(_lines(found), key=lambda line: line[0])
    ]
    return join([element("p", _said(found)), *parts])


_HEADS = ["metric", "condition", "interval", "Δ", "interval of Δ", "p", "p (Holm)"]


def _lines(found: Intervals) -> Iterator[list[str]]:
    """A line for each metric and condition, the metric by its title."""
    for metric in in_order(name for metrics in found.rows.values() for name in metrics):
        for label, metrics in found.rows.items():
            own, gap = metrics.get(metric), found.differences.get(label, {}).get(metric)
            if own is None:
                continue
            cells = [f"{own.low:.3f} to {own.high:.3f}", "", "", "", ""]
            if gap is not None:
                p, corrected = ("" if p is None else f"{p:.4f}" for p in (gap.p, gap.p_holm))
                mark = " *" if gap.p_holm is not None and gap.p_holm < 1 - found.level else ""
                cells[1:] = [f"{gap.value:+.3f}", f"{gap.low:+.3f} to {gap.high:+.3f}", p, corrected + mark]
            yield [METRICS[metric], label, *cells]


def _said(found: Intervals) -> str:
    return (
        f"{found.level:.0%} percentile bootstrap intervals over questions, texts and pairs "
        f"({found.samples:,} samples), crossed with repeats and seeds where there are several. Δ is the "
        f"paired difference from {found.against!r}, p that it is 0, two-sided, and beside it p corrected for "
        f"the number of conditions that have the metric (Holm); * marks those below {1 - found.level:.2g}."
    )
