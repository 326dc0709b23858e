"""The sections of the report: each a function of the results that gives markup, or None without its data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any, cast

from subvene.runner.experiments.results import Results, missing_verdicts
from subvene.runner.experiments.rows import METRICS, by_label, metrics_used
from subvene.runner.experiments.rows import rows as table_rows
from subvene.runner.measures.missing import missing_in_words
from subvene.runner.reports import curves
from subvene.runner.reports.budgets import budgets
from subvene.runner.reports.composition import composition
from subvene.runner.reports.examples import examples
from subvene.runner.reports.figures import probe_heat_map
from subvene.runner.reports.intervals import intervals
from subvene.runner.reports.item_effects import item_effects
from subvene.runner.reports.judged import judged
from subvene.runner.reports.markup import (
    Html,
    downloads,
    element,
    facts,
    folded,
    items,
    join,
    plot,
    shown,
    side_by_side,
    table,
)
from subvene.runner.reports.receipts import receipts
from subvene.runner.reports.tables import comparison_files, judge_in_words, results_table, spread_in_words
from subvene.runner.reports.trait_nulls import trait_nulls
from subvene.specs.document import parse_document


def results_section(results: Results) -> Html | None:
    """The table, and what must be known to read it."""
    if not results.conditions:
        return None
    said = spread_in_words(results)
    caption = f"{said[0].upper()}{said[1:]}; ↑ higher is better, ↓ lower is better"
    return join([*_warnings(results), shown(results_table(results), caption), _notes(results)])


def trade_offs(results: Results) -> Html | None:
    """What the interventions win against what they cost, and how it goes with the strength."""
    rows, baselines = table_rows(results.conditions), baseline_conditions(results)
    used = metrics_used(rows)
    gains: list[str] = [m for m in ("true_info", "true", "mc2", "mc1") if m in used]
    parts: list[Html] = []
    for metric in gains[:1]:
        against = curves.trade_off(rows, metric, baselines)
        if against is not None:
            about = (
                f"{METRICS[metric]} against the divergence from the original model: up is better, right is "
                "further from the original. Bars are standard deviations; the dashed line is the untouched "
                "model."
            )
            parts.append(plot(against, about))
    along: list[Html] = []
    for metric in [*gains[:1], *(m for m in ("mc1", "mc2", "kl") if m in used and m not in gains[:1])]:
        sweep = curves.swept(rows, metric, baselines)
        if sweep is not None:
            along.append(plot(sweep[1], f"{METRICS[metric]} along the sweep of {sweep[0]}."))
    if along:
        parts.append(side_by_side(*along))
    return join(parts) if parts else None


def validation(results: Results) -> Html | None:
    """How the points that are tested were chosen."""
    parts: list[Html] = []
    for condition in dict.fromkeys(choice.condition for choice in results.choices):
        choices = [choice for choice in results.choices if choice.condition == condition]
        metric = METRICS.get(choices[0].metric, choices[0].metric)
        questions = sorted({tried.n for choice in choices for tried in choice.tried})
        asked = "–".join(str(n) for n in dict.fromkeys((questions[0], questions[-1])))
        parts.append(element("h3", condition))
        about = (
            f"For each seed and fold, the point with the largest {metric} on {asked} validation questions is "
            f"what the table reports{_apart(results, condition)}. Shown: the mean over seeds and folds."
        )
        drawn = curves.validation_grid(choices)
        if drawn is not None:
            parts.append(plot(drawn, about))
        else:
            parts.append(element("p", about))
            means = [
                (
                    curves.point_in_words(point),
                    f"{sum(values) / len(values):.3f}" if values else "–",
                    f"{times} of {len(choices)}",
                )
                for point, values, times in curves.grid_means(choices)
            ]
            parts.append(table(f"{condition}: the points tried", ["Point", metric, "Chosen"], means))
        lines = [
            (f"seed {choice.seed}, fold {choice.fold}", curves.point_in_words(choice.chosen or {}))
            for choice in choices
        ]
        parts.append(
            folded("Chosen for each seed and fold", table(f"{condition}: what was chosen", (), lines))
        )
    return join(parts) if parts else None


def probes(results: Results) -> Html | None:
    """How well every head tells true from false answers, one fit at a time."""
    by_content: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for fit in results.fits:
        found = cast(dict[str, Any], fit.provenance)
        if not found.get("validation_accuracy"):
            continue
        content = json.dumps([found["validation_accuracy"], found.get("heads")], sort_keys=True)
        name = " ".join(filter(None, (fit.condition, curves.point_in_words(fit.point))))
        names = by_content.setdefault(content, (found, []))[1]
        names.append(f"{name}, seed {fit.seed}, fold {fit.fold}")
    if not by_content:
        return None
    options, panels = [], []
    for i, (found, names) in enumerate(by_content.values()):
        same = f" (and {len(names) - 1} with the same probes and heads)" if len(names) > 1 else ""
        options.append(element("option", names[0] + same, value=str(i)))
        about = (
            "Accuracy of each head's probe on validation questions; the heads that are shifted are ringed."
        )
        drawn = probe_heat_map(
            found["validation_accuracy"],
            found.get("heads"),
            curves.as_it_stands(names[0]),
            chance=found.get("chance"),
        )
        panels.append(element("div", plot(drawn, about), hidden=i > 0))
    chooser = element("label", "Fit ", element("select", *options, data_panels="probe-panels"))
    return join([element("p", chooser), element("div", *panels, id="probe-panels")])


def provenance(results: Results) -> Html | None:
    """Where the numbers come from."""
    manifest = cast(dict[str, Any], results.manifest)
    if not manifest:
        return None
    parts: list[Html] = []
    if manifest.get("command"):
        parts += [element("h3", "Command"), element("pre", shlex.join(manifest["command"]))]
    if manifest.get("spec"):
        parts += [element("h3", "Experiment file"), element("pre", manifest["spec"])]
    named = {
        name: value
        for name, value in manifest.items()
        if name not in ("command", "spec", "judges") and isinstance(value, Mapping) and value
    }
    for name, value in named.items():
        parts.append(facts(name.replace("_", " ").capitalize(), value))
    for judge in results.judges:
        usage = {"usage": judge.usage} if judge.usage else {}
        parts.append(facts("Judge", {**judge.about, **usage}))
    plain = {n: v for n, v in manifest.items() if n not in ("command", "spec", "judges") and n not in named}
    if plain:
        parts.append(facts("Run", plain))
    return join(parts)


def _downloads(results: Results) -> Html | None:
    return downloads(comparison_files(results)) if results.conditions else None


SECTIONS: tuple[tuple[str, Callable[[Results], Html | None]], ...] = (
    ("Results", results_section),
    ("Intervals", intervals),
    ("What the judge's word is worth", judged),
    ("Trait scores of models that say one thing", trait_nulls),
    ("Trade-offs", trade_offs),
    ("Composition", composition),
    ("The same divergence", budgets),
    ("Item by item", item_effects),
    ("Choice on validation questions", validation),
    ("Probes", probes),
    ("Examples", examples),
    ("Receipts", receipts),
    ("Provenance", provenance),
    ("Downloads", _downloads),
)
"""The sections in their order, each with its title; those that give None are left out."""


def declared(results: Results) -> Mapping[str, Any]:
    """The experiment's file as plain values; empty if the results do not say."""
    text = results.manifest.get("spec")
    return cast(Mapping[str, Any], parse_document(text).data) if isinstance(text, str) else {}


