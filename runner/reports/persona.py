"""The report of a persona run: one HTML file, from the run's results alone.

The sections are functions of the results that give markup, or None without their data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from subvene.runner.experiments.persona.section import Edit, SweepPoint, TraitRecord
from subvene.runner.experiments.results import Condition, Item, Results
from subvene.runner.reports import markup
from subvene.runner.reports import persona_figures as figures
from subvene.runner.reports.markup import (
    Html,
    element,
    facts,
    folded,
    items,
    join,
    plot,
    side_by_side,
    table,
)
from subvene.runner.reports.page import count, page
from subvene.runner.reports.persona_figures import At, signed
from subvene.runner.reports.persona_tables import (
    COST,
    DROPPED,
    at,
    choices_of,
    condition_cells,
    number,
    persona_files,
    section_of,
    spread,
)
from subvene.runner.reports.sections import RECEIPT_COLUMNS, declared, receipt_cells

EXAMPLES = 10
_COHERENT = 50.0
_UNITS = {
    "vector": "coefficients multiply the vector",
    "residual_norm": "coefficients in units of the residual stream's typical norm there",
}
_CONTRASTS = {
    "file": "; the answers are those of its trait file",
    "prompted": "; the answers are the untouched model's own, prompted for and against the trait",
}


def render(results: Results) -> str:
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
        "Persona vectors",
        model=(declared(results).get("model") or {}).get("name"),
        summary=" · ".join(parts),
        notice=_notice(results.notes),
        sections=[(title, made) for title, make in SECTIONS if (made := make(results)) is not None],
    )


def points_of(trait: TraitRecord) -> Sequence[SweepPoint]:
    """The points of a trait's sweep; none where it was not swept."""
    return trait.sweep.points if trait.sweep else ()


def conditions_of(results: Results) -> dict[str, list[Condition]]:
    """The conditions of every trait."""
    return {
        name: [condition for condition in results.conditions if condition.group == name]
        for name in section_of(results).traits
    }


def results_table(results: Results) -> Html | None:
    """Every trait under every condition, and what must be known to read it."""
    lines = [
        [condition.group or "", condition.label, *map(_with_small_spread, condition_cells(condition))]
        for condition in results.conditions
    ]
    heads = ["Trait", "Condition", "Coefficient", "Score", "Coherence ↑", "Projection", "CE ↓", "KL ↓"]
    heads += ["Accuracy ↑", "Refused", "n"]
    caption = "Mean ± standard deviation over n responses; ↑ larger is better, ↓ smaller is better"
    parts = [table(caption, heads, lines, class_="numbers")] if lines else []
    return join([*parts, _notes(results)]) if section_of(results).traits else None


def sweep(results: Results) -> Html | None:
    """Score and coherence over layers and coefficients."""
    parts: list[Html] = []
    traits, choices = section_of(results).traits, choices_of(results)
    for name, trait in traits.items():
        points, chosen = points_of(trait), at(choices.get(name))
        if not points:
            continue
        ring = " The point that was chosen is ringed." if chosen else ""
        drawn = [
            plot(
                figures.score_by_coefficient(points, chosen, _coefficient([trait])),
                f"{name}: trait score (solid) and coherence (dotted) against the coefficient.{ring}",
            )
        ]
        across = figures.score_by_layer(points, chosen)
        if across is not None:
            drawn.append(plot(across, f"{name}: trait score by layer, a line for each coefficient.{ring}"))
        parts += [element("h3", name), side_by_side(*drawn), _sweep_numbers(name, points)]
    if not parts:
        return None
    without = [name for name, trait in traits.items() if not points_of(trait)]
    if without:
        parts.append(element("p", "Not swept: ", ", ".join(without), "."))
    return join(parts)


def contrast(results: Results) -> Html | None:
    """The measure that needs no judge."""
    drawn = []
    for name, trait in section_of(results).traits.items():
        made = figures.contrast_by_coefficient(points_of(trait), _coefficient([trait]))
        if made is not None:
            source = _CONTRASTS.get((trait.sweep and trait.sweep.contrast_from) or "", "")
            drawn.append(plot(made, f"{name}: the contrast against the coefficient{source}."))
    if not drawn:
        return None
    about = (
        "How much likelier the model finds held-out answers that show the trait than answers that show its "
        "opposite: the difference of their mean log-probabilities per token. No judge has a say in it."
    )
    return join([element("p", about), side_by_side(*drawn)])


