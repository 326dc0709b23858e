"""The arms that belong in every comparison on equal terms: untouched, prompt only, and a random direction.

They are added to a file with a `budget` where it declares none of its own, as conditions that anybody could
have written into it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

from subvene.specs._flaws import Flaw
from subvene.specs.conditions import BudgetSpec, ConditionSpec
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.interventions import SteeringSpec
from subvene.specs.kinds import TraitScoresSpec
from subvene.specs.recipes.random_direction import RandomDirectionSpec
from subvene.specs.variants import chain, intervention_name, system_prompt

Experiment = TypeVar("Experiment", bound=ExperimentFields)
UNTOUCHED, PROMPT, RANDOM = "untouched", "prompt", "random"
_OFF = "or `default_arms: false`"


def arms_are_added(spec: ExperimentFields) -> bool:
    """Returns whether arms that a file lacks are added to it."""
    return spec.default_arms and any(True for _ in _budgets(spec))


def lacks_prompt(spec: ExperimentFields) -> bool:
    """Returns whether no condition is a system prompt alone."""
    return not any(_is_prompt(spec, one) for one in spec.conditions)


def asked_traits(spec: ExperimentFields) -> tuple[str, ...]:
    """Returns the names of the traits that conditions are scored for, which a prompt may ask for."""
    entries = (one for one in spec.evaluate if isinstance(one, TraitScoresSpec))
    return tuple(dict.fromkeys(name for one in entries for name in one.names))


def with_default_arms(spec: Experiment, prompts: Mapping[str, str]) -> Experiment:
    """Returns the experiment with the arms that it lacks; itself where none are added.

    Args:
        spec: The experiment.
        prompts: By trait, the system prompt that asks for it.
    """
    if not arms_are_added(spec):
        return spec
    data = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    names = [intervention_name(spec, i) for i in range(len(spec.interventions))]
    for declared, one in zip(spec.conditions, data["conditions"], strict=True):
        if declared.like is None and declared.interventions == "all":
            one["interventions"] = names  # `all` does not mean those that are added
    if missing := _without_random(spec):
        _add_random(spec, data, missing)
    if lacks_prompt(spec):
        data["conditions"] += [
            {
                "name": _prompt_name(trait, prompts),
                "interventions": [],
                "system": text,
            }
            for trait, text in prompts.items()
        ]
    if not any(_is_untouched(spec, one) for one in spec.conditions):
        data["conditions"].insert(0, {"name": UNTOUCHED, "interventions": []})
    return type(spec).model_validate(data)


def default_arms_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields why an arm that a file lacks cannot be added to it."""
    if not arms_are_added(spec):
        return
    traits, budgets = asked_traits(spec), _without_random(spec)
    if lacks_prompt(spec) and not traits:
        expected = "a condition `{interventions: [], system: TEXT}`, the prompt-only arm of a comparison "
        yield Flaw(("conditions",), f"{expected}with a `budget`, {_OFF}", None, found="none")
    if budgets and _steered(spec) is None:
        expected = "a condition with a `random_direction` at each `budget`, which is added only beside "
        yield Flaw(("conditions",), f"{expected}steering along a fitted vector, {_OFF}", None, found="none")
    added = {
        UNTOUCHED: not any(_is_untouched(spec, one) for one in spec.conditions),
        **{_prompt_name(trait, traits): lacks_prompt(spec) for trait in traits},
        **{_random_name(one): True for one in budgets},
    }
    for i, condition in enumerate(spec.conditions):
        if added.get(condition.name):
            expected = f"another name: an arm that is added has this one, {_OFF}"
            yield Flaw(("conditions", i, "name"), expected, condition.name)
    names = {intervention_name(spec, i) for i in range(len(spec.interventions))}
    keys = {key for recipe in spec.fits for key in recipe.keys}
    if budgets and RANDOM in names | keys:
        expected = f"no intervention or fit called {RANDOM!r}, which the added arm is, {_OFF}"
        yield Flaw(("interventions",), expected, None, found=RANDOM)


