"""The arms that belong beside a carried vector: the native one, a random one, and one that was not mapped.

They are added to a comparison where it declares none of its own, as conditions that anybody could have
written into it. All four vectors are equally long.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from subvene.specs._flaws import Flaw
from subvene.specs.conditions import ConditionSpec
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import RandomDirectionSpec, TransferSpec
from subvene.specs.variants import chain, intervention_name

Experiment = TypeVar("Experiment", bound=ExperimentFields)
CONTROLS = ("native", "random", "untransferred")


class Control(NamedTuple):
    """A condition that is added beside one that steers along a carried vector."""

    transfer: TransferSpec
    condition: ConditionSpec
    what: str

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.condition.name}_{self.what}"

    @property
    def key(self) -> str:
        """The key of its vectors."""
        return self.transfer.like if self.what == "native" else f"{self.transfer.key}_{self.what}"


def declared_conditions(spec: ExperimentFields) -> tuple[ConditionSpec, ...]:
    """The file's conditions; of one that declares none, the two that it means."""
    return spec.conditions or (
        ConditionSpec(name="baseline", interventions=()),
        ConditionSpec(name="intervened"),
    )


def missing_controls(spec: ExperimentFields, equally_wide: Collection[str] | None = None) -> list[Control]:
    """What a comparison lacks beside carried vectors.

    Args:
        spec: The experiment.
        equally_wide: The keys of those transfers whose models have one width; None: of all.
    """
    composed = not spec.conditions and any(one.kind == "composition" for one in spec.evaluate)
    if composed or not (spec.default_arms and spec.compares_conditions):
        return []
    found = []
    for recipe in spec.fits:
        if not isinstance(recipe, TransferSpec) or recipe.by == "none":
            continue
        for condition in declared_conditions(spec):
            if condition.like is None and recipe.key in _keys(spec, condition):
                for what in CONTROLS:
                    wide = equally_wide is None or recipe.key in equally_wide
                    if (wide or what != "untransferred") and not _is_there(spec, recipe, condition, what):
                        found.append(Control(recipe, condition, what))
    return found


def with_controls(spec: Experiment, equally_wide: Collection[str]) -> Experiment:
    """Returns the experiment with what it lacks beside carried vectors; itself where that is nothing.

    Args:
        spec: The experiment.
        equally_wide: The keys of those transfers whose models have one width: what is not mapped is no vector
            of a model of another.
    """
    missing = missing_controls(spec, equally_wide)
    if not missing:
        return spec
    data = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    names = [intervention_name(spec, i) for i in range(len(spec.interventions))]
    conditions = [
        one.model_dump(mode="json", by_alias=True, exclude_unset=True) for one in declared_conditions(spec)
    ]
    for declared, one in zip(declared_conditions(spec), conditions, strict=True):
        if declared.like is None and declared.interventions == "all":
            one["interventions"] = names  # `all` does not mean those that are added
    for control in missing:
        _add_fit(data["fit"], control)
        renamed = _add_interventions(spec, data["interventions"], control)
        conditions.append(_condition(spec, control, renamed))
    return type(spec).model_validate(data | {"conditions": conditions})


def transfer_arms_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields why an arm that a file lacks cannot be added to it."""
    missing = missing_controls(spec)
    if not missing:
        return
    conditions = {one.name for one in spec.conditions}
    keys = {key for recipe in spec.fits for key in recipe.keys}
    off = "another name: an arm that is added has this one, or `default_arms: false`"
    for control in missing:
        if control.name in conditions:
            i = next(i for i, one in enumerate(spec.conditions) if one.name == control.name)
            yield Flaw(("conditions", i, "name"), off, control.name)
        if control.what != "native" and control.key in keys:
            i = next(i for i, one in enumerate(spec.fits) if control.key in one.keys)
            yield Flaw(("fit", i, "key"), off, control.key)


def _acting(spec: ExperimentFields, condition: ConditionSpec) -> Sequence[str]:
    """The names of the interventions that act."""
    for link in reversed(chain(spec, condition)) if condition.like is not None else [condition]:
        if link.interventions != "all":
            return link.interventions
    return [intervention_name(spec, i) for i in range(len(spec.interventions))]


def _keys(spec: ExperimentFields, condition: ConditionSpec) -> set[str]:
    """The fitted keys of a condition's interventions."""
    by_name = {intervention_name(spec, i): one for i, one in enumerate(spec.interventions)}
    refs = [ref for name in _acting(spec, condition) for _, ref in by_name[name].tensor_refs()]
    return {ref.key for ref in refs if ref.file is None}


def _is_there(spec: ExperimentFields, transfer: TransferSpec, beside: ConditionSpec, what: str) -> bool:
    """Whether a condition stands beside another with one kind of vector in place of the carried one."""
    keys = {
        "native": {transfer.like},
        "random": {
            one.key
            for one in spec.fits
            if isinstance(one, RandomDirectionSpec) and one.like in (transfer.key, transfer.like)
        },
        "untransferred": {
            one.key
            for one in spec.fits
            if isinstance(one, TransferSpec) and one.by == "none" and one.source == transfer.source
        },
    }[what]
    others = _keys(spec, beside) - {transfer.key}
    return any(
        _keys(spec, one) - others <= keys and _keys(spec, one) & keys and _budget(one) == _budget(beside)
        for one in declared_conditions(spec)
    )


def _budget(condition: ConditionSpec) -> float | None:
    choose = condition.choose
    return None if choose is None or choose.budget is None else choose.budget.kl


def _add_fit(fits: list[dict[str, Any]], control: Control) -> None:
    if control.what == "native" or any(one.get("key") == control.key for one in fits):
        return
    if control.what == "random":
        fits.append({"recipe": "random_direction", "key": control.key, "like": control.transfer.key})
        return
    declared = next(one for one in fits if one.get("key") == control.transfer.key)
    fits.append(declared | {"key": control.key, "by": "none"})


def _add_interventions(
    spec: ExperimentFields, interventions: list[dict[str, Any]], control: Control
) -> dict[str, str]:
    """Add what is not there of a control's interventions; the names of those that they stand for → theirs."""
    renamed = {}
    for i, one in enumerate(spec.interventions):
        name = intervention_name(spec, i)
        fields = [field for field, ref in one.tensor_refs() if ref.key == control.transfer.key]
        if name not in _acting(spec, control.condition) or not fields:
            continue
        renamed[name] = f"{name}_{control.what}"
        if any(other.get("name") == renamed[name] for other in interventions):
            continue
        declared = one.model_dump(mode="json", by_alias=True, exclude_unset=True)
        keys = {field: {"key": control.key} for field in fields}
        interventions.append(declared | {"name": renamed[name]} | keys)
    return renamed


def _condition(spec: ExperimentFields, control: Control, renamed: Mapping[str, str]) -> dict[str, Any]:
    declared = control.condition.model_dump(mode="json", by_alias=True, exclude_unset=True)
    declared["name"] = control.name
    declared["interventions"] = [renamed.get(name, name) for name in _acting(spec, control.condition)]
    for field in ("set", "sweep"):
        if isinstance(values := declared.get(field), dict):
            declared[field] = {_of(path, renamed): value for path, value in values.items()}
    return declared


def _of(path: str, renamed: Mapping[str, str]) -> str:
    head, dot, rest = path.partition(".")
    return renamed.get(head, head) + dot + rest
