"""The report of a persona run: one HTML file and its tables, from the run's `results.json` alone.

The sections are functions of the results that give markup, or None without their data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from subvene.runner.files.storage import write_text
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
from subvene.runner.reports.persona_figures import signed
from subvene.runner.reports.persona_tables import (
    DROPPED,
    condition_cells,
    layers_of,
    number,
    persona_files,
    spread,
    warnings,
)
from subvene.runner.reports.sections import RECEIPT_COLUMNS, receipt_cells

Results = Mapping[str, Any]
Trait = Mapping[str, Any]

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


def write_persona_report(folder: str | os.PathLike[str], results: Results) -> Path:
    """Write `report.html`; a reader finds the old one or the new one, never half of it.

    Args:
        folder: of the run; made if it is not there.
        results: as in the run's `results.json`.

    Returns:
        The file.
    """
    path = Path(folder) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(results))
    return path


def write_persona_tables(folder: str | os.PathLike[str], results: Results) -> None:
    """Write `tables/`: conditions, sweep, responses, geometry and extraction as CSV, and `conditions.md`.

    Args:
        folder: of the run; made if it is not there.
        results: as in the run's `results.json`.
    """
    tables = Path(folder) / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for name, text in persona_files(results).items():
        write_text(tables / name, text)


def publish_persona(output: Path, results: dict[str, Any]) -> None:
    """Write a run's tables and its report."""
    write_persona_tables(output, results)
    write_persona_report(output, results)


def render(results: Results) -> str:
    """The page as text, the same for the same results."""
    traits = results["traits"].values()
    conditions = {condition["label"] for trait in traits for condition in trait["conditions"]}
    parts = [count(len(results["traits"]), "trait")]
    if conditions:
        parts.append(count(len(conditions), "condition"))
    parts.append(count(sum(len(t["responses"]) + len(t["sweep_responses"]) for t in traits), "response"))
    return page(
        "Persona vectors",
        model=(results["experiment"].get("model") or {}).get("name"),
        summary=" · ".join(parts),
        notice=_notice(warnings(results)),
        sections=[(title, made) for title, make in SECTIONS if (made := make(results)) is not None],
    )


def results_table(results: Results) -> Html | None:
    """Every trait under every condition, and what must be known to read it."""
    lines = [
        [name, condition["label"], *map(_with_small_spread, condition_cells(condition))]
        for name, trait in results["traits"].items()
        for condition in trait["conditions"]
    ]
    heads = ["Trait", "Condition", "Coefficient", "Score", "Coherence ↑", "Projection", "CE ↓", "KL ↓"]
    heads += ["Accuracy ↑", "Refused", "n"]
    caption = "Mean ± standard deviation over n responses; ↑ larger is better, ↓ smaller is better"
    parts = [table(caption, heads, lines, class_="numbers")] if lines else []
    return join([*parts, _notes(results)]) if results["traits"] else None


def sweep(results: Results) -> Html | None:
    """Score and coherence over layers and coefficients."""
    parts: list[Html] = []
    for name, trait in results["traits"].items():
        points = trait["sweep"]
        if not points:
            continue
        chosen = trait["chosen"]
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
    without = [name for name, trait in results["traits"].items() if not trait["sweep"]]
    if without:
        parts.append(element("p", "Not swept: ", ", ".join(without), "."))
    return join(parts)


