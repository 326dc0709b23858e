"""What a composition compares: the conditions that it stands for, and what can be wrong with it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from subvene.specs._flaws import Flaw, nearest, one_of
from subvene.specs.conditions import ConditionSpec
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import CompositionSpec
from subvene.specs.variants import intervention_name

BASELINE = "baseline"


@dataclass(frozen=True)
class Composition:
    """The conditions of a composition.

    Attributes:
        names: the interventions, in the order in which they were named.
        orders: name of a condition → the interventions in its order, the first acting first.
        conditions: the untouched model, each intervention alone (named as it is), each order.
    """

    names: tuple[str, ...]
    orders: dict[str, tuple[str, ...]]
    conditions: tuple[ConditionSpec, ...]


def composition(spec: ExperimentFields) -> Composition | None:
    """Returns what the `composition` entry of `evaluate` stands for; None without one."""
    for declared in spec.evaluate:
        if isinstance(declared, CompositionSpec):
            names = _names(spec, declared)
            orders = {_order_name(order): order for order in itertools.permutations(names)}
            acting = [(BASELINE, ()), *((name, (name,)) for name in names), *orders.items()]
            conditions = (
                ConditionSpec(name=name, interventions=interventions, seeds=declared.seeds)
                for name, interventions in acting
            )
            return Composition(names, orders, tuple(conditions))
    return None


def composition_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what is wrong with the `composition` entry of an experiment whose other fields are valid."""
    entries = [(i, e) for i, e in enumerate(spec.evaluate) if isinstance(e, CompositionSpec)]
    if not entries:
        return
    from subvene.specs.evaluations.composition import FEWEST, MOST

    i, declared = entries[0]
    for other, _ in entries[1:]:
        yield Flaw(("evaluate", other), "one entry of this kind", None, found="a second composition")
    if spec.conditions:
        expected = "nothing, since `evaluate` has a composition, which makes the conditions"
        yield Flaw(("conditions",), expected, None, found="`conditions`")
    if all(isinstance(e, CompositionSpec) for e in spec.evaluate if e.compares):
        expected = "another entry beside it, such as truthfulqa or divergence, which says what is measured"
        yield Flaw(("evaluate", i), expected, None, found="composition alone")
    known = [intervention_name(spec, j) for j in range(len(spec.interventions))]
    if len(known) < FEWEST:
        expected = f"{FEWEST} or {MOST} interventions, since `evaluate` has a composition"
        yield Flaw(("interventions",), expected, None, found=f"{len(known)}")
        return
    if declared.of is None and len(known) > MOST:
        expected = f"the names of {FEWEST} or {MOST} interventions, since this file has {len(known)}"
        yield Flaw(("evaluate", i, "of"), expected, declared, "missing_field")
        return
    names = _names(spec, declared)
    unknown = [j for j, name in enumerate(names) if name not in known]
    for j in unknown:
        yield Flaw(("evaluate", i, "of", j), one_of(known), names[j], hint=nearest(names[j], known))
    if unknown:
        return
    taken = {BASELINE, *map(_order_name, itertools.permutations(names))}
    for name in names:
        if name in taken or known.count(name) > 1:
            expected = f"another name than {name!r}, which is that of another condition of the composition"
            yield Flaw(("interventions", known.index(name), "name"), expected, name)


def _names(spec: ExperimentFields, declared: CompositionSpec) -> tuple[str, ...]:
    if declared.of is not None:
        return declared.of
    return tuple(intervention_name(spec, i) for i in range(len(spec.interventions)))


def _order_name(order: tuple[str, ...]) -> str:
    return "_then_".join(order)
