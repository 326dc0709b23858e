"""The sweep: one batched generation carries many layers and many coefficients, a row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from subvene.runner.data.text import prompt_ids, reply_ids
from subvene.runner.data.traits import Contrast, Trait
from subvene.runner.edits.finite_points import SomeNotFinite, listed, over_finite_points
from subvene.runner.edits.finite_points import by_point as points_in
from subvene.runner.experiments.choose import best_of
from subvene.runner.experiments.persona.section import Sweep, SweepPoint, counts_of, item_of
from subvene.runner.experiments.results import Choice, Tried, metric_of
from subvene.runner.files.json_value import Json
from subvene.runner.intervened.layer_sweep import UNEDITED, Point, panel, strengths_at
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Row, rollouts
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.judges import Judge, JudgeError
from subvene.runner.measures.missing import missing_in_words
from subvene.runner.measures.responses import Answered, Asked, Do, Response, missing_reasons, respond
from subvene.specs import SteeringSpec, TraitSweepSpec


class _Ratios(SomeNotFinite):
    values: list[float | None]


@dataclass(frozen=True)
class Swept:
    """What the sweep of one trait gave.

    Attributes:
        sweep: its points.
        choice: among them; None where nothing is to be chosen.
        notes: what must be known to read it.
    """

    sweep: Sweep
    choice: Choice | None
    notes: list[str]


def run_sweep(
    declared: TraitSweepSpec,
    trait: Trait,
    steering: SteeringSpec,
    tensors: Mapping[str, torch.Tensor],
    plain: IntervenedModel,
    judge: Judge,
    *,
    identity: Mapping[str, Json],
    seed: int,
    do: Do,
) -> Swept:
    """Score every layer and coefficient.

    Args:
        declared: what is swept.
        trait: whose vectors.
        steering: the intervention that is swept: its unit and positions stay.
        tensors: the vectors by full name.
        plain: the unedited model.
        judge: who scores.
        identity: what the tensors and the model are, JSON values.
        seed: of the run.
        do: does a unit of work, or gives what is recorded of it.

    Returns:
        The points, the choice among them, and what is to be said of it. A point at which the model is no
        longer finite has no numbers, and `not_finite` says so in words.

    Raises:
        JudgeError: a point is to be chosen, and the judge still owes verdicts.
    """
    coefficients = sorted({0.0, *declared.coefficients})
    points: list[Point] = [(layer, c) for layer in declared.layers for c in coefficients if c]
    m = panel(steering, declared.layers, tensors, plain)
    about = {**identity, **_about(trait, steering, points), "seed": seed}
    name = f"{trait.name}: sweep"
    asked = _asked(declared, trait, points)
    answered = respond(
        lambda: m,
        asked,
        declared.sampling,
        trait,
        judge,
        identity=about | {"unit": "sweep"},
        seed=seed,
        description=name,
        do=do,
        points=[(*one.point,) for one in asked if one.point is not None],
    )
    missing = missing_reasons(answered.responses)
    if missing and declared.choose is not None:
        raise JudgeError(f"{name}: nothing can be chosen yet: {missing_in_words(missing)}")
    not_finite: dict[tuple[object, ...] | None, str] = dict(answered.not_finite)
    by_point = _by_point(answered)
    contrasts, source = _contrasts(declared, trait, plain)
    measured: dict[Point, float | None] = {}
    if contrasts:
        scored = [point for point in [UNEDITED, *points] if point not in not_finite]
        ratios = do(about | _contrast_unit(contrasts), lambda: _log_ratios(m, scored, contrasts))
        measured = dict(zip(scored, ratios["values"], strict=True))
        not_finite |= points_in(ratios)
    swept = []
    for layer in declared.layers:
        for coefficient in coefficients:
            point = (layer, coefficient) if coefficient else UNEDITED
            contrast, broken = measured.get(point), not_finite.get(point)
            swept.append(_swept_point(layer, coefficient, by_point[point], contrast, broken))
    choice = choice_of(declared, trait.name, swept, contrasts=len(contrasts))
    least = None if declared.choose is None else declared.choose.coherence
    whole = Sweep(
        points=tuple(swept), contrast_from=source, contrasts=len(contrasts), coherence_at_least=least
    )
    notes = _not_finite_in_words(trait.name, swept)
    notes += [f"{name}: {missing_in_words(missing)}"] if missing else []
    if choice is not None and choice.chosen is None:
        notes.append(_no_choice_in_words(trait.name, least, steering))
    return Swept(whole, choice, notes)


def _asked(declared: TraitSweepSpec, trait: Trait, points: Sequence[Point]) -> list[Asked]:
    """What the model is asked; unedited once for all layers."""
    return [
        Asked(question, strengths=strengths_at(point), rollout=rollout, point=point)
        for point in [UNEDITED, *points]
        for question in trait.evaluation[: declared.questions]
        for rollout in range(declared.sampling.rollouts)
    ]


def _about(trait: Trait, steering: SteeringSpec, points: Sequence[Point]) -> dict[str, Json]:
    """What the units of a sweep depend on, JSON values."""
    return {
        "trait": trait.sha256,
        "steering": steering.model_dump(mode="json", exclude={"name", "layer", "coefficient"}),
        "points": [list(point) for point in points],
    }


def _by_point(answered: Answered) -> dict[tuple[object, ...] | None, list[Response]]:
    by_point: dict[tuple[object, ...] | None, list[Response]] = {point: [] for point in answered.not_finite}
    for response in answered.responses:
        by_point.setdefault(response.asked.point, []).append(response)
    return by_point


def _contrast_unit(contrasts: Sequence[Contrast]) -> dict[str, Json]:
    return {"unit": "contrast", "contrasts": [[c.question, c.positive, c.negative] for c in contrasts]}


def _no_choice_in_words(name: str, least: float | None, steering: SteeringSpec) -> str:
    return (
        f"{name}: no point of the sweep with a positive coefficient has a mean coherence of "
        f"{least:g}; the declared layer {steering.layer} and coefficient {steering.coefficient} stay"
    )


def _not_finite_in_words(name: str, points: Sequence[SweepPoint]) -> list[str]:
    return [
        f"{name}: layer {point.layer}, coefficient {point.coefficient:g}: not finite: {point.not_finite}"
        for point in points
        if point.not_finite is not None
    ]


def choice_of(
    declared: TraitSweepSpec, name: str, points: Sequence[SweepPoint], *, contrasts: int = 0
) -> Choice | None:
    """The choice of the best point with a positive coefficient that is coherent enough.

    Args:
        declared: the sweep.
        name: of the trait.
        points: in the order of layers and coefficients; of equals the first is chosen.
        contrasts: how many held-out answers of either side a contrast is over.

    Returns:
        None where nothing is to be chosen.
    """
    if declared.choose is None:
        return None
    by, least = declared.choose.by, declared.choose.coherence
    tried, able = [], []
    for point in points:
        score = None if point.score is None else point.score.mean
        one = Tried(
            point={"layer": point.layer, "coefficient": point.coefficient},
            value=point.contrast if by == "contrast" else score,
            n=contrasts if by == "contrast" else point.n,
            not_finite=point.not_finite,
        )
        tried.append(one)
        coherent = point.coherence is not None and point.coherence.mean >= least
        if point.coefficient > 0 and point.not_finite is None and coherent:
            able.append(one)
    return Choice(condition=name, metric=by, tried=tuple(tried), chosen=best_of(able))


def _swept_point(
    layer: int,
    coefficient: float,
    responses: Sequence[Response],
    contrast: float | None,
    not_finite: str | None,
) -> SweepPoint:
    counts = counts_of(responses)
    return SweepPoint(
        layer=layer,
        coefficient=coefficient,
        n=counts["responses"],
        refused=counts["refused"],
        missing=counts["missing"],
        score=metric_of(response.score for response in responses),
        coherence=metric_of(response.coherence for response in responses),
        contrast=contrast,
        items=tuple(item_of(response) for response in responses),
        not_finite=not_finite,
    )


def _contrasts(
    declared: TraitSweepSpec, trait: Trait, plain: IntervenedModel
) -> tuple[list[Contrast], str | None]:
    """Held-out answers of either side, and where they are from.

    Those that the trait file writes out; where it has none, the model's own to the sweep's questions under
    the first pair of system prompts, which are no part of the vector either.
    """
    if declared.contrasts is None:
        return [], None
    if trait.contrasts:
        return list(trait.contrasts[-declared.contrasts :]), "file"
    systems = trait.system_prompts()[0]
    questions = trait.evaluation[: declared.questions][: declared.contrasts]
    rows = [
        Row(
            tuple(prompt_ids(plain.tokenizer, question, system=system)),
            temperature=0.0,
            max_new_tokens=declared.sampling.max_new_tokens,
        )
        for question in questions
        for system in systems
    ]
    written, _ = rollouts(plain, rows, description=f"{trait.name}: prompted answers")
    pairs = zip(questions, written[::2], written[1::2], strict=True)
    return [Contrast(q, p.text, n.text) for q, p, n in pairs if p.text and n.text], "prompted"


def _log_ratios(m: IntervenedModel, points: Sequence[Point], contrasts: Sequence[Contrast]) -> _Ratios:
    """Of each point the mean over contrasts of log p(positive)/n⁺ − log p(negative)/n⁻, n in tokens.

    Returns:
        `values`, None at points that are not finite, and which those are.
    """
    tokenizer = m.tokenizer
    pairs, sizes = [], []
    for contrast in contrasts:
        prompt = prompt_ids(tokenizer, contrast.question)
        for answer in (contrast.positive, contrast.negative):
            before, ids = reply_ids(tokenizer, prompt, answer)
            pairs.append((before, ids))
            sizes.append(len(ids))
    rows = [(point, pair) for point in points for pair in pairs]

    def score(which: list[int]) -> torch.Tensor:
        strengths = {
            entry.name: [strengths_at(rows[i][0]).get(entry.name, 0.0) for i in which]
            for entry in m.intervenable.entries
        }
        scored = [rows[i][1] for i in which]
        return log_probs(m, scored, strengths=strengths, batch_size=32, description="contrasts")[0]

    _, totals, marked = over_finite_points([point for point, _ in rows], score)
    finite = [point for point in points if point not in marked]
    totals = torch.zeros(0) if totals is None else totals
    per_token = totals.view(len(finite), len(pairs)) / torch.tensor(sizes, dtype=torch.float64)
    means = (per_token[:, ::2] - per_token[:, 1::2]).mean(1).tolist()
    values = dict(zip(finite, means, strict=True))
    return {"values": [values.get(point) for point in points], **listed(marked)}
