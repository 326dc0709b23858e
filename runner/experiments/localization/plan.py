"""The arms of a localization experiment, each with the points that validation questions choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from subvene.interventions import Sizes
from subvene.runner.edits.compile import CompileError
from subvene.runner.experiments.results import Point
from subvene.runner.recipes.localized_heads import matched_heads
from subvene.specs import (
    ExperimentSpec,
    HeadDirectionSpec,
    ITISpec,
    LocalizationSpec,
    LocalizedEditSpec,
    SubveneError,
    TensorRef,
)
from subvene.specs.recipes.iti import AllHeads, ListedHeads, RandomHeads, TopHeads
from subvene.specs.recipes.localized_edit import DrawnHeads, Heads, ProbedHeads
from subvene.specs.recipes.trained import IPOSpec, Objective

# The stream of random numbers that single heads are drawn from; 0 and 1 are those of ITI.
_SINGLE = 2
# Draws of different seeds of the experiment must be different draws.
_DRAWS = 10_000


@dataclass(frozen=True)
class Candidate:
    """One point of an arm: how it is fitted, and the experiment that it then is.

    Attributes:
        point: what makes it differ from the arm's other points.
        variant: with its `fit` and its one intervention; of a LoRA the fit alone counts.
    """

    point: Point
    variant: ExperimentSpec

    @property
    def recipe(self) -> ITISpec | LocalizedEditSpec:
        """How it is fitted."""
        recipe = self.variant.fit
        if not isinstance(recipe, ITISpec | LocalizedEditSpec):
            raise TypeError(f"expected a recipe that edits heads, found {type(recipe).__name__}")
        return recipe


@dataclass(frozen=True)
class Planned:
    """One arm.

    Attributes:
        name: `edit_random_3`.
        group: `edit_random`: the arms that differ in the draw alone.
        candidates: one of them is chosen on validation questions.
    """

    name: str
    group: str
    candidates: tuple[Candidate, ...]

    @property
    def family(self) -> str:
        """`iti`, `edit` or `lora`."""
        return self.group.partition("_")[0]


def declared_of(spec: ExperimentSpec) -> tuple[LocalizationSpec, LocalizedEditSpec, ProbedHeads]:
    """The evaluation, the recipe and its heads, which a valid localization experiment has."""
    asked = next((e for e in spec.evaluate if isinstance(e, LocalizationSpec)), None)
    recipe = spec.fit
    if (
        asked is None
        or not isinstance(recipe, LocalizedEditSpec)
        or not isinstance(recipe.heads, ProbedHeads)
    ):
        raise SubveneError("this experiment does not ask whether a localization means anything")
    return asked, recipe, recipe.heads


def plan(
    spec: ExperimentSpec, sizes: Sizes, probed: Mapping[int, Sequence[int]] | None = None
) -> list[Planned]:
    """Every arm, in the order of the table.

    Args:
        spec: the experiment.
        sizes: of the model, which bound what can be drawn.
        probed: the heads that probes choose, layer → heads, which matched draws are like; None while they
            are not known, and then these arms stand for as many draws of any heads.

    Raises:
        CompileError: more heads are asked for than the model has.
    """
    asked, _, rule = declared_of(spec)
    count = sizes.n_layers * sizes.n_heads
    if asked.single > count and "edit_single" in asked.arms:
        place = spec.evaluate.index(asked)
        raise CompileError(
            f"evaluate[{place}].single: expected at most {count}, the model's heads, found {asked.single}"
        )
    arms: list[Planned] = []
    for group in asked.arms:
        family, _, which = group.partition("_")
        if is_drawn(group):
            for i in range(draws_of(asked, group)):
                seed, name = spec.seed * _DRAWS + i, f"{group}_{i + 1}"
                like = probed if which == "matched" else None
                heads = None if like is None else ListedHeads(heads=matched_heads(like, sizes, seed))
                if family == "iti":
                    arms.append(_iti(spec, name, group, heads or RandomHeads(k=rule.k, seed=seed)))
                else:
                    arms.append(_edit(spec, name, group, heads or DrawnHeads(k=rule.k, seed=seed)))
        elif group == "iti_probed":
            arms.append(_iti(spec, group, group, TopHeads(k=rule.k)))
        elif group == "edit_probed":
            arms.append(_edit(spec, group, group, rule))
        elif group == "edit_single":
            singles = np.random.default_rng([spec.seed, _SINGLE]).permutation(count)[: asked.single].tolist()
            for i, place in enumerate(singles, 1):
                layer, head = divmod(place, sizes.n_heads)
                arms.append(_edit(spec, f"{group}_{i}", group, ListedHeads(heads={layer: (head,)})))
        else:
            arms.append(_edit(spec, group, group, AllHeads()))
    return arms


def is_drawn(group: str) -> bool:
    """Whether a group's arms differ in the draw of several heads."""
    return group.endswith(("_random", "_matched"))