def baseline_conditions(results: Results) -> frozenset[str]:
    """The conditions in which no intervention acts."""
    conditions = declared(results).get("conditions")
    if not conditions:
        return frozenset({"baseline"})
    acting: dict[str, Any] = {}
    for condition in conditions:
        inherited = acting.get(condition.get("like"), "all")
        own = condition.get("interventions", "all")
        acting[condition["name"]] = inherited if own == "all" else own
    return frozenset(name for name, interventions in acting.items() if not interventions)


def _apart(results: Results, condition: str) -> str:
    seen = any(c.counts.get("questions_seen_in_fit") for c in results.conditions if c.name == condition)
    return (
        ", though these are questions that it is tested on" if seen else "; it is tested on other questions"
    )


def _warnings(results: Results) -> list[Html]:
    missing = missing_verdicts(results.conditions)
    warned = [_warning(f"{missing_in_words(missing)}.")] if missing else []
    seen = sum(cell.counts.get("questions_seen_in_fit", 0) for cell in results.conditions)
    if not seen:
        return warned
    all_of = sum(cell.counts.get("questions", 0) for cell in results.conditions)
    said = (
        f"{seen} of {all_of} measurements of a question are of one that the fit saw, so these numbers "
        "flatter the interventions. Give the experiment `folds:` for a test on other questions."
    )
    return [*warned, _warning(said)]


def _warning(said: str) -> Html:
    return element("p", element("strong", "Warning: "), said, class_="warning")


def _notes(results: Results) -> Html:
    used = metrics_used(table_rows(results.conditions))
    said = ["A fold's weight in the mean is its number of questions."]
    if any(m in used for m in ("mc1", "mc2", "mc3")):
        said.append(
            "MC1: the best answer is likelier than every false one. MC2: probability of the true answers "
            "among all. MC3: share of true answers likelier than every false one."
        )
    if "true_info" in used:
        said.append(
            "True×Info is the product of the two means, as published; True∧Info is the share of answers that "
            "are both. The product can be high although few answers are both."
        )
    if "ce" in used or "kl" in used:
        said.append(
            "CE is the next-token cross-entropy on ordinary texts, KL the divergence KL(original ‖ edited) "
            "on the same texts, both in nats per token; KL is against the untouched model always, for baked "
            "checkpoints too."
        )
    for judge in results.judges:
        words = judge_in_words(judge.about)
        said.append(f"{words[:1].upper()}{words[1:]}.")
    for name, words in (("true_without_verdict", "truth"), ("info_without_verdict", "informativeness")):
        without = sum(cell.counts.get(name, 0) for cell in results.conditions)
        if without:
            said.append(f"The judge gave no verdict on the {words} of {without} answers; they are left out.")
    empty = {
        label: max(cell.value("empty") or 0 for cell in cells)
        for label, cells in by_label(results.conditions).items()
    }
    if any(empty.values()):
        shares = ", ".join(f"{label} {share:.1%}" for label, share in empty.items() if share)
        said.append(f"Empty answers, at most, in a cell: {shares}.")
    return items(*said)