def cost(results: Results) -> Html | None:
    """What steering costs, beside what it gains."""
    conditions = conditions_of(results)
    if not any(condition.metrics.keys() & set(COST) for condition in results.conditions):
        return None
    axis = _coefficient(list(section_of(results).traits.values()))
    scores = figures.SCORES
    measures: tuple[tuple[str, str, Any, str], ...] = (
        ("score", "trait score", scores, "What is gained: the steered model's trait score."),
        ("coherence", "coherence", scores, "Coherence of the same responses."),
        ("kl", "KL(original ‖ edited)", None, "KL on neutral texts, in nats per token."),
        ("ce", "cross-entropy", None, "Cross-entropy of neutral texts, in nats per token."),
        ("accuracy", "accuracy", (0, 1), "Accuracy on multiple-choice questions."),
    )
    drawn = []
    for metric, title, bounds, about in measures:
        made = figures.along_coefficient(conditions, metric, axis, title, bounds)
        if made is not None:
            drawn.append(plot(made, about))
    against = figures.score_against_kl(conditions)
    if against is not None:
        about = "Score against KL, a mark for each condition with a cost, capping and ablation among them."
        drawn.append(plot(against, about))
    if not drawn:
        return None
    about = "Steered conditions, with the untouched model at coefficient 0."
    return join([element("p", about), side_by_side(*drawn)])


def projections(results: Results) -> Html | None:
    """Where the responses lie along the vector, and whether the judge sees the same."""
    parts: list[Html] = []
    conditions = conditions_of(results)
    for name, trait in section_of(results).traits.items():
        looks = figures.condition_styles(conditions[name])
        boxes = figures.projection_boxes(conditions[name], looks)
        if boxes is None:
            continue
        where = f" at layer {trait.steering.layer}" if trait.steering else ""
        about = f"{name}: projections on its vector{where}; each mark is a response."
        drawn = [plot(boxes, about)]
        scatter = figures.projection_scatter(conditions[name], looks, results.questions)
        if scatter is not None:
            drawn.append(plot(scatter, f"{name}: score against projection. {_correlation(trait)}"))
        parts += [element("h3", name), side_by_side(*drawn)]
    if not parts:
        return None
    about = (
        "The projection of a response is ⟨ā, v⟩/‖v‖, with ā the mean activation over the response's tokens."
    )
    return join([element("p", about), *parts])


def geometry(results: Results) -> Html | None:
    """How the vectors lie to each other and to themselves at other layers."""
    found, traits = section_of(results).geometry, section_of(results).traits
    if found is None:
        return None
    names, layers = found.traits, found.layers
    parts: list[Html] = []
    drawn = []
    if len(names) > 1:
        about = f"Cosine similarity of the traits' vectors at layer {found.layer}."
        drawn.append(plot(figures.cosine_map(names, found.cosine_at_layer), about))
    pairs = {pair.replace("|", " · "): (layers, values) for pair, values in found.cosine_by_layer.items()}
    for lines, y, bounds, about in (
        (pairs, "cosine", (-1, 1), "Cosine similarity of each pair of traits at each layer."),
        (_per_layer(found.norms, layers), "‖v‖", None, "Norms of the vectors at each layer."),
        (
            {
                name: (
                    [vector.layer for vector in trait.vectors],
                    [vector.residual_norm for vector in trait.vectors],
                )
                for name, trait in traits.items()
            },
            "typical ‖h‖",
            None,
            "Typical norm of the residual stream at each layer, on the trait's own responses.",
        ),
        (
            _per_layer(found.explained_variance, layers),
            "explained variance",
            (0, 1),
            "Share of the pairs' differences that lies along their mean, at each layer.",
        ),
    ):
        made = figures.by_layer(lines, y, found.layer, bounds)
        if made is not None:
            marked = f" The dashed line is layer {found.layer}."
            drawn.append(plot(made, about + marked))
    parts.append(side_by_side(*drawn))
    if len(layers) > 1:
        parts.append(element("h3", "Across layers"))
        across = "cosine similarity of its vectors at different layers."
        parts.append(
            side_by_side(
                *(
                    plot(figures.layer_map(layers, matrix), f"{name}: {across}")
                    for name, matrix in found.across_layers.items()
                )
            )
        )
    if len(names) > 1:
        lines_ = [
            (name, *(number(value, ".3f") for value in row))
            for name, row in zip(names, found.cosine_at_layer, strict=True)
        ]
        caption = f"Cosine similarity at layer {found.layer}"
        parts.append(
            folded("The cosines as a table", table(caption, ["Trait", *names], lines_, class_="numbers"))
        )
    return join(parts)


