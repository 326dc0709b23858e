"""Sections of a localization report on its question: is the probed set special, is one head enough?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import methodcaller

import plotly.graph_objects as go

from subvene.runner.experiments.localization.section import Evidence, Heads, Interval, SingleHeads, section_of
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS
from subvene.runner.files.statistics import correlation
from subvene.runner.reports import localization_figures as figures
from subvene.runner.reports.figures import probe_heat_map
from subvene.runner.reports.localization_arms import (
    FAMILIES,
    GROUPS,
    Arm,
    arm_label,
    by_group,
    compared,
    group_label,
    interval_in_words,
    metric_label,
)
from subvene.runner.reports.localization_tables import evidence_table
from subvene.runner.reports.markup import Html, element, items, join, plot, shown, side_by_side
from subvene.runner.reports.page import count
from subvene.runner.reports.persona_tables import number

_EDITED = ("edit_probed", "edit_random", "edit_matched", "edit_single")


def evidence(results: Results) -> Html | None:
    """Whether the probed set is special among sets of as many heads drawn at random."""
    found = section_of(results).evidence
    if not found:
        return None
    groups = by_group(results)
    least = max(1 / one.rank.smallest for one in found)
    about = [
        "Rank p: how often a set drawn at random would do at least as well as the probed one; "
        f"(1 + draws at least as good) / (draws + 1), which cannot fall below 1/{least:.0f} here.",
        "t-test: two-sided, of the mean of the draws against the probed value, as in the paper “Does Editing "
        "Provide Evidence for Localization?”. It asks whether the average draw differs from the probed set, "
        "in either direction, and grows surer with every draw; it does not ask whether the probed set is "
        "unusual among draws.",
        "Prediction interval: where one further random draw is expected; a probed value inside it is what a "
        "random set may give too.",
        "Every metric is a test of its own, on the same questions; the p-values are not corrected for that.",
    ]
    if any(one.rank.most is not None for one in found):
        about.insert(
            1,
            "Draws that were stopped (Besag and Clifford 1991): with the last one, so many as are needed "
            "had done at least as well, and p is these by all that were made; by other metrics no p is "
            "stated, nor a t-test or a prediction interval by any.",
        )
    if (found_power := section_of(results).power) is not None:
        about.append(
            f"What could be found, said before the run (sd {found_power.sd:g}, level {found_power.alpha:g}, "
            f"power {found_power.power:g}): "
            + "; ".join(" ".join(line.split()) for line in found_power.lines())
        )
    parts: list[Html] = [items(*about)]
    for family, of in dict.fromkeys((one.family, one.draws) for one in found):
        mine = [one for one in found if (one.family, one.draws) == (family, of)]
        title = FAMILIES[family] + (
            "" if of == "random" else f", {GROUPS[f'{family}_{of}'].partition(', ')[2]}"
        )
        parts += [element("h3", title), shown(evidence_table(results, family, of))]
        drawn = []
        for one in mine:
            made = figures.draws(
                one.random,
                one.metric,
                f"{family}_{of}",
                _marks(groups, one.metric, family) | {f"{family}_probed": one.probed},
                one.prediction,
                one.level,
            )
            if made is not None:
                drawn.append(plot(made, _evidence_in_words(title, one) + _beyond(made, one.prediction)))
        parts += [side_by_side(*drawn)] if drawn else []
    return join(parts)


def singles(results: Results) -> Html | None:
    """Edits of one head, and whether a head that probes well is one that edits well."""
    groups, section = by_group(results), section_of(results)
    parts: list[Html] = []
    drawn = []
    for found in section.singles:
        metric = found.metric
        marks = _marks(groups, metric, "edit") | {"edit_probed": _alone(groups, "edit_probed", metric)}
        made = figures.draws(found.values, metric, "edit_single", marks, each="each head")
        if made is not None:
            drawn.append(plot(made, _singles_in_words(found)))
    if drawn:
        parts.append(side_by_side(*drawn))
    edited = {g: a for g, a in groups.items() if g in _EDITED}
    scatters = []
    for metric in dict.fromkeys(one.metric for one in section.singles or section.evidence):
        made = figures.against(
            edited,
            _probing,
            methodcaller("value", metric),
            ("probing accuracy", metric_label(metric)),
        )
        several = {group: found for group, found in edited.items() if len(found) > 1}
        said = [_correlation(group, found, metric) for group, found in several.items()]
        if made is not None and any(said):
            about = (
                f"{METRICS[metric]} against the mean probing accuracy of the edited heads, where there is "
            )
            about += "one, on answers that chose none. "
            scatters.append(plot(made, about + " ".join(filter(None, said))))
    if scatters:
        parts += [element("h3", "Does a head that probes well edit well?"), side_by_side(*scatters)]
    return join(parts) if parts else None


def probes(results: Results) -> Html | None:
    """How well every head tells true from false answers, and which ones were edited."""
    found = section_of(results).probes
    if found is None or not found.accuracy:
        return None
    choices: dict[str, Heads] = {}
    for group, members in by_group(results).items():
        if group in ("baseline", "edit_all"):
            continue
        if group == "edit_single":
            choices[group_label(group, len(members))] = _together(members)
            continue
        for arm in members:
            if arm.record.heads:
                choices[arm_label(arm)] = arm.record.heads
    by_heads: dict[str, tuple[list[str], Heads]] = {}
    for name, heads in choices.items():
        key = str(sorted((layer, sorted(of)) for layer, of in heads.items()))
        by_heads.setdefault(key, ([], heads))[0].append(name)
    options, panels = [], []
    for i, (names, heads) in enumerate(by_heads.values() or [(["no heads chosen"], {})]):
        name = "; ".join(names)
        options.append(element("option", name, value=str(i)))
        drawn = probe_heat_map(found.accuracy, heads, "", chance=found.chance)
        # Marks would make room for themselves, where there is neither layer nor head.
        n_layers, n_heads = len(found.accuracy), len(found.accuracy[0])
        drawn.update_layout(margin={"t": 60})
        drawn.update_xaxes(range=[-0.5, n_heads - 0.5])
        drawn.update_yaxes(range=[-0.5, n_layers - 0.5])
        drawn.update_traces(name="edited", selector={"type": "scatter"})
        about = f"{name}: accuracy of each head's probe on validation questions; the edited heads are ringed."
        panels.append(element("div", plot(drawn, about), hidden=i > 0))
    if len(panels) == 1:
        return panels[0]
    chooser = element("label", "Heads of ", element("select", *options, data_panels="probe-panels"))
    return join([element("p", chooser), element("div", *panels, id="probe-panels")])


def _probing(arm: Arm) -> float | None:
    """The accuracy of an arm's probes on answers that chose no head; of older results, on those that did."""
    unseen = arm.record.unseen_accuracy
    return arm.record.probe_accuracy if unseen is None else unseen


