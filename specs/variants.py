"""Variants: the experiment that one condition, at one point of its sweep, stands for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from subvene.specs._flaws import Flaw, Loc, nearest, one_of
from subvene.specs.conditions import ConditionSpec
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import CompositionSpec
from subvene.specs.sources import needed_sources

Experiment = TypeVar("Experiment", bound=ExperimentFields)
Point = Mapping[str, Any]
"""Fields by path, such as ``iti.strength``, with their values."""


class UnknownPathError(ValueError):
    """A path of a condition leads to no field."""

    def __init__(self, expected: str, found: str, hint: str | None = None) -> None:
        super().__init__(f"expected {expected}, found {found!r}")
        self.expected, self.found, self.hint = expected, found, hint


def intervention_name(spec: ExperimentFields, i: int) -> str:
    """Returns what the i-th intervention is called: its name, or its kind and place in the file."""
    declared = spec.interventions[i]
    return declared.name or f"{declared.kind}_{i}"


def chain(spec: ExperimentFields, condition: ConditionSpec) -> list[ConditionSpec]:
    """Returns the conditions that one starts from, the first first, and itself."""
    by_name = {other.name: other for other in spec.conditions}
    links = [condition]
    while links[0].like is not None:
        links.insert(0, by_name[links[0].like])
    return links


def system_prompt(spec: ExperimentFields, condition: ConditionSpec) -> str | None:
    """Returns the system prompt of a condition: its own, or that of what it starts from; None without one."""
    return next((link.system for link in reversed(chain(spec, condition)) if link.system is not None), None)


def points(condition: ConditionSpec) -> list[dict[str, Any]]:
    """Returns the points of a condition's sweep; one without any field if it has none."""
    sweep = condition.sweep or {}
    return [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def variant(
    spec: Experiment, condition: ConditionSpec, point: Point, inherited: Mapping[str, Point] | None = None
) -> Experiment | None:
    """Returns the experiment of one condition at one point, without conditions; None for the untouched model.

    Args:
        spec: The experiment.
        condition: One of its conditions.
        point: Values of the condition's own sweep.
        inherited: By name of an earlier condition that this one starts from, the point chosen for it.

    Raises:
        UnknownPathError: A path leads to no field.
        ValidationError: A value does not fit its field.
    """
    # Only what was set: some fields may not be given together, though each has a default.
    data = spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"conditions"})
    defaults = spec.model_dump(mode="json", by_alias=True)
    names = [intervention_name(spec, i) for i in range(len(spec.interventions))]
    by_name = dict(zip(names, data["interventions"], strict=True))
    roots = {**by_name, "fit": _by_key(spec, data["fit"])} if data.get("fit") else by_name
    all_defaults = dict(zip(names, defaults["interventions"], strict=True))
    all_roots = {**all_defaults, "fit": _by_key(spec, defaults["fit"])}
    chosen: tuple[str, ...] = tuple(names)
    for link in chain(spec, condition):
        own = point if link is condition else (inherited or {}).get(link.name, {})
        for path, value in {**link.set, **own}.items():
            _put(roots, all_roots, path, value, keyed=isinstance(spec.fit, tuple))
        if link.interventions != "all":
            chosen = link.interventions
    if not chosen:
        return None
    if chosen != tuple(names):
        # Receipts call one without a name by its place; here it keeps the place that it has in the file.
        by_name = {name: {**declared, "name": name} for name, declared in by_name.items()}
    data["interventions"] = [by_name[name] for name in chosen]
    if spec.sources:
        # What no intervention of this condition reads is no part of it.
        kept = [spec.interventions[names.index(name)] for name in chosen]
        needed = needed_sources(spec.sources, kept, chosen)
        data["sources"] = {name: source for name, source in data["sources"].items() if name in needed}
    # A variant is one condition, and composes nothing.
    data["evaluate"] = [
        entry
        for entry, declared in zip(data.get("evaluate", ()), spec.evaluate, strict=True)
        if not isinstance(declared, CompositionSpec)
    ]
    return type(spec).model_validate(data)


def _by_key(spec: ExperimentFields, fit: Any) -> Any:
    """The fields of the one recipe; of several, each recipe's under every key that it gives."""
    if not isinstance(fit, list):
        return fit
    return {key: data for recipe, data in zip(spec.fits, fit, strict=True) for key in recipe.keys}


def _put(roots: dict[str, Any], defaults: dict[str, Any], path: str, value: Any, *, keyed: bool) -> None:
    head, *rest = path.split(".")
    if keyed and head == "fit" and (not rest or rest[0] not in roots["fit"] or len(rest) == 1):
        keys = list(roots["fit"])
        expected = f"a path such as `fit.{keys[0]}.FIELD`, since there are several fits: {one_of(keys)}"
        raise UnknownPathError(expected, path, nearest(rest[0], keys) if rest else None)
    if head not in roots or not rest:
        expected = f"a path such as `{next(iter(roots))}.FIELD`, which begins with {one_of(roots)}"
        raise UnknownPathError(expected, path, nearest(head, roots))
    place, default = roots[head], defaults[head]
    for key in rest[:-1]:
        # A default that the file leaves out may be entered too: `fit.select.k` where `select` is not given.
        default = default.get(key, {})
        place = place.setdefault(key, dict(default) if isinstance(default, dict) else default)
        if not isinstance(place, dict) or not isinstance(default, dict):
            raise UnknownPathError(f"a mapping at `{key}`", path)
    place[rest[-1]] = value


