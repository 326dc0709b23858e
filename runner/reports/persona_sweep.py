"""What was swept in a persona run: score, coherence and the judge-free contrast, and what steering costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from subvene.runner.experiments.persona.section import SweepPoint, TraitRecord
from subvene.runner.experiments.results import Results
from subvene.runner.reports import persona_figures as figures
from subvene.runner.reports.markup import (
    Html,
    element,
    folded,
    join,
    plot,
    side_by_side,
    table,
    with_small_spread,
)
from subvene.runner.reports.persona_figures import signed
from subvene.runner.reports.persona_tables import (
    COST,
    at,
    choices_of,
    conditions_of,
    number,
    points_of,
    section_of,
    spread,
)

_CONTRASTS = {
    "file": "; the answers are those of its trait file",
    "prompted": "; the answers are the untouched model's own, prompted for and against the trait",
}


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
            "not finite" if point.not_finite else with_small_spread(spread(point.score, ".1f")),
            with_small_spread(spread(point.coherence, ".1f")),
            number(point.contrast, ".4f"),
            number(point.refused, "d"),
            number(point.n, "d"),
        )
        for point in sorted(points, key=lambda point: (point.layer, point.coefficient))
    ]
    heads = ["Layer", "Coefficient", "Score", "Coherence", "Contrast", "Refused", "n"]
    caption = f"{name}: mean ± standard deviation over n responses"
    return folded("The numbers", table(caption, heads, lines, class_="numbers"))