def _budgets(spec: ExperimentFields) -> Iterator[tuple[ConditionSpec, BudgetSpec]]:
    for condition in spec.conditions:
        if condition.choose is not None and condition.choose.budget is not None:
            yield condition, condition.choose.budget


def _acting(spec: ExperimentFields, condition: ConditionSpec) -> Sequence[str]:
    """The names of the interventions that act."""
    for link in reversed(chain(spec, condition)):
        if link.interventions != "all":
            return link.interventions
    return [intervention_name(spec, i) for i in range(len(spec.interventions))]


def _is_untouched(spec: ExperimentFields, condition: ConditionSpec) -> bool:
    return not _acting(spec, condition) and system_prompt(spec, condition) is None


def _is_prompt(spec: ExperimentFields, condition: ConditionSpec) -> bool:
    return not _acting(spec, condition) and system_prompt(spec, condition) is not None


def _is_random(spec: ExperimentFields, condition: ConditionSpec) -> bool:
    """Whether everything that acts does so along random directions."""
    drawn = {key for one in spec.fits if isinstance(one, RandomDirectionSpec) for key in one.keys}
    by_name = {intervention_name(spec, i): one for i, one in enumerate(spec.interventions)}
    acting = [by_name[name] for name in _acting(spec, condition)]
    keys = [[ref.key for _, ref in one.tensor_refs() if ref.file is None] for one in acting]
    return bool(keys) and all(own and set(own) <= drawn for own in keys)


def _without_random(spec: ExperimentFields) -> list[BudgetSpec]:
    """The budgets, one for each KL, at which no random direction stands."""
    there = {budget.kl for condition, budget in _budgets(spec) if _is_random(spec, condition)}
    return list({one.kl: one for _, one in reversed([*_budgets(spec)]) if one.kl not in there}.values())[::-1]


def _steered(spec: ExperimentFields) -> SteeringSpec | None:
    """The first steering along a fitted vector that stands under a budget: what the random arm is like."""
    acting = {name for condition, _ in _budgets(spec) for name in _acting(spec, condition)}
    for i, one in enumerate(spec.interventions):
        if isinstance(one, SteeringSpec) and one.vector.file is None and intervention_name(spec, i) in acting:
            return one
    return None


def _prompt_name(trait: str, traits: Collection[str]) -> str:
    return PROMPT if len(traits) == 1 else f"{PROMPT}_{trait}"


def _random_name(budget: BudgetSpec) -> str:
    return f"{RANDOM}_{budget.kl:g}".replace(".", "_").replace("-", "_").replace("+", "_")


def _add_random(
    spec: ExperimentFields, data: dict[str, list[dict[str, object]]], budgets: Sequence[BudgetSpec]
) -> None:
    """Add the fit of a random direction, the intervention that adds it, and a condition for each budget."""
    model = _steered(spec)
    if model is None:
        return
    key = model.vector.key
    if not isinstance(spec.fit, tuple):
        data["fit"] = [data["fit"]]  # type: ignore[list-item]  # the one recipe of a file
        for one in data["conditions"]:
            for field in ("set", "sweep"):
                if isinstance(values := one.get(field), dict):
                    one[field] = {_keyed(path, key): value for path, value in values.items()}
    data["fit"].append({"recipe": "random_direction", "key": RANDOM, "like": key})
    declared = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
    data["interventions"].append(declared | {"name": RANDOM, "vector": {"key": RANDOM}})
    for budget in budgets:
        chosen = {"budget": budget.model_dump(mode="json", exclude_unset=True)}
        data["conditions"].append({"name": _random_name(budget), "interventions": [RANDOM], "choose": chosen})


def _keyed(path: str, key: str) -> str:
    """`fit.FIELD` as it is called where there are several fits."""
    return f"fit.{key}.{path.removeprefix('fit.')}" if path.startswith("fit.") else path
