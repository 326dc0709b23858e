"""Effects over facts: means by role and layer, intervals over facts, and the noise floor beside them.

An indirect effect is what is measured with a state restored, minus what is measured without (Meng et al.,
2022, section 2). Facts are what intervals are over: a fact's tokens of one role are averaged first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subvene.runner.data.facts import ROLES, Role
from subvene.runner.experiments.tracing.section import Band, Effect, FactMap, FactRecord, Interval, Peak
from subvene.specs.evaluations.causal_tracing import TraceMetric

LEVEL = 0.95
Floats = NDArray[np.float64]
_SHOWN = tuple(role for role in ROLES if role != "before")
"""Before the subject, a corrupted run is the clean one, and restoring it does nothing."""


@dataclass(frozen=True)
class RoleEffects:
    """Indirect effects of the facts that have a role.

    Attributes:
        metric: that they are of.
        role: of the tokens.
        values: [facts, layers].
        floor: [facts, cells]: those of steps in random directions, anywhere in the fact.
    """

    metric: TraceMetric
    role: Role
    values: Floats
    floor: Floats


def role_effects(
    metric: TraceMetric, facts: Sequence[FactRecord], maps: Sequence[FactMap]
) -> list[RoleEffects]:
    """The indirect effects of one site by role; roles that no fact has are left out."""
    by_key = {fact.key: fact for fact in facts}
    found = []
    for role in _SHOWN:
        values, floor = [], []
        for one in maps:
            fact = by_key[one.key]
            tokens = [i for i, other in enumerate(fact.roles) if other == role]
            if tokens:
                corrupted = fact.read.corrupted[metric]
                values.append(np.array(one.traced.values[metric])[:, tokens].mean(1) - corrupted)
                floor.append([cell.values[metric] - corrupted for cell in one.traced.floor])
        if values:
            cells = min(map(len, floor))  # a short fact may have fewer cells than are asked for
            found.append(RoleEffects(metric, role, np.stack(values), np.array([f[:cells] for f in floor])))
    return found


def interval(values: Floats, resamples: int, seed: int) -> Interval:
    """The mean of one number a fact, with a percentile bootstrap interval over facts."""
    return intervals(values[:, None], resamples, seed)[0]


def intervals(values: Floats, resamples: int, seed: int) -> list[Interval]:
    """The same of several numbers a fact, [facts, numbers]; all of them on the same resamples."""
    low, high = _bounds(values, resamples, seed)
    n = len(values)
    if low is None or high is None:
        return [Interval(mean=float(mean), n=n) for mean in values.mean(0)]
    return [
        Interval(mean=float(mean), low=float(below), high=float(above), n=n)
        for mean, below, above in zip(values.mean(0), low, high, strict=True)
    ]


def effects_of(by_role: RoleEffects, layers: Sequence[int], resamples: int, seed: int) -> list[Effect]:
    """An effect for every layer."""
    found = intervals(by_role.values, resamples, seed)
    return [
        Effect(metric=by_role.metric, role=by_role.role, layer=layer, value=value)
        for layer, value in zip(layers, found, strict=True)
    ]


def band_of(by_role: RoleEffects, resamples: int, seed: int) -> Band:
    """Where the mean over these facts lies if each has one of its meaningless cells."""
    n, cells = by_role.floor.shape
    random = np.random.default_rng(seed)
    means = np.take_along_axis(by_role.floor.T, random.integers(cells, size=(resamples, n)), axis=0).mean(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Band(metric=by_role.metric, role=by_role.role, low=float(low), high=float(high), n=n)


def peak_of(by_role: RoleEffects, layers: Sequence[int], band: Band, resamples: int, seed: int) -> Peak:
    """The largest effect; each half of the facts is measured at the layer that is best on the other half.

    Leaving out one fact at a time would nearly always leave the same layer, and the mean there is too large.
    """
    values = by_role.values
    best = int(values.mean(0).argmax())
    n = len(values)
    if n == 1:
        chosen = values[:, best]
    else:
        half = np.arange(n) % 2 == 0
        best_there = np.where(half, values[~half].mean(0).argmax(), values[half].mean(0).argmax())
        chosen = values[np.arange(n), best_there]
    found = interval(chosen, resamples, seed)
    return Peak(
        metric=by_role.metric,
        role=by_role.role,
        layer=layers[best],
        value=found,
        floor=band.high,
        stands_out=found.low is not None and found.low > band.high,
    )


def _bounds(values: Floats, resamples: int, seed: int) -> tuple[Floats | None, Floats | None]:
    """Percentile bootstrap bounds of the means over facts, [layers] each; None for one fact."""
    n = len(values)
    if n < 2:
        return None, None
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    low, high = np.quantile(counts @ values / n, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high
