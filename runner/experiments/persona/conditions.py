"""Conditions side by side: baseline, prompted, steered, capped, ablated: scores, projections, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
import torch
from pydantic import JsonValue

from subvene.runner.data.traits import Trait
from subvene.runner.edits.finite_points import is_marked, marking
from subvene.runner.edits.receipt import merged
from subvene.runner.experiments.persona.arms import Arm, arms_of, one_number
from subvene.runner.experiments.persona.cost import Cost, CostMeasured
from subvene.runner.experiments.persona.section import (
    Correlation,
    Edit,
    artifact_of,
    counts_of,
    item_of,
)
from subvene.runner.experiments.projections import Projections, mean_projections
from subvene.runner.experiments.results import Condition, Metric, metric_of, metrics_of
from subvene.runner.files.json_value import Json
from subvene.runner.files.statistics import correlation, correlation_within
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.judges import Judge
from subvene.runner.measures.missing import missing_in_words
from subvene.runner.measures.responses import Asked, Do, Response, missing_reasons, respond
from subvene.runner.monitor.projection import project, token_projections
from subvene.specs import (
    AblationSpec,
    CappingSpec,
    InterventionSpec,
    ModelSpec,
    SteeringSpec,
    SubveneError,
    TensorRef,
    TraitConditionsSpec,
)
from subvene.specs.evaluations.traits import Ablated, Capped, Steered

# By how much the share of tokens that a cap changes may differ from what its percentile says: the cursor is
# edited too and was not measured, and is one token of a response.
_SLACK = 0.15


@dataclass(frozen=True)
class Subject:
    """What conditions are run on.

    Attributes:
        trait: the trait.
        steering: the intervention that adds its vector, at the layer and with the coefficient in force.
        tensors: vectors and norms by full name.
        vector: the vector at that layer, and at every other: layer → [width].
        questions: what is asked.
        plain: the unedited model.
        judge: who scores.
        identity: what the tensors and the model are, JSON values.
    """

    trait: Trait
    steering: SteeringSpec
    tensors: Mapping[str, torch.Tensor]
    vector: Mapping[int, torch.Tensor]
    questions: tuple[str, ...]
    plain: IntervenedModel
    judge: Judge
    identity: Mapping[str, Json]


@dataclass(frozen=True)
class Compared:
    """What the conditions of one trait gave.

    Attributes:
        conditions: in the file's order.
        correlation: of scores with projections, over all their responses.
        within: the same within conditions.
        notes: what must be known to read them.
    """

    conditions: tuple[Condition, ...]
    correlation: Correlation
    within: Correlation
    notes: list[str]


class _Found(TypedDict):
    """Of a cap: the threshold of each layer, and the share of the measured tokens that it changes."""

    threshold: dict[str, float]
    changed_share: float


class _Cap(_Found):
    expected_share: float
    warning: str | None


@dataclass(frozen=True)
class _Measured:
    """What was measured of one arm: responses, what its interventions did, and what it costs."""

    responses: list[Response] = field(default_factory=list)
    receipt: list[dict[str, JsonValue]] | None = None
    cost: CostMeasured | None = None
    not_finite: str | None = None


def run_conditions(
    declared: TraitConditionsSpec, subject: Subject, cost: Cost | None, *, seed: int, do: Do
) -> Compared:
    """Measure every arm.

    Args:
        declared: the conditions.
        subject: the trait, its vectors and the model.
        cost: what cost is measured on; None: it is not.
        seed: of the run.
        do: does a unit of work, or gives what is recorded of it.

    Returns:
        The conditions in the file's order, and what is to be said of them.
    """
    # Caps measure their threshold on what another arm said, wherever that stands in the list.
    arms = arms_of(declared, subject.steering)
    ordered = sorted(arms, key=lambda arm: isinstance(arm.condition, Capped))
    said: dict[str, list[Response]] = {}
    conditions: dict[str, Condition] = {}
    owed: list[str] = []
    for arm in ordered:
        cap = None
        if isinstance(arm.condition, Capped):
            cap = _cap(arm.condition, arm, said[arm.condition.of], subject, do)
        thresholds = None if cap is None else {int(k): v for k, v in cap["threshold"].items()}
        measured = _measure(declared, arm, thresholds, subject, cost, seed, do)
        said.setdefault(arm.condition.kind, measured.responses)
        if missing := missing_reasons(measured.responses):
            owed.append(f"{arm.label}: {missing_in_words(missing)}")
        projections = _projections(arm, measured.responses, subject, do)
        conditions[arm.label] = _condition(arm, measured, projections, cap, subject)
    table = [conditions[arm.label] for arm in arms]
    warned = [Edit.of(condition).warning for condition in table]
    notes = [warning for warning in warned if warning is not None]
    notes += [f"{one.label}: not finite: {one.not_finite}" for one in table if one.not_finite is not None]
    notes += owed
    known = [_known(condition) for condition in table]
    pooled = [pair for group in known for pair in group]
    return Compared(
        tuple(table),
        Correlation(**correlation([p for p, _ in pooled], [s for _, s in pooled])),
        Correlation(**correlation_within(known)),
        [f"{subject.trait.name}: {note}" for note in notes],
    )


def _condition(
    arm: Arm,
    measured: _Measured,
    projections: Sequence[float | None],
    cap: _Cap | None,
    subject: Subject,
) -> Condition:
    responses, cost, trait = measured.responses, measured.cost, subject.trait.name
    metrics = metrics_of(
        {
            "score": metric_of(response.score for response in responses),
            "coherence": metric_of(response.coherence for response in responses),
            "projection": metric_of(projections),
        }
    )
    if cost is not None:
        metrics["ce"] = Metric(mean=cost["ce"], n=cost["texts"])
        metrics["kl"] = Metric(mean=cost["kl"], n=cost["texts"])
        metrics["accuracy"] = Metric(mean=cost["accuracy"], n=cost["choices"])
    items = (
        item_of(response, projection=projection, seed=response.seed, tokens=len(response.tokens))
        for response, projection in zip(responses, projections, strict=True)
    )
    # What the artifact does is measured under the coefficient that it has.
    kept = isinstance(arm.condition, Steered) and arm.coefficient == one_number(subject.steering)
    return Condition(
        name=arm.condition.name or arm.condition.kind,
        label=arm.label,
        group=trait,
        point={} if arm.coefficient is None else {"coefficient": arm.coefficient},
        metrics=metrics,
        counts=counts_of(responses),
        receipts={} if measured.receipt is None else {"responses": list(measured.receipt)},
        items=tuple(items),
        artifact=artifact_of(trait) if kept else None,
        not_finite=measured.not_finite,
        details=_edit(arm, cap).details(),
    )


def _edit(arm: Arm, cap: _Cap | None) -> Edit:
    kind, layers = arm.condition.kind, arm.layers or None
    return Edit(kind=kind, layers=layers) if cap is None else Edit(kind=kind, layers=layers, **cap)


def _known(condition: Condition) -> list[tuple[float, float]]:
    """Projection and score of the responses that have both."""
    return [
        (projection, score)
        for item in condition.items
        if (projection := item.scores["projection"]) is not None
        and (score := item.scores["score"]) is not None
    ]


def _measure(
    declared: TraitConditionsSpec,
    arm: Arm,
    thresholds: Mapping[int, float] | None,
    subject: Subject,
    cost: Cost | None,
    seed: int,
    do: Do,
) -> _Measured:
    entries = _entries(arm, thresholds, subject)
    sampling = declared.sampling
    systems = subject.trait.system_prompts()
    side = {"prompted": 0, "opposed": 1}.get(arm.condition.kind)
    asked = [
        # Every instruction has its turn.
        Asked(question, None if side is None else systems[i % len(systems)][side], rollout=rollout)
        for i, question in enumerate(subject.questions)
        for rollout in range(sampling.rollouts)
    ]
    about: dict[str, Json] = {
        **subject.identity,
        "trait": subject.trait.sha256,
        "interventions": [entry.model_dump(mode="json", exclude={"name"}) for entry in entries],
    }
    answered = respond(
        lambda: _compiled(entries, subject),
        asked,
        sampling,
        subject.trait,
        subject.judge,
        identity=about | {"unit": "condition"},
        seed=seed,
        description=f"{subject.trait.name}: {arm.label}",
        do=do,
        points=[()] * len(asked) if arm.swept else None,
    )
    if answered.not_finite:
        return _Measured(not_finite=answered.not_finite[()])
    # A system prompt leaves the model as it is, and costs nothing.
    if cost is not None and side is None:
        unit = {**about, "unit": "cost", **cost.identity}
        measured = do(unit, marking(arm.swept, lambda: cost.of(_compiled(entries, subject))))
        if is_marked(measured):
            return _Measured(not_finite=measured["not_finite"])
        return _Measured(answered.responses, answered.receipt, measured)
    return _Measured(answered.responses, answered.receipt)


def _entries(arm: Arm, thresholds: Mapping[int, float] | None, subject: Subject) -> list[Any]:
    """The interventions of an arm, as spec entries; none where the model stays as it is."""
    steering = subject.steering
    direction, positions = TensorRef(key=subject.trait.name), steering.positions
    match arm.condition:
        case Steered():
            if not arm.coefficient:
                return []
            return [steering.model_copy(update={"coefficient": arm.coefficient})]
        case Capped(bound=bound):
            return [
                CappingSpec(
                    name=f"cap_{layer}",
                    layer=layer,
                    direction=direction,
                    max=value if bound == "ceiling" else None,
                    min=value if bound == "floor" else None,
                    positions=positions,
                )
                for layer, value in (thresholds or {}).items()
            ]
        case Ablated():
            return [
                AblationSpec(name=f"ablation_{layer}", layer=layer, direction=direction, positions=positions)
                for layer in arm.layers
            ]
    return []


def _compiled(entries: Sequence[Any], subject: Subject) -> IntervenedModel:
    if not entries:
        return subject.plain
    spec = InterventionSpec(subvene=1, model=ModelSpec(name="condition"), interventions=tuple(entries))
    plain = subject.plain
    return IntervenedModel.from_spec(
        spec, model=plain.model, tokenizer=plain.tokenizer, tensors=subject.tensors
    )


def _projections(arm: Arm, responses: Sequence[Response], subject: Subject, do: Do) -> list[float | None]:
    """Each response's projection at the steered layer, as the unedited model reads it."""
    layer, name = subject.steering.layer, subject.trait.name
    texts = [response.span for response in responses]

    def work() -> Projections:
        vector, told = subject.vector[layer], f"{name}: {arm.label}"
        return {"values": mean_projections(subject.plain, texts, vector, layer, description=told)}

    unit: dict[str, Json] = {"unit": "projection"}
    unit |= {"layer": layer, "texts": [[list(t.ids), t.start, t.end] for t in texts]}
    return do({**subject.identity, "trait": subject.trait.sha256, **unit}, work)["values"]


