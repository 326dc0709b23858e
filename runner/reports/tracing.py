"""The tables and the page of a tracing: effects by role and layer, and a heat map of every fact."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import plotly.graph_objects as go

from subvene.runner.data.facts import Role
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.tracing.section import (
    FactMap,
    FactRecord,
    Patching,
    SiteTrace,
    Trace,
    tracing_of,
)
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports import patching
from subvene.runner.reports.blocks import Document, Items, Table
from subvene.runner.reports.documents import document_files
from subvene.runner.reports.figures import layer_heat_map
from subvene.runner.reports.markup import Html, downloads, element, items, join, plot, shown, side_by_side
from subvene.runner.reports.page import count, page
from subvene.runner.reports.sections import declared, provenance

PEAK_COLUMNS = ("site", "tokens", "layer", "effect there", "cross-fitted [95 %]", "noise floor", "facts")
METRIC_NAMES = {
    "probability": "probability",
    "log_probability": "log-probability (nats)",
    "logit_difference": "logit difference",
}
ROLE_NAMES: dict[Role, str] = {
    "before": "before the subject",
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_after": "first token after",
    "further": "further tokens",
    "last": "last token",
}
_ABOUT = (
    "Indirect effect: what is measured of the answer's first token with a state of the clean run restored in "
    "the corrupted one, minus what is measured without. Intervals are over facts (percentile bootstrap, "
    "95 %), layer by layer."
)
_ABOUT_FLOOR = (
    "The noise floor is the upper end of where the mean over facts lies (95 %) if each fact has, at a cell "
    "drawn at random, a step as long as the restoration's in a random direction instead."
)
_ABOUT_PEAK = (
    "Cross-fitted: each half of the facts at the layer that is best on the other half, so that no fact "
    "chooses the layer it is measured at. An effect stands out (*) where the whole interval lies "
    "above the floor."
)

Line = dict[str, str | float | int | None]


# Tables ---------------------------------------------------------------------------------------------------


def tracing_files(results: Results) -> dict[str, str]:
    """The tables by file name."""
    traces, patchings = tracing_of(results).traces, tracing_of(results).patchings
    files: dict[str, list[Line]] = {
        "effects.csv": [line for trace in traces for line in _effect_lines(trace)],
        "peaks.csv": [line for trace in traces for line in _peak_records(trace)],
        "facts.csv": [line for trace in traces for line in _fact_lines(trace)],
        "cells.csv": [line for trace in traces for line in _cell_lines(trace)],
        "patching.csv": [line for one in patchings for line in patching.effect_lines(one)],
        "attribution.csv": [line for one in patchings for line in patching.sample_lines(one)],
    }
    records = {name: csv_text(lines) for name, lines in files.items() if lines}
    return document_files("results", document(results), results.kind) | records


def document(results: Results) -> Document:
    """The peaks of each metric, and what must be known to read them."""
    section = tracing_of(results)
    blocks = [table for trace in section.traces for table in peak_tables(trace)]
    blocks += [table for one in section.patchings for table in patching.tables(one)]
    return [*blocks, Items(tuple(notes(results)))]


def peak_tables(trace: Trace) -> list[Table]:
    """A table for each metric."""
    return [
        Table.of(PEAK_COLUMNS, peak_lines(trace, metric), title(trace, metric)) for metric in trace.metrics
    ]


def title(trace: Trace, metric: str) -> str:
    """Of a table: what is measured, and how much there is to give back."""
    total = trace.total[metric]
    name = trace.name.replace("_", " ")
    return (
        f"{name}: {METRIC_NAMES[metric]}, total effect {patching.in_words(total)} ({count(total.n, 'fact')})"
    )


def peak_lines(trace: Trace, metric: str) -> list[tuple[str, ...]]:
    """A line for each site and role, as `PEAK_COLUMNS` has it."""
    lines: list[tuple[str, ...]] = []
    for site in trace.sites:
        for peak in site.peaks:
            if peak.metric == metric:
                there = next(
                    e.value
                    for e in site.effects
                    if (e.metric, e.role, e.layer) == (metric, peak.role, peak.layer)
                )
                star = " *" if peak.stands_out else ""
                lines.append(
                    (
                        site.name,
                        ROLE_NAMES[peak.role],
                        str(peak.layer),
                        f"{there.mean:.3f}",
                        patching.in_words(peak.value) + star,
                        f"{peak.floor:.3f}",
                        str(peak.value.n),
                    )
                )
    return lines


def notes(results: Results) -> list[str]:
    """What must stand beside the tables."""
    section = tracing_of(results)
    said = [_ABOUT, _ABOUT_FLOOR, _ABOUT_PEAK] if section.traces else []
    said += [patching.ABOUT] if section.patchings else []
    said += [patching.ABOUT_ESTIMATES] if any(one.estimated for one in section.patchings) else []
    said += results.notes
    for trace in tracing_of(results).traces:
        deviations = {fact.read.deviation for fact in trace.facts}
        if trace.corruption == "noise":
            said.append(f"{trace.name}: noise of standard deviation {max(d or 0 for d in deviations):.4g}")
        if trace.note is not None:
            said.append(f"{trace.name}: {trace.note}")
    return said


def _effect_lines(trace: Trace) -> Iterator[Line]:
    for site in trace.sites:
        floor = {(band.metric, band.role): band for band in site.floor}
        for effect in site.effects:
            band = floor[effect.metric, effect.role]
            yield {
                "evaluation": trace.name,
                "site": site.site,
                "window": site.window,
                "metric": effect.metric,
                "role": effect.role,
                "layer": effect.layer,
                "effect": effect.value.mean,
                "low": effect.value.low,
                "high": effect.value.high,
                "facts": effect.value.n,
                "floor_low": band.low,
                "floor_high": band.high,
            }


def _peak_records(trace: Trace) -> Iterator[Line]:
    for site in trace.sites:
        for peak in site.peaks:
            yield {
                "evaluation": trace.name,
                "site": site.site,
                "window": site.window,
                "metric": peak.metric,
                "role": peak.role,
                "layer": peak.layer,
                "cross_fitted": peak.value.mean,
                "low": peak.value.low,
                "high": peak.value.high,
                "facts": peak.value.n,
                "floor_high": peak.floor,
                "stands_out": int(peak.stands_out),
            }


def _fact_lines(trace: Trace) -> Iterator[Line]:
    for fact in trace.facts:
        line: Line = {
            "evaluation": trace.name,
            "fact": fact.key,
            "prompt": fact.prompt,
            "subject": fact.subject,
            "answer": fact.answer,
            "foil": fact.foil,
            "predicted": fact.predicted,
            "rank": fact.read.rank,
            "traced": int(fact.traced),
        }
        for metric in trace.metrics:
            line |= {
                f"{metric}_clean": fact.read.clean[metric],
                f"{metric}_corrupted": fact.read.corrupted[metric],
            }
        yield line


def _cell_lines(trace: Trace) -> Iterator[Line]:
    """One line a fact, site, layer and token."""
    for site in trace.sites:
        for one in site.maps:
            fact = trace.fact(one.key)
            for i, layer in enumerate(one.traced.layers):
                for token, (piece, role) in enumerate(zip(fact.pieces, fact.roles, strict=True)):
                    line: Line = {
                        "evaluation": trace.name,
                        "fact": fact.key,
                        "site": site.site,
                        "window": site.window,
                        "layer": layer,
                        "token": token,
                        "piece": piece,
                        "role": role,
                    }
                    yield line | {metric: one.traced.values[metric][i][token] for metric in trace.metrics}


# The page -------------------------------------------------------------------------------------------------


def render(results: Results) -> Html:
    """The page as text, the same for the same results."""
    sections = [(heading, content) for heading, make in SECTIONS if (content := make(results)) is not None]
    model = (declared(results).get("model") or {}).get("name")
    section = tracing_of(results)
    entries: list[Trace | Patching] = [*section.traces, *section.patchings]
    parts = [f"{one.name.replace('_', ' ')}: {count(len(one.facts), 'fact')}" for one in entries]
    heading = "Causal tracing" if section.traces else "Activation patching"
    return page(results, heading, model=model, summary=join([" · ".join(parts)]), sections=sections)


def peaks(results: Results) -> Html | None:
    """The largest effect of every site and role."""
    parts: list[Html] = []
    for trace in tracing_of(results).traces:
        parts += map(shown, peak_tables(trace))
    if not parts:
        return None
    return join([*parts, items(*notes(results))])


def by_role(results: Results) -> Html | None:
    """Mean effects over layers, a heat map and curves for each site, of the first metric."""
    parts: list[Html] = []
    for trace in tracing_of(results).traces:
        metric = trace.metrics[0]
        for site in trace.sites:
            where = f"{trace.name.replace('_', ' ')}, {site.name}"
            about = f"{where}: mean indirect effect on the {METRIC_NAMES[metric]}"
            parts.append(
                side_by_side(
                    plot(role_map(site, metric), f"{about}, by token role and layer."),
                    plot(role_curves(site, metric), f"{about}; bands: intervals; dotted: the floor."),
                )
            )
    return join(parts) if parts else None


def facts(results: Results) -> Html | None:
    """A heat map of every fact and site, tokens on the axis, and what was left out."""
    panels: list[Html] = []
    options: list[Html] = []
    for trace in tracing_of(results).traces:
        for fact in trace.facts:
            if not fact.traced:
                continue
            maps = [(site, one) for site in trace.sites for one in site.maps if one.key == fact.key]
            drawn = [
                plot(fact_map(fact, one, trace.metrics[0]), f"{site.name}: {METRIC_NAMES[trace.metrics[0]]}")
                for site, one in maps
            ]
            options.append(element("option", fact.prompt, value=str(len(panels))))
            about = _fact_in_words(fact, trace.metrics[0])
            panels.append(element("div", element("p", about), side_by_side(*drawn), hidden=bool(panels)))
    if not panels:
        return None
    chooser = element("label", "Fact ", element("select", *options, data_panels="fact-panels"))
    return join([element("p", chooser), element("div", *panels, id="fact-panels")])


def role_map(site: SiteTrace, metric: str) -> go.Figure:
    """Mean effects, roles by layers."""
    roles = list(dict.fromkeys(e.role for e in site.effects if e.metric == metric))
    rows = [[e for e in site.effects if (e.metric, e.role) == (metric, role)] for role in roles]
    return layer_heat_map(
        [[e.value.mean for e in row] for row in rows],
        [e.layer for e in rows[0]],
        [ROLE_NAMES[role] for role in roles],
        of="effect",
    )


def role_curves(site: SiteTrace, metric: str) -> go.Figure:
    """Mean effects over layers with their intervals, the subject's last token and the last one."""
    made = go.Figure()
    colors: dict[Role, str] = {"last_subject": "#0072b2", "last": "#d55e00", "first_after": "#009e73"}
    for role, color in colors.items():
        row = [e for e in site.effects if (e.metric, e.role) == (metric, role)]
        if not row:
            continue
        layers = [e.layer for e in row]
        low = [e.value.mean if e.value.low is None else e.value.low for e in row]
        high = [e.value.mean if e.value.high is None else e.value.high for e in row]
        made.add_trace(
            go.Scatter(
                x=[*layers, *layers[::-1]],
                y=[*high, *low[::-1]],
                fill="toself",
                line={"width": 0},
                fillcolor=color,
                opacity=0.2,
                hoverinfo="skip",
                showlegend=False,
            )
        )
        means = [e.value.mean for e in row]
        made.add_trace(
            go.Scatter(x=layers, y=means, name=ROLE_NAMES[role], line={"color": color}, mode="lines+markers")
        )
    for band in site.floor:
        if (band.metric, band.role) == (metric, "last"):
            made.add_hline(y=band.high, line={"dash": "dot", "color": "#888888"})
    made.update_layout(
        xaxis={"title": {"text": "layer"}},
        yaxis={"title": {"text": "indirect effect"}},
        height=380,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return made


def fact_map(fact: FactRecord, one: FactMap, metric: str) -> go.Figure:
    """One fact's values with each state restored, its tokens by layers; the subject's are marked (*)."""
    marked = [
        f"{i}: {piece}{'*' if role.endswith('subject') else ''}"
        for i, (piece, role) in enumerate(zip(fact.pieces, fact.roles, strict=True))
    ]
    by_token = [list(column) for column in zip(*one.traced.values[metric], strict=True)]
    return layer_heat_map(by_token, one.traced.layers, marked, of=METRIC_NAMES[metric])


def _fact_in_words(fact: FactRecord, metric: str) -> str:
    clean, corrupted = fact.read.clean[metric], fact.read.corrupted[metric]
    said = f"Answer {fact.answer!r}: {METRIC_NAMES[metric]} {clean:.3f} clean, {corrupted:.3f} corrupted."
    return said if fact.read.rank == 0 else f"{said} The clean run's likeliest token is {fact.predicted!r}."


def _downloads(results: Results) -> Html | None:
    return downloads(tracing_files(results))


SECTIONS: tuple[tuple[str, Callable[[Results], Html | None]], ...] = (
    ("Largest effects", peaks),
    ("Effects by layer", by_role),
    ("Facts", facts),
    ("Patching", patching.patching_section),
    ("Provenance", provenance),
    ("Downloads", _downloads),
)
"""The sections in their order, each with its title; those that give None are left out."""
