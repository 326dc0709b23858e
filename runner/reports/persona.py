"""The report of a persona run: one HTML file, from the run's results alone.

The sections are functions of the results that give markup, or None without their data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from subvene.runner.edits.receipt import ReceiptRecord
from subvene.runner.experiments.persona.section import Edit
from subvene.runner.experiments.results import Results
from subvene.runner.reports import markup
from subvene.runner.reports.markup import Html, element, facts, folded, items, join, shown, table
from subvene.runner.reports.page import count, page
from subvene.runner.reports.persona_differences import differences
from subvene.runner.reports.persona_examples import examples
from subvene.runner.reports.persona_figures import signed
from subvene.runner.reports.persona_sweep import contrast, cost, sweep
from subvene.runner.reports.persona_tables import (
    COST,
    DROPPED,
    at,
    choices_of,
    conditions_table,
    number,
    persona_files,
    points_of,
    section_of,
)
from subvene.runner.reports.persona_vectors import geometry, projections
from subvene.runner.reports.receipts import RECEIPT_COLUMNS, Read, beside, receipt_cells
from subvene.runner.reports.sections import declared
from subvene.runner.reports.trait_nulls import trait_nulls

_UNITS = {
    "vector": "coefficients multiply the vector",
    "residual_norm": "coefficients in units of the residual stream's typical norm there",
}


def render(results: Results) -> Html:
    """The page as text, the same for the same results."""
    traits = section_of(results).traits
    labels = {condition.label for condition in results.conditions}
    responses = sum(len(condition.items) for condition in results.conditions)
    responses += sum(len(point.items) for trait in traits.values() for point in points_of(trait))
    parts = [count(len(traits), "trait")]
    if labels:
        parts.append(count(len(labels), "condition"))
    parts.append(count(responses, "response"))
    return page(
        results,
        "Persona vectors",
        model=(declared(results).get("model") or {}).get("name"),
        summary=" · ".join(parts),
        notice=_notice(results.notes),
        sections=[(title, made) for title, make in SECTIONS if (made := make(results)) is not None],
    )


def results_table(results: Results) -> Html | None:
    """Every trait under every condition, and what must be known to read it."""
    caption = "Mean ± standard deviation over n responses; ↑ larger is better, ↓ smaller is better"
    parts = [shown(conditions_table(results.conditions), caption)] if results.conditions else []
    return join([*parts, _notes(results)]) if section_of(results).traits else None


def receipts(results: Results) -> Html | None:
    """What the interventions did, and whether caps bit where they should."""
    lines, caps, read = [], [], list[Read]()
    for condition in results.conditions:
        where = [condition.group or "", condition.label]
        for part in cast("list[ReceiptRecord]", condition.receipts.get("responses", [])):
            lines.append([*where, part["name"], *receipt_cells([part])])
            read.append(((*where, part["name"]), [part]))
        edit = Edit.of(condition)
        if edit.threshold:
            shares = (number(edit.expected_share, ".1%"), number(edit.changed_share, ".1%"))
            caps.append([*where, _thresholds(edit.threshold), *shares])
    parts: list[Html] = []
    if lines:
        about = (
            "Tokens edited at each site: of the prompt, its last token (the cursor), the response. ‖Δ‖/‖h‖ "
            "is how large the edit is beside the activation that it meets."
        )
        columns = ["Trait", "Condition", *RECEIPT_COLUMNS]
        parts += [element("p", about), table("What each intervention did", columns, lines, class_="numbers")]
    parts += beside(("Trait", "Condition"), read)
    if caps:
        heads = ["Trait", "Condition", "Threshold of the projection", "Expected to change", "Changed"]
        about = (
            "A cap on the wrong side of its threshold changes the other tokens: the two shares then add up "
            "to about 100% instead of being alike."
        )
        parts += [table("Capping: share of the tokens", heads, caps, class_="numbers"), element("p", about)]
    return join(parts) if parts else None


def extraction(results: Results) -> Html | None:
    """What the vectors were made of."""
    traits = section_of(results).traits
    if not traits:
        return None
    lines = []
    for name, trait in traits.items():
        found = trait.extraction
        lines.append(
            [
                name,
                str(found.pairs),
                str(found.kept),
                *(number(found.dropped.get(reason, 0), "d") for reason in DROPPED),
                number(found.mean_score.positive, ".1f"),
                number(found.mean_score.negative, ".1f"),
                element("span", found.warning, class_="bad") if found.warning else "–",
            ]
        )
    heads = ["Trait", "Pairs", "Kept", *(reason.replace("_", " ") for reason in DROPPED)]
    heads += ["mean score, positive", "mean score, negative", "Warning"]
    about = (
        "A pair is the responses to a positive and to a negative system prompt. Dropped: the positive one "
        "scores too low, the negative one too high, one is incoherent, a refusal or empty, or has no score."
    )
    return join([element("p", about), table("Pairs of responses behind each vector", heads, lines)])


def judge(results: Results) -> Html | None:
    """Who scored, and how far it can be trusted."""
    if not results.judges:
        return None
    record = results.judges[0]
    found = cast("dict[str, Any]", {**record.about, "usage": record.usage})
    parts: list[Html] = []
    lines = []
    for name, stated in (found.get("agreement") or {}).items():
        stated = stated or {}
        values = (number(stated.get(field), ".3f") for field in ("auc", "accuracy"))
        lines.append((name, *values, number(stated.get("n"), "d")))
    if lines:
        about = (
            "How well the judge tells the trait files' written-out contrasts apart; – is not measured. AUC "
            "0.5 is chance."
        )
        heads = ["Trait", "AUC", "Accuracy", "n"]
        parts += [element("p", about), table("Agreement of the judge with the contrasts", heads, lines)]
    parts.append(facts("Judge", {field: value for field, value in found.items() if field != "agreement"}))
    return join(parts)


def provenance(results: Results) -> Html | None:
    """Where the numbers come from."""
    manifest = cast("dict[str, Any]", results.manifest)
    parts = [folded("Experiment", element("pre", manifest["spec"]))] if manifest.get("spec") else []
    for name in ("environment", "git"):
        if manifest.get(name):
            parts.append(facts(name.capitalize(), manifest[name]))
    if sha256 := section_of(results).model_sha256:
        parts.append(facts("Model", {"sha256": sha256}))
    return join(parts) if parts else None


def downloads(results: Results) -> Html | None:
    """The tables as files."""
    return markup.downloads(persona_files(results))


SECTIONS: tuple[tuple[str, Callable[[Results], Html | None]], ...] = (
    ("Results", results_table),
    ("Trait scores of models that say one thing", trait_nulls),
    ("Differences", differences),
    ("Sweep", sweep),
    ("Judge-free contrast", contrast),
    ("Cost", cost),
    ("Projections", projections),
    ("Geometry", geometry),
    ("Examples", examples),
    ("Receipts", receipts),
    ("Extraction", extraction),
    ("Judge", judge),
    ("Environment", provenance),
    ("Downloads", downloads),
)
"""The sections in their order, each with its title; those that give None are left out."""


def _notice(said: Sequence[str]) -> Html | None:
    if not said:
        return None
    title = "Warning" if len(said) == 1 else f"{len(said)} warnings"
    return element("div", element("strong", title), items(*said), class_="warning", role="note")


def _notes(results: Results) -> Html:
    said, choices = [], choices_of(results)
    for name, trait in section_of(results).traits.items():
        place = trait.steering
        if place is None:
            said.append(f"{name}: its vectors are made and not steered by.")
            continue
        unit = _UNITS.get(place.unit, place.unit)
        words = f"{name}: layer {place.layer}, {unit}, positions {_plain(place.positions)}"
        if (chosen := at(choices.get(name))) is not None:
            least = None if trait.sweep is None else trait.sweep.coherence_at_least
            words += (
                f"; chosen on the sweep: layer {chosen[0]}, coefficient {signed(chosen[1])}, by the "
                f"{choices[name].metric} among points with a coherence of at least {number(least, 'g')}"
            )
        said.append(words + ".")
    conditions = results.conditions
    if any("score" in condition.metrics for condition in conditions):
        said.append(
            "Score: how strongly a response shows the trait, coherence: whether it makes sense, both from 0 "
            "to 100 by the judge; a refusal has no score."
        )
    costs = [condition.metrics for condition in conditions if condition.metrics.keys() >= set(COST)]
    if costs:
        said.append(
            "CE is the next-token cross-entropy and KL the divergence KL(original ‖ edited), in nats per "
            f"token on {costs[0]['ce'].n} neutral texts; accuracy is on {costs[0]['accuracy'].n} "
            "multiple-choice questions."
        )
        if any(Edit.of(c).kind in ("prompted", "opposed") and "ce" not in c.metrics for c in conditions):
            said.append("A system prompt edits nothing, so its condition has no CE, KL and accuracy.")
    return items(*said)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _thresholds(by_layer: Mapping[str, float]) -> str:
    said = [f"layer {layer}: {number(value, '.3f')}" for layer, value in by_layer.items()]
    return ", ".join(said) if len(said) <= 3 else folded(f"{len(said)} layers", element("p", ", ".join(said)))
