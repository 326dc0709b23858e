"""Sections of a localization report on how its arms came about: chosen points, training, receipts, origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subvene.runner.experiments.rows import METRICS
from subvene.runner.reports import localization_figures as figures
from subvene.runner.reports.curves import point_in_words, validation_grid
from subvene.runner.reports.localization_tables import Results, by_group, group_label, points_in_words
from subvene.runner.reports.markup import Html, element, folded, join, plot, side_by_side, table
from subvene.runner.reports.page import count
from subvene.runner.reports.persona_tables import number
from subvene.runner.reports.sections import RECEIPT_COLUMNS, receipt_cells
from subvene.runner.reports.sections import provenance as comparison_provenance


def selection(results: Results) -> Html | None:
    """What was tried on validation questions, and what was taken."""
    metric = (results.get("selection") or {}).get("metric")
    groups = {
        group: [arm for arm in found if arm.get("candidates")] for group, found in by_group(results).items()
    }
    groups = {group: found for group, found in groups.items() if found}
    if metric is None or not groups:
        return None
    asked = results["selection"].get("questions")
    on = count(asked, "validation question") if asked else "validation questions"
    title = METRICS.get(metric, metric)
    about = (
        f"Each arm is tested at the point with the best {title} on {on}; none of these is a test question."
    )
    drawn, lines = [], []
    for group, found in groups.items():
        grid = [
            {"point": tried["point"], "metrics": {metric: tried["value"]}}
            for arm in found
            for tried in arm["candidates"]
        ]
        made = validation_grid(grid, found)
        name = group_label(group, len(found))
        if made is not None:
            several = f" Mean over {len(found)} arms, with standard deviations." if len(found) > 1 else ""
            # The figure is a comparison's, whose mean is over seeds and folds.
            made.update_traces(
                name="mean over arms" if len(found) > 1 else "value", selector={"mode": "lines+markers"}
            )
            made.update_traces(cliponaxis=False, selector={"mode": "markers+text"})
            drawn.append(plot(made, f"{name}: {title} of each point that was tried.{several}"))
        for arm in found:
            for tried in arm["candidates"]:
                taken = "✓ chosen" if tried["point"] == arm.get("point") else ""
                lines.append(
                    [
                        arm["name"],
                        point_in_words(tried["point"]),
                        "not finite" if "not_finite" in tried else number(tried["value"], ".4f"),
                        taken,
                    ]
                )
    parts = [element("p", about)]
    if drawn:
        parts.append(side_by_side(*drawn))
    every = table("Every point tried, on validation questions", ["Arm", "Point", title, "Taken"], lines)
    parts.append(folded("Every point tried", every))
    return join(parts)


def training(results: Results) -> Html | None:
    """How the edits learned."""
    groups = {
        group: [arm for arm in found if arm.get("training")] for group, found in by_group(results).items()
    }
    groups = {group: found for group, found in groups.items() if found}
    if not groups:
        return None
    drawn = []
    for field, title, about in (
        (
            "loss",
            "validation loss",
            "Loss on the validation pairs by step; losses of different τ are no match.",
        ),
        ("accuracy", "validation accuracy", "Share of the validation pairs whose true answer is preferred."),
    ):
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
            arm["name"],
            points_in_words([arm]),
            *(number(arm["training"].get(name), "d") for name in ("pairs", "steps", "best_step")),
            " → ".join(number(loss, ".4g") for loss in arm["training"].get("epoch_losses") or ()) or "–",
        ]
        for found in groups.values()
        for arm in found
    ]
    heads = ["Arm", "Point", "Pairs", "Steps", "Kept step", "Training loss by epoch"]
    parts = [side_by_side(*drawn)] if drawn else []
    return join([*parts, folded("The numbers", table("What was trained", heads, lines, class_="numbers"))])


def receipts(results: Results) -> Html | None:
    """What the interventions did, the arms of a group together."""
    lines, nothing = [], []
    for group, members in by_group(results).items():
        label, found = group_label(group, len(members)), dict[tuple[str, str], list[Mapping[str, Any]]]()
        for arm in members:
            for measurement, parts in (arm.get("receipts") or {}).items():
                for part in parts or ():
                    found.setdefault((measurement, part["kind"]), []).append(part)
        for (measurement, kind), parts in found.items():
            lines.append([label, measurement.replace("_", " "), kind, *receipt_cells(parts)])
        nothing += [] if found else [label]
    if not lines:
        return None
    about = (
        "Tokens edited at each site: of the prompt, its last token (the cursor), the response; the arms of a "
        "group together. ‖Δ‖/‖h‖ is how large the edit is beside the activation that it meets."
    )
    columns = ["Arm", "Measurement", *RECEIPT_COLUMNS]
    parts_ = [element("p", about), table("What each intervention did", columns, lines, class_="numbers")]
    if nothing:
        without = "Without an intervention at run time (the untouched model, other weights): "
        parts_.append(element("p", without, ", ".join(nothing), "."))
    return join(parts_)


def provenance(results: Results) -> Html | None:
    """How the data were split, and where the numbers come from."""
    split = results.get("split") or {}
    parts = []
    if split:
        parts.append(
            element(
                "p",
                "Questions: ",
                ", ".join(f"{n} {part}" for part, n in split.items() if n is not None),
                ".",
            )
        )
    found = comparison_provenance(results)
    parts += [found] if found is not None else []
    return join(parts) if parts else None
