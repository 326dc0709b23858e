"""Intervals of a comparison: how sure its numbers and differences are, over questions, texts and pairs."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.runner.experiments.intervals import Intervals, intervals_in
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS, in_order
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.markup import Html, element, join, table


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
            for label, metrics in found.rows.items()
            for metric, own in metrics.items()
            for gap in [found.differences.get(label, {}).get(metric)]
        ]
    )


def intervals_markdown(results: Results) -> str:
    """The table, and what it is over; empty where there is no interval."""
    found = intervals_in(results)
    if not found.rows:
        return ""
    used = _metrics(found)
    heads = ["condition", *(METRICS[metric] for metric in used)]
    lines = [heads, ["---"] * len(heads), *_lines(found, used)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{_said(found)}\n"


def intervals(results: Results) -> Html | None:
    """The section of the page; None where there is no interval."""
    found = intervals_in(results)
    if not found.rows:
        return None
    used = _metrics(found)
    shown = table("Intervals", ["Condition", *(METRICS[metric] for metric in used)], _lines(found, used))
    return join([element("p", _said(found)), shown])


def _metrics(found: Intervals) -> list[str]:
    return in_order(metric for metrics in found.rows.values() for metric in metrics)


def _lines(found: Intervals, used: list[str]) -> Iterator[list[str]]:
    for label, metrics in found.rows.items():
        cells = []
        for metric in used:
            own, gap = metrics.get(metric), found.differences.get(label, {}).get(metric)
            if own is None:
                cells.append("–")
                continue
            cell = f"{own.low:.3f} to {own.high:.3f}"
            if gap is not None:
                # A mark where the interval of the paired difference leaves 0 out.
                mark = "*" if gap.low > 0 or gap.high < 0 else ""
                cell += f" (Δ {gap.value:+.3f}, {gap.low:+.3f} to {gap.high:+.3f}{mark})"
            cells.append(cell)
        yield [label, *cells]


def _said(found: Intervals) -> str:
    return (
        f"{found.level:.0%} percentile bootstrap intervals over questions, texts and pairs "
        f"({found.samples:,} samples; seeds and folds are not drawn). Δ is the paired difference from "
        f"{found.against!r}; * marks those whose interval leaves 0 out, without a correction for how many "
        "there are."
    )
