"""What an experiment that compares conditions must be like."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw, Loc, nearest, one_of
from subvene.specs.evaluations import ChoosingEvaluation, ConditionEvaluation
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import DivergenceSpec, TruthfulQASpec


def comparison_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what is wrong with the conditions, seeds, folds and evaluations of an experiment together."""
    if spec.seeds is not None and "seed" in spec.model_fields_set:
        yield Flaw(("seeds",), "either `seed` or `seeds`", None, found="both")
    if spec.asks_localization:
        from subvene.specs.localization_flaws import localization_flaws

        yield from localization_flaws(spec)
        return
    if not spec.compares_conditions:
        for field in ("conditions", "seeds", "folds", "repeats"):
            if getattr(spec, field):
                expected = "nothing, since no entry of `evaluate` compares conditions (truthfulqa, "
                expected += (
                    "divergence, trait_scores, multiple_choice, likelihood, refusals, lm_eval, or contrast "
                )
                yield Flaw(
                    (field,), f"{expected}and samples without `coefficients`)", None, found=f"`{field}`"
                )
        return
    yield from _evaluation_flaws(spec)
    if spec.folds is not None and not any(recipe.learns_from is not None for recipe in spec.fits):
        yield Flaw(("folds",), "nothing, since no `fit:` learns from questions", spec.folds)
    if spec.repeats is not None and spec.folds is None:
        yield Flaw(
            ("folds",),
            "a number of folds, since `repeats` deals questions into them anew",
            None,
            "missing_field",
        )
    for i, condition in enumerate(spec.conditions):
        if condition.choose is not None:
            yield from _choice_flaws(spec, i)


def _evaluation_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    taken: dict[tuple[str, int], int] = {}
    for i, evaluation in enumerate(spec.evaluate):
        if not evaluation.compares or not isinstance(evaluation, ConditionEvaluation):
            expected = "an evaluation that compares conditions, as other entries do ("
            if "coefficients" in evaluation.model_fields_set:
                expected += "leave out its `coefficients`: a condition's `sweep` takes their place)"
                yield Flaw(("evaluate", i, "coefficients"), expected, None, found=evaluation.kind)
            else:
                expected += "in a file of its own, this one is fine)"
                yield Flaw(("evaluate", i), expected, None, found=evaluation.kind)
            continue
        for seed in evaluation.seeds or ():
            if seed not in spec.all_seeds:
                expected = f"seeds of the experiment: {', '.join(map(str, spec.all_seeds))}"
                yield Flaw(("evaluate", i, "seeds"), expected, evaluation.seeds)
                break
        for metric in evaluation.metrics:
            first = {taken.setdefault((metric, seed), i) for seed in evaluation.seeds or spec.all_seeds} - {i}
            if first:
                expected = f"an evaluation that gives other numbers than evaluate[{min(first)}], which gives "
                yield Flaw(("evaluate", i), f"{expected}{metric}", None, found=f"a second {evaluation.kind}")
                break


def _choice_flaws(spec: ExperimentFields, i: int) -> Iterator[Flaw]:
    """Yields why a condition cannot choose by the metrics that it names."""
    choose = spec.conditions[i].choose
    if choose is None:
        return
    loc: Loc = ("conditions", i, "choose")
    if choose.budget is not None:
        yield from _budget_texts_flaws(spec, (*loc, "budget"))
    if choose.by is None:
        return
    able = [one for one in spec.evaluate if isinstance(one, ChoosingEvaluation) and one.compares]
    metrics = [metric for one in able for metric in one.choosing]
    if choose.by not in metrics:
        if not metrics:
            expected = "nothing, since no entry of `evaluate` has validation items (truthfulqa, contrast, "
            yield Flaw(loc, f"{expected}trait_scores, likelihood)", None, found="choose")
        else:
            yield Flaw((*loc, "by"), one_of(metrics), choose.by, hint=nearest(choose.by, metrics))
        return
    evaluation = next(one for one in able if choose.by in one.choosing)
    for metric in choose.at_least:
        if metric not in evaluation.choosing:
            expected = f"metrics of the same evaluation: {one_of(evaluation.choosing)}"
            yield Flaw((*loc, "at_least"), expected, metric, hint=nearest(metric, evaluation.choosing))
    learns = any(recipe.learns_from is not None for recipe in spec.fits)
    if evaluation.validation is None and not (isinstance(evaluation, TruthfulQASpec) and learns):
        place = spec.evaluate.index(evaluation)
        expected = "a number of items that are for choosing alone, since a condition chooses by "
        yield Flaw(("evaluate", place, "validation"), expected + choose.by, None, "missing_field")


def _budget_texts_flaws(spec: ExperimentFields, loc: Loc) -> Iterator[Flaw]:
    """Yields why the divergence of a budget cannot be measured."""
    place = next((i for i, one in enumerate(spec.evaluate) if isinstance(one, DivergenceSpec)), None)
    if place is None:
        expected = "an entry `{kind: divergence, validation: N}` in `evaluate`, on whose first N texts the "
        yield Flaw(loc, f"{expected}divergence is measured", None, found="budget")
        return
    declared = spec.evaluate[place]
    if isinstance(declared, DivergenceSpec) and declared.validation is None:
        expected = "a number of texts that are for budgets alone, since a condition has one"
        yield Flaw(("evaluate", place, "validation"), expected, None, "missing_field")
