"""The vectors of a persona run: where responses lie along them, and how they lie to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from subvene.runner.experiments.persona.section import TraitRecord
from subvene.runner.experiments.results import Results
from subvene.runner.reports import persona_vector_figures as figures
from subvene.runner.reports.markup import Html, element, folded, join, plot, side_by_side, table
from subvene.runner.reports.persona_tables import conditions_of, number, section_of


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


def _correlation(trait: TraitRecord) -> str:
    found, within = trait.correlation, trait.within
    pearson, spearman = (number(value, ".2f") for value in (found.pearson, found.spearman))
    said = f"Correlation: Pearson {pearson}, Spearman {spearman}, over {found.n} responses"
    if not within.n:
        return f"{said}."
    pearson, spearman = (number(value, ".2f") for value in (within.pearson, within.spearman))
    return f"{said}; within conditions {pearson} and {spearman}."


def _per_layer(
    values: Mapping[str, Sequence[float | None]], layers: Sequence[int]
) -> dict[str, tuple[Sequence[int], Sequence[float | None]]]:
    return {name: (layers, found) for name, found in values.items()}