def condition_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what is wrong with the conditions of an experiment whose other fields are valid."""
    names = [intervention_name(spec, i) for i in range(len(spec.interventions))]
    earlier: dict[str, ConditionSpec] = {}
    for i, condition in enumerate(spec.conditions):
        loc: Loc = ("conditions", i)
        flaws = list(_own_flaws(spec, condition, loc, names, earlier))
        flaws = flaws or list(_value_flaws(spec, condition, loc)) or list(_budget_flaws(spec, condition, loc))
        yield from flaws
        if flaws:
            return  # what starts from a faulty condition cannot be checked
        earlier[condition.name] = condition


def _own_flaws(
    spec: ExperimentFields,
    condition: ConditionSpec,
    loc: Loc,
    names: list[str],
    earlier: Mapping[str, ConditionSpec],
) -> Iterator[Flaw]:
    if condition.name in earlier:
        yield Flaw((*loc, "name"), "a name of its own, used by no earlier condition", condition.name)
    if condition.like is not None:
        if condition.like not in earlier:
            expected = one_of(earlier) if earlier else "nothing, since no condition stands before this one"
            hint = nearest(condition.like, earlier)
            yield Flaw((*loc, "like"), expected, condition.like, hint=hint)
            return
        base = earlier[condition.like]
        if base.seeds is not None and not set(condition.seeds or spec.all_seeds) <= set(base.seeds):
            expected = (
                f"only seeds of {base.name!r}, which this starts from: {', '.join(map(str, base.seeds))}"
            )
            yield Flaw((*loc, "seeds"), expected, condition.seeds, found=f"{condition.seeds or 'all'}")
        if base.sweep and base.choose is None:
            yield Flaw((*loc, "like"), "a condition without `sweep`, or with `choose`", condition.like)
    if not set(condition.seeds or ()) <= set(spec.all_seeds):
        expected = f"seeds of the experiment: {', '.join(map(str, spec.all_seeds))}"
        yield Flaw((*loc, "seeds"), expected, condition.seeds)
    if condition.interventions != "all":
        for j, name in enumerate(condition.interventions):
            if name not in names:
                yield Flaw((*loc, "interventions", j), one_of(names), name, hint=nearest(name, names))
    if (choose := condition.choose) is not None:
        if condition.sweep is None and (choose.budget is None or choose.by is not None):
            field = "choose" if choose.budget is None else "by"
            place = (*loc, "choose") if choose.budget is None else (*loc, "choose", "by")
            yield Flaw(place, "nothing, since there is no `sweep`", None, found=field)
        if condition.sweep is not None and choose.by is None:
            expected = "the metric by which a point of `sweep` is chosen"
            yield Flaw((*loc, "choose", "by"), expected, None, "missing_field")
    for path in condition.sweep or {}:
        if path in condition.set:
            yield Flaw((*loc, "set", path), "nothing, since `sweep` has this field", condition.set[path])


def strengths(
    spec: ExperimentFields,
    condition: ConditionSpec,
    point: Point,
    inherited: Mapping[str, Point] | None = None,
) -> dict[str, float | tuple[float, ...]]:
    """Returns the strength of each intervention of a condition at one point, by its path: `NAME.strength`."""
    declared = variant(spec, condition, point, inherited)
    if declared is None:
        return {}
    named = next(
        (one.interventions for one in reversed(chain(spec, condition)) if one.interventions != "all"), None
    )
    names = named or [intervention_name(spec, i) for i in range(len(spec.interventions))]
    return {
        f"{name}.{type(one).also_called.get('strength', 'strength')}": one.strength
        for name, one in zip(names, declared.interventions, strict=True)
    }


def _budget_flaws(spec: ExperimentFields, condition: ConditionSpec, loc: Loc) -> Iterator[Flaw]:
    """Yields why the strengths of a condition cannot be searched for."""
    if condition.choose is None or condition.choose.budget is None:
        return
    place = (*loc, "choose", "budget")
    found = strengths(spec, condition, points(condition)[0])
    if not found:
        yield Flaw(place, "nothing, since no intervention acts here", None, found="budget")
    for path, value in found.items():
        if path in (condition.sweep or {}):
            yield Flaw((*loc, "sweep", path), "nothing, since `budget` finds this strength", None, found=path)
        elif isinstance(value, tuple) or value == 0:
            yield Flaw(place, f"one number other than 0 as {path}, which it multiplies", value)


def _value_flaws(spec: ExperimentFields, condition: ConditionSpec, loc: Loc) -> Iterator[Flaw]:
    candidates: list[tuple[Loc, dict[str, Any]]] = [((*loc, "set"), {})]
    for path, values in (condition.sweep or {}).items():
        candidates += [((*loc, "sweep", path, j), {path: value}) for j, value in enumerate(values)]
    # A field that is swept is first of all what the file says: each value is tried on its own.
    for place, point in candidates:
        try:
            variant(spec, condition, point)
        except UnknownPathError as error:
            yield Flaw(place[:-1] if point else place, error.expected, error.found, hint=error.hint)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            context = first.get("ctx", {})
            where = ".".join(map(str, first["loc"]))
            wanted = context.get("expected", first["msg"])
            found = point or dict(condition.set)
            yield Flaw(place, f"values that make a valid experiment ({where}: {wanted})", found)
            return