def _evidence_in_words(title: str, one: Evidence) -> str:
    said = (
        f"{title}, {METRICS.get(one.metric, one.metric)}. {one.rank.at_least} of "
        f"{count(one.rank.n, 'random draw')} at least as good as the probed heads, "
        f"rank p {compared(one.rank.p) if one.rank.p is not None else 'not stated'}. "
    )
    if one.rank.most is not None:
        return said + f"Stopped, of {one.rank.most} draws at most."
    if one.prediction is None:
        return said + "No prediction interval: too few draws, or all alike."
    where = {True: "inside", False: "outside", None: "beside"}[one.inside]
    return said + f"The probed heads lie {where} the prediction interval {interval_in_words(one.prediction)}."


def _beyond(made: go.Figure, prediction: Interval | None) -> str:
    low, high = made.layout.xaxis.range
    seen = prediction is None or (low <= prediction[0] and prediction[1] <= high)
    return "" if seen else " The interval reaches beyond the figure."


def _singles_in_words(found: SingleHeads) -> str:
    lower = metric_label(found.metric).endswith("↓")
    reach = ""
    if found.reach is not None:
        reach = f"; {found.reach} of {found.n} do at least as well as the edit of all probed heads"
    return (
        f"{METRICS.get(found.metric, found.metric)} of {count(found.n, 'edit')} of one head "
        f"each{reach}. The {'lowest' if lower else 'highest'} is {number(found.best, '.3f')}, and "
        "as the best of several it flatters that head."
    )


def _marks(groups: Mapping[str, Sequence[Arm]], metric: str, family: str) -> dict[str, float | None]:
    """What a figure of a family's draws is read against."""
    marked = ("baseline", "iti_probed") if family == "edit" else ("baseline",)
    return {group: value for group in marked if (value := _alone(groups, group, metric)) is not None}


def _alone(groups: Mapping[str, Sequence[Arm]], group: str, metric: str) -> float | None:
    found = groups.get(group)
    return found[0].value(metric) if found else None


def _correlation(group: str, found: Sequence[Arm], metric: str) -> str:
    pairs = [
        (accuracy, value)
        for arm in found
        if (accuracy := _probing(arm)) is not None and (value := arm.value(metric)) is not None
    ]
    if not pairs:
        return ""
    spearman = correlation(*zip(*pairs, strict=True))["spearman"]
    return f"Spearman correlation over {group_label(group, len(pairs))}: {number(spearman, '.2f')}."


def _together(members: Iterable[Arm]) -> Heads:
    heads: dict[int, set[int]] = {}
    for arm in members:
        for layer, of in (arm.record.heads or {}).items():
            heads.setdefault(layer, set()).update(of)
    return {layer: tuple(sorted(of)) for layer, of in heads.items()}
