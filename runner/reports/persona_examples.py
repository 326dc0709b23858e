"""Responses of a persona run side by side: along the coefficient, and under every condition."""

from __future__ import annotations

from collections.abc import Sequence

from subvene.runner.experiments.persona.section import TraitRecord
from subvene.runner.experiments.results import Condition, Item, Results
from subvene.runner.reports.markup import Html, element, folded, join
from subvene.runner.reports.persona_figures import At, signed
from subvene.runner.reports.persona_tables import at, choices_of, conditions_of, number, points_of, section_of

EXAMPLES = 10
_COHERENT = 50.0


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