def examples(results: Results) -> Html | None:
    """The same question at a negative, at zero and at a positive coefficient, and under each condition."""
    options: list[Html] = []
    panels: list[Html] = []
    conditions, choices = conditions_of(results), choices_of(results)
    for name, trait in section_of(results).traits.items():
        content = _along_coefficient(results, trait, at(choices.get(name)), f"examples-{len(panels)}")
        by_condition = _by_condition(results, conditions[name])
        if by_condition is not None:
            title = "The same question under every condition"
            content.append(folded(title, by_condition) if content else by_condition)
        if content:
            options.append(element("option", name, value=str(len(panels))))
            panels.append(element("div", *content, hidden=bool(panels)))
    if not panels:
        return None
    about = element("p", "All responses are in ", element("a", "responses.csv", href="#downloads"), ".")
    if len(panels) == 1:
        return join([about, *panels])
    chooser = element("label", "Trait ", element("select", *options, data_panels="example-panels"))
    return join([about, element("p", chooser), element("div", *panels, id="example-panels")])


def receipts(results: Results) -> Html | None:
    """What the interventions did, and whether caps bit where they should."""
    lines, caps = [], []
    for condition in results.conditions:
        where = [condition.group or "", condition.label]
        for part in cast("list[dict[str, Any]]", condition.receipts.get("responses", [])):
            lines.append([*where, part["name"], *receipt_cells([part])])
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
        shown = (number(stated.get(field), ".3f") for field in ("auc", "accuracy"))
        lines.append((name, *shown, number(stated.get("n"), "d")))
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


def _with_small_spread(cell: str) -> str:
    mean, plus_minus, sd = cell.partition(" ± ")
    return join([mean, element("small", plus_minus + sd)]) if sd else cell


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


def _coefficient(traits: Sequence[TraitRecord]) -> str:
    units = {trait.steering.unit for trait in traits if trait.steering}
    if units == {"residual_norm"}:
        return "coefficient, in units of the residual norm"
    return "coefficient" if len(units) < 2 else "coefficient, in each trait's own unit"


def _sweep_numbers(name: str, points: Sequence[SweepPoint]) -> Html:
    lines = [
        (
            str(point.layer),
            signed(point.coefficient),
            "not finite" if point.not_finite else _with_small_spread(spread(point.score, ".1f")),
            _with_small_spread(spread(point.coherence, ".1f")),
            number(point.contrast, ".4f"),
            number(point.refused, "d"),
            number(point.n, "d"),
        )
        for point in sorted(points, key=lambda point: (point.layer, point.coefficient))
    ]
    heads = ["Layer", "Coefficient", "Score", "Coherence", "Contrast", "Refused", "n"]
    caption = f"{name}: mean ± standard deviation over n responses"
    return folded("The numbers", table(caption, heads, lines, class_="numbers"))


def _correlation(trait: TraitRecord) -> str:
    found = trait.correlation
    pearson, spearman = (number(value, ".2f") for value in (found.pearson, found.spearman))
    return f"Correlation: Pearson {pearson}, Spearman {spearman}, over {found.n} responses."


def _per_layer(
    values: Mapping[str, Sequence[float | None]], layers: Sequence[int]
) -> dict[str, tuple[Sequence[int], Sequence[float | None]]]:
    return {name: (layers, found) for name, found in values.items()}


def _thresholds(by_layer: Mapping[str, float]) -> str:
    said = [f"layer {layer}: {number(value, '.3f')}" for layer, value in by_layer.items()]
    return ", ".join(said) if len(said) <= 3 else folded(f"{len(said)} layers", element("p", ", ".join(said)))