def draws_of(asked: LocalizationSpec, group: str) -> int:
    """How many draws a group of random heads has at most."""
    return asked.random_iti or asked.random if group.startswith("iti") else asked.random


def _iti(
    spec: ExperimentSpec, name: str, group: str, select: TopHeads | RandomHeads | ListedHeads
) -> Planned:
    asked, recipe, probed = declared_of(spec)
    source = recipe.learns_from
    if source is None:
        raise SubveneError("fit.data: ITI is fitted on TruthfulQA")
    fit = ITISpec(
        key=recipe.key,
        data=source,
        select=select,
        direction=asked.iti.direction,
        ranking=probed.ranking,
        ranking_folds=probed.ranking_folds,
        validation=probed.validation,
        batch_size=probed.batch_size,
    )
    candidates = []
    for strength in asked.iti.strengths:
        shift = HeadDirectionSpec(
            name="iti",
            directions=TensorRef(key=recipe.key),
            strength=strength,
            positions=asked.iti.positions,
        )
        candidates.append(Candidate({"strength": strength}, _variant(spec, fit, shift)))
    return Planned(name, group, tuple(candidates))


def _edit(spec: ExperimentSpec, name: str, group: str, heads: Heads) -> Planned:
    asked, recipe, _ = declared_of(spec)
    rates = {"edit_single": asked.learning_rate_single, "edit_all": asked.learning_rate_all}
    rate = rates.get(group, asked.learning_rate_all if group == "lora" else recipe.learning_rate)
    candidates = []
    for objective, point in _objectives(recipe, asked):
        changed = {"heads": heads, "objective": objective, "learning_rate": rate}
        if point.get("reduction") == "mean" and asked.mean is not None:
            changed["learning_rate"] = rate * asked.mean.learning_rate_factor
            changed["epochs"] = asked.mean.epochs or recipe.epochs
        fit = recipe.model_copy(update=changed)
        candidates.append(Candidate(point, _variant(spec, fit, spec.interventions[0])))
    return Planned(name, group, tuple(candidates))


def _objectives(recipe: LocalizedEditSpec, asked: LocalizationSpec) -> Iterator[tuple[Objective, Point]]:
    if not isinstance(recipe.objective, IPOSpec):
        yield recipe.objective, {}
        return
    taus = asked.tau or (recipe.objective.tau,)
    for tau in taus:
        yield recipe.objective.model_copy(update={"tau": tau}), {"tau": tau}
    for tau in taus if asked.mean is not None else ():
        objective = recipe.objective.model_copy(update={"tau": tau, "reduction": "mean"})
        yield objective, {"tau": tau, "reduction": "mean"}


def _variant(spec: ExperimentSpec, fit: Any, intervention: Any) -> ExperimentSpec:
    return spec.model_copy(update={"fit": fit, "interventions": (intervention,), "evaluate": ()})


def edits_of(arms: Sequence[Planned]) -> list[Candidate]:
    """Every candidate that is trained as an edit, each fit once."""
    found: dict[str, Candidate] = {}
    for arm in arms:
        for candidate in arm.candidates if arm.family == "edit" else ():
            found.setdefault(candidate.recipe.model_dump_json(), candidate)
    return list(found.values())
