"""The tables and figures of activation patching, which the page of a tracing shows."""

from __future__ import annotations

from collections.abc import Iterator

import plotly.graph_objects as go

from subvene.runner.data.facts import ROLES
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.tracing.section import (
    CellEffect,
    Interval,
    Patching,
    SitePatching,
    tracing_of,
)
from subvene.runner.reports.blocks import Table
from subvene.runner.reports.figures import layer_heat_map
from subvene.runner.reports.markup import Html, element, items, join, plot, shown

LARGEST_COLUMNS = ("where", "layer", "head", "tokens", "effect [95 %]", "share of the total", "facts")
RANKING_COLUMNS = ("where", "Spearman", "Pearson", "largest fifth found", "effect of the wrong sign", "cells")
ABOUT = (
    "Effect of a patch: how far it moves the metric from its base run's value towards the other run's, "
    "mean over facts with a percentile bootstrap interval (95 %) over facts; the share is of the "
    "difference between the two runs. Denoising: states of the fact's run in the run about the other "
    "subject; noising: the other way round. Shown are the cells of each site with the largest means, so "
    "their means are too large by what chose them."
)
ABOUT_ESTIMATES = (
    "These effects are first-order estimates (attribution patching). How well they rank true effects, on "
    "cells drawn at random, is in the table: correlations within a fact, mean over facts; how many of the"
    " fifth of cells with the largest true effects are in the fifth with the largest estimates (by "
    "chance: 20 %); and the share of all true effect whose estimate has the other sign."
)
_MOST = 5

Line = dict[str, str | float | int | None]


def largest_lines(patching: Patching) -> list[tuple[str, ...]]:
    """The largest cells of each site and direction, as `LARGEST_COLUMNS` has it."""
    lines: list[tuple[str, ...]] = []
    for site in patching.sites:
        for cell in sorted(site.effects, key=lambda cell: -cell.value.mean)[:_MOST]:
            share = cell.value.mean / patching.total.mean if patching.total.mean else float("nan")
            lines.append(
                (
                    site.name,
                    str(cell.layer),
                    "–" if cell.head is None else str(cell.head),
                    (cell.role or "all").replace("_", " "),
                    in_words(cell.value),
                    f"{share:.0%}",
                    str(cell.value.n),
                )
            )
    return lines


def ranking_lines(patching: Patching) -> list[tuple[str, ...]]:
    """How well estimates rank, as `RANKING_COLUMNS` has it; empty where all effects are true."""
    return [
        (
            site.name,
            _number(site.ranking.spearman),
            _number(site.ranking.pearson),
            f"{site.ranking.top:.0%}",
            f"{site.ranking.wrong_sign:.0%}",
            str(site.ranking.cells),
        )
        for site in patching.sites
        if site.ranking is not None
    ]


def title(patching: Patching) -> str:
    """Of a table: what is measured, and how much there is to move."""
    name, metric = (text.replace("_", " ") for text in (patching.name, patching.metric))
    return f"{name}: {metric}, {in_words(patching.total)} between the two runs ({len(patching.facts)} facts)"


def effect_lines(patching: Patching) -> Iterator[Line]:
    """Every mean over facts."""
    for site in patching.sites:
        for cell in site.effects:
            yield {
                "evaluation": patching.name,
                "site": site.site,
                "direction": site.direction,
                "metric": patching.metric,
                "estimated": int(patching.estimated),
                "layer": cell.layer,
                "head": cell.head,
                "role": cell.role or "all",
                "effect": cell.value.mean,
                "low": cell.value.low,
                "high": cell.value.high,
                "facts": cell.value.n,
            }


def sample_lines(patching: Patching) -> Iterator[Line]:
    """Every cell whose effect was both estimated and truly measured."""
    for site in patching.sites:
        for one in site.maps:
            for cell in one.patched.sample:
                yield {
                    "evaluation": patching.name,
                    "fact": one.key,
                    "site": site.site,
                    "direction": site.direction,
                    "layer": site.layers[cell.layer],
                    "head": None if site.heads is None else site.heads[cell.head],
                    "token": "all" if site.positions == "all" else cell.token,
                    "estimate": cell.estimate,
                    "effect": cell.effect,
                }


def patching_section(results: Results) -> Html | None:
    """The largest effects of every patching, how well estimates rank, and a heat map of each site."""
    parts: list[Html] = []
    for patching in tracing_of(results).patchings:
        parts += map(shown, tables(patching))
        said = [ABOUT, *([ABOUT_ESTIMATES] if patching.estimated else [])]
        if patching.note is not None:
            said.append(f"{patching.name}: {patching.note}")
        parts.append(items(*said))
        parts += [plot(site_map(site), f"{site.name}: mean effect over facts.") for site in patching.sites]
    return join([element("div", *parts)]) if parts else None


def site_map(site: SitePatching) -> go.Figure:
    """Mean effects by layer and head, or by layer and role; of both, by head at the last token."""
    by_head = site.heads is not None
    cells = [cell for cell in site.effects if not by_head or cell.role in (None, "last")]
    rows: list[str | int]
    if by_head:
        rows = list(site.heads or ())
    else:
        rows = [role for role in ROLES if any(cell.role == role for cell in cells)] or ["all"]

    def value(row: str | int, layer: int) -> float | None:
        return next(
            (c.value.mean for c in cells if c.layer == layer and _row(c, by_head=by_head) == row), None
        )

    z = [[value(row, layer) for layer in site.layers] for row in rows]
    names = [f"head {row}" if by_head else str(row).replace("_", " ") for row in rows]
    return layer_heat_map(z, site.layers, names, of="effect", around_zero=True)


def in_words(value: Interval) -> str:
    """`0.412 [0.301, 0.523]`."""
    if value.low is None or value.high is None:
        return f"{value.mean:.3f}"
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _row(cell: CellEffect, *, by_head: bool) -> str | int | None:
    return cell.head if by_head else cell.role or "all"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def tables(patching: Patching) -> Iterator[Table]:
    """The largest effects, and how well estimates rank where effects are estimated."""
    yield Table.of(LARGEST_COLUMNS, largest_lines(patching), title(patching))
    if lines := ranking_lines(patching):
        yield Table.of(RANKING_COLUMNS, lines, "Estimates against true effects")
