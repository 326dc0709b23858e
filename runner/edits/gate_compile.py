"""From a declared gate to what reads and decides: laid over the model's anatomy, made of tensors."""

from __future__ import annotations

from collections.abc import Sequence

from subvene.interventions import Sizes, TensorError, TensorTable
from subvene.interventions.gating import (
    Gating,
    Node,
    Reading,
    Rule,
    Schedule,
    Side,
    side_part,
    threshold_part,
)
from subvene.interventions.measurements import measurement
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import SITES, AnyIntervention, SubveneError
from subvene.specs.gates import (
    AllGate,
    AnyGate,
    During,
    Gate,
    MeasuredGate,
    NotGate,
    SaeFeatureGate,
    comes_before,
)


class GatePlaceError(SubveneError, ValueError):
    """A gate reads what this model computes after what it decides."""


def gating_of(
    declared: AnyIntervention,
    table: TensorTable,
    sizes: Sizes,
    places: Sequence[tuple[str, int | None]],
    anatomy: Anatomy | None,
) -> Gating | None:
    """What decides when a declared intervention acts; None for one that always does.

    Args:
        declared: the intervention.
        table: the tensors that its gate names.
        sizes: of the model.
        places: (site or module path, layer) that it edits.
        anatomy: of the model; None where the model is not there, and then nothing can read.

    Raises:
        TensorError: a tensor is missing or has another shape.
        GatePlaceError: a gate reads what comes after what it decides.
    """
    if not declared.is_gated:
        return None
    readings: list[Reading] = []
    gate = None
    if declared.when is not None:
        gate = _node(declared.when, "when", readings, table, sizes)
    for reading in readings:
        rule = reading.rule
        for site, layer in places:
            _refuse_late(rule, site, layer)
        if anatomy is not None:
            reading.component = anatomy.component(rule.site, rule.layer)
            reading.columns = anatomy.columns(rule.site, rule.layer)
    return Gating(gate, readings, None if declared.during is None else _schedule(declared.during))


def _refuse_late(rule: Rule, site: str, layer: int | None) -> None:
    # Where a module named by its path stands among the sites, only a run tells.
    edited = next((known for known in SITES if known == site), None)
    if edited is None or layer is None or comes_before(rule.site, rule.layer, edited, layer):
        return
    raise GatePlaceError(
        f"when: expected a place that the model computes before {site}[{layer}], which is edited, found "
        f"{rule.site}[{rule.layer}]"
    )


def _node(gate: Gate, place: str, readings: list[Reading], table: TensorTable, sizes: Sizes) -> Node:
    if isinstance(gate, MeasuredGate):
        readings.append(_reading(gate, place, table, sizes))
        return Node(place, "measure", reading=len(readings) - 1, must_open=gate.must_open)
    parts = tuple(_node(part, place + in_words(loc), readings, table, sizes) for loc, part in gate.parts())
    if isinstance(gate, NotGate):
        return Node(place, "not", parts, must_open=gate.must_open)
    if isinstance(gate, AnyGate):
        return Node(place, "any", parts, must_open=gate.must_open)
    if isinstance(gate, AllGate):
        return Node(place, "all", parts, must_open=gate.must_open)
    raise TypeError(f"{type(gate).__name__} is no gate that is known")


def in_words(loc: Sequence[str | int]) -> str:
    """A place within a gate, as an error names it: `.any[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)


def _reading(gate: MeasuredGate, place: str, table: TensorTable, sizes: Sizes) -> Reading:
    layer = _layer(gate, place, table)
    if layer >= sizes.n_layers:
        raise TensorError(
            f"{place}.layer: expected a layer from 0 to {sizes.n_layers - 1} for this model, found {layer}"
        )
    threshold, side, is_fitted = _threshold(gate, layer, table)
    rule = Rule(
        site=gate.site,
        layer=layer,
        threshold=threshold,
        side=side,
        ramp=gate.ramp or 0.0,
        decide=gate.decide,
        of_mean=gate.tokens == "mean",
        is_fitted=is_fitted,
    )
    return Reading(measurement(gate, table, layer, sizes.site_width(gate.site, layer)), rule)


def _layer(gate: MeasuredGate, place: str, table: TensorTable) -> int:
    if gate.layer is not None:
        return gate.layer
    key = "" if gate.ref is None else gate.ref.key
    part = "encoder" if isinstance(gate, SaeFeatureGate) else None
    layers = table.layers(key, gate.site, part)
    if len(layers) != 1:
        stored = ", ".join(map(str, layers)) or "none"
        raise TensorError(
            f"{place}.layer: left out, and of {key!r} at {gate.site} not one layer is stored but: {stored}; "
            "name one"
        )
    return layers[0]


def _threshold(gate: MeasuredGate, layer: int, table: TensorTable) -> tuple[float, Side, bool]:
    if gate.above is not None:
        return gate.above, "above", False
    if gate.below is not None:
        return gate.below, "below", False
    key = "" if gate.ref is None else gate.ref.key
    told = gate.measurement, gate.tokens
    threshold = table.get(key, gate.site, layer, shape=(), part=threshold_part(*told))
    side = table.get(key, gate.site, layer, shape=(), part=side_part(*told))
    return float(threshold), "above" if float(side) > 0 else "below", True


def _schedule(during: During) -> Schedule:
    return Schedule(during.begin, during.to, during.decay, during.max_tokens)