def _cap(condition: Capped, arm: Arm, measured_on: Sequence[Response], subject: Subject, do: Do) -> _Cap:
    """The thresholds by layer, and what share of the measured tokens the cap changes.

    The share is read off a receipt: the same texts pass through the model once more with the first layer's
    cap on. A bound on the wrong side of the tokens changes those that it should leave alone.
    """
    name = subject.trait.name
    texts = [one.span for one in measured_on if one.span.end > one.span.start]

    def work() -> _Found:
        if not texts:
            raise SubveneError(
                f"trait {name}: {arm.label}: the responses of {condition.of!r} are all empty, so there are "
                "no tokens to measure its threshold on"
            )
        vectors = {name: {layer: subject.vector[layer] for layer in arm.layers}}
        found = token_projections(subject.plain, texts, vectors).before[name]
        thresholds = {
            layer: float(np.percentile(torch.cat(found[layer]).numpy(), condition.percentile))
            for layer in arm.layers
        }
        first = arm.layers[0]
        entry = _entries(arm, {first: thresholds[first]}, subject)[0]
        m = _compiled([entry.model_copy(update={"positions": "response"})], subject)
        rest = project(m, texts, {name: {first: subject.vector[first]}}, edited=True)
        receipt = merged(rest.receipts, same_rows=False)[0][0]
        return {
            "threshold": {str(layer): value for layer, value in thresholds.items()},
            "changed_share": (receipt.changed or 0) / receipt.tokens,
        }

    unit: dict[str, Json] = {
        "unit": "cap",
        "condition": condition.model_dump(mode="json", exclude={"name"}),
        "layers": list(arm.layers),
        "texts": [[list(t.ids), t.start, t.end] for t in texts],
    }
    found = do({**subject.identity, "trait": subject.trait.sha256, **unit}, work)
    share = condition.percentile / 100
    expected = 1 - share if condition.bound == "ceiling" else share
    return {**found, "expected_share": expected, "warning": cap_warning(arm.label, found, expected)}


def cap_warning(label: str, found: _Found, expected: float) -> str | None:
    """What there is to say against a cap, from the share of tokens that it changed."""
    share = found["changed_share"]
    if abs(share - expected) <= _SLACK:
        return None
    return (
        f"{label}: the cap changes {share:.0%} of the tokens that its threshold was measured on, expected "
        f"{expected:.0%}: it bounds the wrong side, or edits other tokens than those"
    )
