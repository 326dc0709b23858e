"""Sections of a localization report on how its arms came about: chosen points, training, receipts, origin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from subvene.runner.edits.receipt import ReceiptRecord
from subvene.runner.experiments.localization.section import section_of
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.rows import METRICS
from subvene.runner.reports import localization_figures as figures
from subvene.runner.reports.curves import point_in_words, validation_grid
from subvene.runner.reports.localization_arms import Arm, by_group, group_label, points_in_words
from subvene.runner.reports.localization_tables import value_in_words
from subvene.runner.reports.markup import Html, element, folded, join, plot, side_by_side, table
from subvene.runner.reports.page import count
from subvene.runner.reports.persona_tables import number
from subvene.runner.reports.receipts import RECEIPT_COLUMNS, receipt_cells
from subvene.runner.reports.sections import provenance as comparison_provenance

_CURVES: tuple[tuple[Literal["loss", "accuracy"], str, str], ...] = (
    (
        "loss",
        "validation loss",
        "Loss on the validation pairs by step; losses of different τ are no match.",
    ),
    ("accuracy", "validation accuracy", "Share of the validation pairs whose true answer is preferred."),
)


def selection(results: Results) -> Html | None:
    """What was tried on validation questions, and what was taken."""
    groups = {
        group: chosen
        for group, arms in by_group(results).items()
        if (chosen := [arm for arm in arms if arm.choice is not None])
    }
    if not groups:
        return None
    selected = section_of(results).selection
    on = count(selected.questions, "validation question")
    title = METRICS.get(selected.metric, selected.metric)
    about = (
        f"Each arm is tested at the point with the best {title} on {on}; none of these is a test question."
    )
    drawn = [made for group, arms in groups.items() if (made := _grid(group, arms, title)) is not None]
    lines = [
        [
            arm.name,
            point_in_words(tried.point),
            value_in_words(tried),
            "✓ chosen" if tried.point == arm.choice.chosen else "",
        ]
        for arms in groups.values()
        for arm in arms
        if arm.choice is not None
        for tried in arm.choice.tried
    ]
    parts = [element("p", about)]
    if drawn:
        parts.append(side_by_side(*drawn))
    every = table("Every point tried, on validation questions", ["Arm", "Point", title, "Taken"], lines)
    parts.append(folded("Every point tried", every))
    return join(parts)


def training(results: Results) -> Html | None:
    """How the edits learned."""
    groups = {
        group: learned
        for group, arms in by_group(results).items()
        if (learned := [arm for arm in arms if arm.record.training is not None])
    }
    if not groups:
        return None
    drawn = []
    for field, title, about in _CURVES:
        made = figures.training_curves(groups, field, title)
        if made is not None:
            drawn.append(
                plot(
                    made,
                    f"{about} A line for each arm; ringed: the step kept of one that stands alone.",
                )
            )
    lines = [
        [
            arm.name,
            points_in_words([arm]),
            *(number(n, "d") for n in (trained.pairs, trained.steps, trained.best_step)),
            " → ".join(number(loss, ".4g") for loss in trained.epoch_losses) or "–",
        ]
        for arms in groups.values()
        for arm in arms
        if (trained := arm.record.training) is not None
    ]
    heads = ["Arm", "Point", "Pairs", "Steps", "Kept step", "Training loss by epoch"]
    parts = [side_by_side(*drawn)] if drawn else []
    return join([*parts, folded("The numbers", table("What was trained", heads, lines, class_="numbers"))])


def receipts(results: Results) -> Html | None:
    """What the interventions did, the arms of a group together."""
    lines, nothing = [], []
    for group, members in by_group(results).items():
        label, by_kind = group_label(group, len(members)), dict[tuple[str, str], list[ReceiptRecord]]()
        for arm in members:
            for measurement, receipt in arm.condition.receipts.items():
                for part in cast(list[ReceiptRecord], receipt):
                    by_kind.setdefault((measurement, part["kind"]), []).append(part)
        for (measurement, kind), parts in by_kind.items():
            lines.append([label, measurement.replace("_", " "), kind, *receipt_cells(parts)])
        nothing += [] if by_kind else [label]
    if not lines:
        return None
    about = (
        "Tokens edited at each site: of the prompt, its last token (the cursor), the response; the arms of a "
        "group together. ‖Δ‖/‖h‖ is how large the edit is beside the activation that it meets."
    )
    columns = ["Arm", "Measurement", *RECEIPT_COLUMNS]
    shown = [element("p", about), table("What each intervention did", columns, lines, class_="numbers")]
    if nothing:
        without = "Without an intervention at run time (the untouched model, other weights): "
        shown.append(element("p", without, ", ".join(nothing), "."))
    return join(shown)


def provenance(results: Results) -> Html | None:
    """How the data were split, and where the numbers come from."""
    split, parts = section_of(results).split, []
    if split is not None:
        counts = ", ".join(f"{n} {part}" for part, n in split.model_dump().items())
        parts.append(element("p", "Questions: ", counts, "."))
    found = comparison_provenance(results)
    parts += [found] if found is not None else []
    return join(parts) if parts else None


def _grid(group: str, arms: Sequence[Arm], title: str) -> Html | None:
    made = validation_grid([arm.choice for arm in arms if arm.choice is not None])
    if made is None:
        return None
    several = f" Mean over {len(arms)} arms, with standard deviations." if len(arms) > 1 else ""
    # The figure is a comparison's, whose mean is over seeds and folds.
    made.update_traces(
        name="mean over arms" if len(arms) > 1 else "value", selector={"mode": "lines+markers"}
    )
    made.update_traces(cliponaxis=False, selector={"mode": "markers+text"})
    name = group_label(group, len(arms))
    return plot(made, f"{name}: {title} of each point that was tried.{several}")