def _along_coefficient(results: Results, trait: TraitRecord, chosen: At, anchor: str) -> list[Html]:
    """Articles of the sweep's responses at −, 0 and +, with a field to look through them."""
    picked = _points_shown(trait, chosen)
    if not picked:
        return []
    answers: dict[str, dict[tuple[int, float], Item]] = {}
    for point in points_of(trait):
        if (place := (point.layer, point.coefficient)) in picked:
            for item in point.items:
                answers.setdefault(item.key, {}).setdefault(place, item)
    layer = picked[-1][0]
    articles = [
        _article(
            results.questions[key].question,
            [
                (
                    f"coefficient {signed(place[1])}",
                    by_point[place],
                    "" if place[0] == layer or not place[1] else f"layer {place[0]}",
                )
                for place in picked
                if place in by_point
            ],
        )
        for key, by_point in list(answers.items())[:EXAMPLES]
    ]
    search = element("input", type="search", data_filters=anchor)
    signs = ", ".join(signed(coefficient) for _, coefficient in picked)
    about = (
        f"The sweep's responses to the same question at coefficients {signs}, layer {layer}; the first one "
        "where there are several."
    )
    return [
        element("p", about),
        element("p", element("label", "Show those with ", search), " ", element("span", aria_live="polite")),
        element("div", *articles, id=anchor),
    ]


def _points_shown(trait: TraitRecord, chosen: At) -> list[tuple[int, float]]:
    """A negative, the zero and a positive point of the sweep, as far as there are responses at them.

    The positive one is the chosen one; without a choice the largest that is still coherent. The negative one
    is the nearest in size to it, at the same layer.
    """
    points = {(point.layer, point.coefficient) for point in points_of(trait) if point.items}
    if not points:
        return []
    layers = {layer for layer, coefficient in points if coefficient}
    wanted = [chosen[0]] if chosen else []
    wanted += [trait.steering.layer] if trait.steering else []
    layer = next((one for one in wanted if one in layers), min(layers or {layer for layer, _ in points}))
    here = {coefficient for at_layer, coefficient in points if at_layer == layer}
    positive = sorted(coefficient for coefficient in here if coefficient > 0)
    negative = sorted((coefficient for coefficient in here if coefficient < 0), reverse=True)
    picked: list[tuple[int, float]] = []
    best = None
    if positive:
        coherent = {
            point.coefficient
            for point in points_of(trait)
            if point.layer == layer and point.coherence is not None and point.coherence.mean >= _COHERENT
        }
        kept = [coefficient for coefficient in positive if coefficient in coherent]
        best = kept[-1] if kept else positive[0]
        if chosen is not None and chosen[0] == layer and chosen[1] in positive:
            best = chosen[1]
    if negative:
        picked.append(
            (layer, min(negative, key=lambda c: abs(c + best)) if best is not None else negative[0])
        )
    zeros = sorted(at_layer for at_layer, coefficient in points if coefficient == 0)
    if zeros:
        # Unedited, it is the same at every layer, and may stand at one only.
        picked.append((layer if layer in zeros else zeros[0], 0.0))
    if best is not None:
        picked.append((layer, best))
    return picked


def _by_condition(results: Results, conditions: Sequence[Condition]) -> Html | None:
    answers: dict[str, dict[str, Item]] = {}
    for condition in conditions:
        for item in condition.items:
            answers.setdefault(item.key, {}).setdefault(condition.label, item)
    if not answers:
        return None
    return element(
        "div",
        *(
            _article(results.questions[key].question, [(label, item, "") for label, item in by_label.items()])
            for key, by_label in list(answers.items())[:EXAMPLES]
        ),
    )


def _article(question: str, responses: Sequence[tuple[str, Item, str]]) -> Html:
    cards = []
    for title, item, where in responses:
        text = item.text or ""
        verdicts = [
            element("span", f"{name} {number(item.scores[name], form)}", class_="verdict")
            for name, form in (("score", ".1f"), ("coherence", ".1f"), ("projection", ".2f"))
            if name in item.scores
        ]
        small = [" ", element("small", where)] if where else []
        quoted = text if text.strip() else element("em", "(empty)")
        cards.append(
            element(
                "div",
                element("h4", title, *small),
                element("blockquote", quoted),
                element("p", *verdicts),
            )
        )
    return element("article", element("h3", question), element("div", *cards, class_="answers"))