def contrast(results: Results) -> Html | None:
    """The measure that needs no judge."""
    drawn = []
    for name, trait in results["traits"].items():
        made = figures.contrast_by_coefficient(trait["sweep"], _coefficient([trait]))
        if made is not None:
            source = _CONTRASTS.get(trait.get("contrast_from") or "", "")
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
    conditions = {name: trait["conditions"] for name, trait in results["traits"].items()}
    if not any(condition.get("cost") for group in conditions.values() for condition in group):
        return None
    axis = _coefficient(list(results["traits"].values()))

    def of_cost(field: str) -> Callable[[Mapping[str, Any]], float | None]:
        return lambda condition: (condition.get("cost") or {}).get(field)

    scores = figures.SCORES
    measures: tuple[tuple[Callable[[Mapping[str, Any]], float | None], str, Any, str], ...] = (
        (lambda c: c["score"], "trait score", scores, "What is gained: the steered model's trait score."),
        (lambda c: c["coherence"], "coherence", scores, "Coherence of the same responses."),
        (of_cost("kl"), "KL(original ‖ edited)", None, "KL on neutral texts, in nats per token."),
        (of_cost("ce"), "cross-entropy", None, "Cross-entropy of neutral texts, in nats per token."),
        (of_cost("accuracy"), "accuracy", (0, 1), "Accuracy on multiple-choice questions."),
    )
    drawn = []
    for value, title, bounds, about in measures:
        made = figures.along_coefficient(conditions, value, axis, title, bounds)
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
    for name, trait in results["traits"].items():
        looks = figures.condition_styles(trait["conditions"])
        boxes = figures.projection_boxes(trait["responses"], looks)
        if boxes is None:
            continue
        about = f"{name}: projections on its vector at layer {trait['layer']}; each mark is a response."
        drawn = [plot(boxes, about)]
        scatter = figures.projection_scatter(trait["responses"], looks)
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
    found = results.get("geometry")
    if not found:
        return None
    names, layers = found["traits"], layers_of(results)
    parts: list[Html] = []
    drawn = []
    if len(names) > 1:
        about = f"Cosine similarity of the traits' vectors at layer {found['layer']}."
        drawn.append(plot(figures.cosine_map(names, found["cosine_at_layer"]), about))
    pairs = {pair.replace("|", " · "): (layers, values) for pair, values in found["cosine_by_layer"].items()}
    for lines, y, bounds, about in (
        (pairs, "cosine", (-1, 1), "Cosine similarity of each pair of traits at each layer."),
        (_per_layer(found["norms"], layers), "‖v‖", None, "Norms of the vectors at each layer."),
        (
            {
                name: (
                    [vector["layer"] for vector in trait["vectors"]],
                    [vector["residual_norm"] for vector in trait["vectors"]],
                )
                for name, trait in results["traits"].items()
            },
            "typical ‖h‖",
            None,
            "Typical norm of the residual stream at each layer, on the trait's own responses.",
        ),
        (
            _per_layer(found["explained_variance"], layers),
            "explained variance",
            (0, 1),
            "Share of the pairs' differences that lies along their mean, at each layer.",
        ),
    ):
        made = figures.by_layer(lines, y, found["layer"], bounds)
        if made is not None:
            marked = f" The dashed line is layer {found['layer']}."
            drawn.append(plot(made, about + marked))
    parts.append(side_by_side(*drawn))
    if len(layers) > 1:
        parts.append(element("h3", "Across layers"))
        across = "cosine similarity of its vectors at different layers."
        parts.append(
            side_by_side(
                *(
                    plot(figures.layer_map(layers, matrix), f"{name}: {across}")
                    for name, matrix in found["across_layers"].items()
                )
            )
        )
    if len(names) > 1:
        lines_ = [
            (name, *(number(value, ".3f") for value in row))
            for name, row in zip(names, found["cosine_at_layer"], strict=True)
        ]
        caption = f"Cosine similarity at layer {found['layer']}"
        parts.append(
            folded("The cosines as a table", table(caption, ["Trait", *names], lines_, class_="numbers"))
        )
    return join(parts)


def examples(results: Results) -> Html | None:
    """The same question at a negative, at zero and at a positive coefficient, and under each condition."""
    options: list[Html] = []
    panels: list[Html] = []
    for name, trait in results["traits"].items():
        content = [*_along_coefficient(trait, f"examples-{len(panels)}")]
        by_condition = _by_condition(trait)
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
    for name, trait in results["traits"].items():
        for condition in trait["conditions"]:
            label = condition["label"]
            for part in condition.get("receipt") or ():
                lines.append([name, label, part["name"], *receipt_cells([part])])
            if condition.get("threshold"):
                expected, changed = condition["expected_share"], condition["changed_share"]
                shares = (number(expected, ".1%"), number(changed, ".1%"))
                caps.append([name, label, _thresholds(condition["threshold"]), *shares])
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
    if not results["traits"]:
        return None
    lines = []
    for name, trait in results["traits"].items():
        found = trait["extraction"]
        mean = found["mean_score"]
        lines.append(
            [
                name,
                str(found["pairs"]),
                str(found["kept"]),
                *(number(found["dropped"].get(reason, 0), "d") for reason in DROPPED),
                number(mean["positive"], ".1f"),
                number(mean["negative"], ".1f"),
                element("span", found["warning"], class_="bad") if found.get("warning") else "–",
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
    found = results.get("judge")
    if not found:
        return None
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
    text = yaml.safe_dump(results["experiment"], sort_keys=False, allow_unicode=True)
    parts = [folded("Experiment", element("pre", text))]
    for name in ("environment", "git"):
        if results.get(name):
            parts.append(facts(name.capitalize(), results[name]))
    if results.get("model_sha256"):
        parts.append(facts("Model", {"sha256": results["model_sha256"]}))
    return join(parts)


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
    said = []
    for name, trait in results["traits"].items():
        if trait.get("layer") is None:
            said.append(f"{name}: its vectors are made and not steered by.")
            continue
        unit = _UNITS.get(trait["unit"], trait["unit"])
        words = f"{name}: layer {trait['layer']}, {unit}, positions {_plain(trait['positions'])}"
        chosen = trait["chosen"]
        if chosen:
            at = f"layer {chosen['layer']}, coefficient {signed(chosen['coefficient'])}"
            words += (
                f"; chosen on the sweep: {at}, by the {chosen['by']} among points with a coherence of at "
                f"least {chosen['coherence_at_least']:g}"
            )
        said.append(words + ".")
    conditions = [c for trait in results["traits"].values() for c in trait["conditions"]]
    if any(condition["score"] is not None for condition in conditions):
        said.append(
            "Score: how strongly a response shows the trait, coherence: whether it makes sense, both from 0 "
            "to 100 by the judge; a refusal has no score."
        )
    costs = [condition["cost"] for condition in conditions if condition.get("cost")]
    if costs:
        said.append(
            "CE is the next-token cross-entropy and KL the divergence KL(original ‖ edited), in nats per "
            f"token on {costs[0]['texts']} neutral texts; accuracy is on {costs[0]['choices']} "
            "multiple-choice questions."
        )
        if any(c["kind"] in ("prompted", "opposed") and not c.get("cost") for c in conditions):
            said.append("A system prompt edits nothing, so its condition has no CE, KL and accuracy.")
    return items(*said)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _coefficient(traits: Sequence[Trait]) -> str:
    units = {trait.get("unit") for trait in traits} - {None}
    if units == {"residual_norm"}:
        return "coefficient, in units of the residual norm"
    return "coefficient" if len(units) < 2 else "coefficient, in each trait's own unit"


def _sweep_numbers(name: str, points: Sequence[Mapping[str, Any]]) -> Html:
    lines = [
        (
            str(point["layer"]),
            signed(point["coefficient"]),
            "not finite"
            if "not_finite" in point
            else _with_small_spread(spread(point["score"], point["score_sd"], ".1f")),
            _with_small_spread(spread(point["coherence"], point["coherence_sd"], ".1f")),
            number(point.get("contrast"), ".4f"),
            number(point["refused"], "d"),
            number(point["n"], "d"),
        )
        for point in sorted(points, key=lambda point: (point["layer"], point["coefficient"]))
    ]
    heads = ["Layer", "Coefficient", "Score", "Coherence", "Contrast", "Refused", "n"]
    caption = f"{name}: mean ± standard deviation over n responses"
    return folded("The numbers", table(caption, heads, lines, class_="numbers"))


def _correlation(trait: Trait) -> str:
    found = trait["correlation"]
    pearson, spearman = (number(found[name], ".2f") for name in ("pearson", "spearman"))
    return f"Correlation: Pearson {pearson}, Spearman {spearman}, over {found['n']} responses."


def _per_layer(
    values: Mapping[str, Sequence[float | None]], layers: Sequence[int]
) -> dict[str, tuple[Sequence[int], Sequence[float | None]]]:
    return {name: (layers, found) for name, found in values.items()}


def _thresholds(by_layer: Mapping[str, float]) -> str:
    said = [f"layer {layer}: {number(value, '.3f')}" for layer, value in by_layer.items()]
    return ", ".join(said) if len(said) <= 3 else folded(f"{len(said)} layers", element("p", ", ".join(said)))


def _along_coefficient(trait: Trait, anchor: str) -> list[Html]:
    """Articles of the sweep's responses at −, 0 and +, with a field to look through them."""
    picked = _points_shown(trait)
    if not picked:
        return []
    answers: dict[str, dict[tuple[int, float], Mapping[str, Any]]] = {}
    for response in trait["sweep_responses"]:
        at = (response["layer"], response["coefficient"])
        if at in picked:
            answers.setdefault(response["question"], {}).setdefault(at, response)
    layer = picked[-1][0]
    articles = [
        _article(
            question,
            [
                (
                    f"coefficient {signed(at[1])}",
                    by_point[at],
                    "" if at[0] == layer or not at[1] else f"layer {at[0]}",
                )
                for at in picked
                if at in by_point
            ],
        )
        for question, by_point in list(answers.items())[:EXAMPLES]
    ]
    search = element("input", type="search", data_filters=anchor)
    signs = ", ".join(signed(at[1]) for at in picked)
    about = (
        f"The sweep's responses to the same question at coefficients {signs}, layer {layer}; the first one "
        "where there are several."
    )
    return [
        element("p", about),
        element("p", element("label", "Show those with ", search), " ", element("span", aria_live="polite")),
        element("div", *articles, id=anchor),
    ]


def _points_shown(trait: Trait) -> list[tuple[int, float]]:
    """A negative, the zero and a positive point of the sweep, as far as there are responses at them.

    The positive one is the chosen one; without a choice the largest that is still coherent. The negative one
    is the nearest in size to it, at the same layer.
    """
    points = {(response["layer"], response["coefficient"]) for response in trait["sweep_responses"]}
    if not points:
        return []
    layers = {layer for layer, coefficient in points if coefficient}
    chosen = trait["chosen"] or {}
    wanted: list[Any] = [at for at in (chosen.get("layer"), trait.get("layer")) if at in layers]
    layer: int = wanted[0] if wanted else min(layers or {layer for layer, _ in points})
    here = {coefficient for at, coefficient in points if at == layer}
    positive = sorted(coefficient for coefficient in here if coefficient > 0)
    negative = sorted((coefficient for coefficient in here if coefficient < 0), reverse=True)
    picked: list[tuple[int, float]] = []
    best = None
    if positive:
        coherent = {
            point["coefficient"]
            for point in trait["sweep"]
            if point["layer"] == layer and (point["coherence"] or 0.0) >= _COHERENT
        }
        kept = [coefficient for coefficient in positive if coefficient in coherent]
        best = kept[-1] if kept else positive[0]
        if chosen.get("layer") == layer and chosen.get("coefficient") in positive:
            best = chosen["coefficient"]
    if negative:
        picked.append(
            (layer, min(negative, key=lambda c: abs(c + best)) if best is not None else negative[0])
        )
    zeros = sorted(at for at, coefficient in points if coefficient == 0)
    if zeros:
        # Unedited, it is the same at every layer, and may stand at one only.
        picked.append((layer if layer in zeros else zeros[0], 0.0))
    if best is not None:
        picked.append((layer, best))
    return picked


def _by_condition(trait: Trait) -> Html | None:
    answers: dict[str, dict[str, Mapping[str, Any]]] = {}
    for response in trait["responses"]:
        answers.setdefault(response["question"], {}).setdefault(response["condition"], response)
    if not answers:
        return None
    order = [condition["label"] for condition in trait["conditions"]]
    return element(
        "div",
        *(
            _article(question, [(label, by_label[label], "") for label in order if label in by_label])
            for question, by_label in list(answers.items())[:EXAMPLES]
        ),
    )


def _article(question: str, responses: Sequence[tuple[str, Mapping[str, Any], str]]) -> Html:
    cards = []
    for title, response, where in responses:
        text = response["text"]
        verdicts = [
            element("span", f"{name} {number(response.get(name), form)}", class_="verdict")
            for name, form in (("score", ".1f"), ("coherence", ".1f"), ("projection", ".2f"))
            if name in response
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
