"""What an experiment with an evaluation of kind ``localization`` must be like."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw
from subvene.specs.evaluations.divergence import DivergenceSpec
from subvene.specs.evaluations.localization import LocalizationSpec
from subvene.specs.evaluations.truthfulqa import TruthfulQASpec
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.interventions import LowRankEditSpec
from subvene.specs.recipes.localized_edit import IPOSpec, LocalizedEditSpec, ProbedHeads

_FIT = "`{recipe: localized_edit}` on TruthfulQA (`data: {truthfulqa: {}}`) with `heads: {rule: probed}`"
_BESIDE = "one truthfulqa entry and at most one divergence entry beside localization"


def localization_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what is wrong with an experiment that asks whether a localization means anything."""
    for name in ("conditions", "seeds", "folds", "repeats"):
        if getattr(spec, name):
            yield Flaw((name,), "nothing, since localization has arms of its own", None, found=f"`{name}`")
    counts = {LocalizationSpec: 0, TruthfulQASpec: 0, DivergenceSpec: 0}
    for i, evaluation in enumerate(spec.evaluate):
        kind = type(evaluation)
        counts[kind] = counts.get(kind, 0) + 1
        if len(counts) > 3 or counts[kind] > 1:
            yield Flaw(("evaluate", i), _BESIDE, None, found=evaluation.kind)
            return
        if isinstance(evaluation, TruthfulQASpec | DivergenceSpec) and evaluation.seeds is not None:
            yield Flaw(("evaluate", i, "seeds"), "nothing beside localization", evaluation.seeds)
        if isinstance(evaluation, DivergenceSpec) and evaluation.validation is not None:
            yield Flaw(("evaluate", i, "validation"), "nothing beside localization", evaluation.validation)
    if not counts[TruthfulQASpec]:
        yield Flaw(("evaluate",), _BESIDE, None, found="no truthfulqa entry")
    yield from _flaws_of_fit(spec)
    yield from _flaws_of_selection(spec)
    if len(spec.interventions) != 1 or not isinstance(spec.interventions[0], LowRankEditSpec):
        expected = "one intervention, of kind low_rank_edit, with the key that `fit:` gives"
        kinds = ", ".join(declared.kind for declared in spec.interventions)
        yield Flaw(("interventions",), expected, None, found=kinds)
        return
    edit = spec.interventions[0]
    if edit.factors is None:
        yield Flaw(("interventions", 0, "factors"), "the key that `fit:` gives", None, found="none")
    elif edit.factors.file is not None:
        yield Flaw(("interventions", 0, "factors", "file"), "nothing, since edits are trained", edit.factors)
    wanted = {"write_heads": "all", "read_heads": "all", "strength": 1.0, "positions": "all"}
    for name, value in wanted.items():
        if (found := getattr(edit, name)) != value:
            expected = f"{value}, since edits are measured as they are trained"
            yield Flaw(("interventions", 0, name), expected, found)
    if edit.layer is not None:
        yield Flaw(("interventions", 0, "layer"), "nothing, since arms edit different layers", edit.layer)


def _flaws_of_selection(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields why strengths and τ cannot be chosen by answers: nothing is to be generated."""
    for i, asked in enumerate(spec.evaluate):
        if not isinstance(asked, LocalizationSpec) or asked.selection.by != "true_info":
            continue
        if not any("generation" in e.measure for e in spec.evaluate if isinstance(e, TruthfulQASpec)):
            expected = "a metric of multiple choice, since the truthfulqa entry does not measure generation"
            yield Flaw(("evaluate", i, "selection", "by"), expected, asked.selection.by)


def _flaws_of_draws(spec: ExperimentFields, place: int, asked: LocalizationSpec) -> Iterator[Flaw]:
    """Yields what does not fit in how many draws are made, and which arms answer questions."""
    at = ("evaluate", place)
    measured = {m for e in spec.evaluate if isinstance(e, TruthfulQASpec) for m in e.measure}
    by = asked.selection.by
    needed = "generation" if by == "true_info" else "multiple_choice"
    if asked.sequential is not None and needed not in measured:
        expected = f"nothing, since the truthfulqa entry does not measure {needed}, by which draws would stop"
        yield Flaw((*at, "sequential"), expected, None, found="sequential")
    if asked.generate is not None and (by == "true_info" or measured != {"generation", "multiple_choice"}):
        expected = (
            "nothing unless the truthfulqa entry measures multiple_choice and generation, and "
            "`selection.by` is a metric of multiple choice: other arms would have nothing to be weighed by"
        )
        yield Flaw((*at, "generate"), expected, asked.generate)
    for name in ("generate", "explore"):
        if strange := [group for group in getattr(asked, name) or () if group not in asked.arms]:
            yield Flaw((*at, name), f"some of the arms: {', '.join(asked.arms)}", strange)
    for family in ("iti", "edit"):
        if f"{family}_matched" in asked.arms and f"{family}_probed" not in asked.arms:
            yield Flaw((*at, "arms"), f"{family}_probed, since {family}_matched is matched to it", asked.arms)


def _flaws_of_objective(recipe: LocalizedEditSpec, place: int, asked: LocalizationSpec) -> Iterator[Flaw]:
    objective = recipe.objective
    if asked.tau is not None and not isinstance(objective, IPOSpec):
        yield Flaw(("evaluate", place, "tau"), "nothing, since only the objective ipo has a τ", asked.tau)
    if asked.mean is not None and not (isinstance(objective, IPOSpec) and objective.reduction == "sum"):
        expected = "nothing unless `fit.objective` is ipo with `reduction: sum`, beside which it is tried"
        yield Flaw(("evaluate", place, "mean"), expected, None, found="mean")


def _flaws_of_fit(spec: ExperimentFields) -> Iterator[Flaw]:
    recipe = spec.fit
    if not isinstance(recipe, LocalizedEditSpec):
        given = [one.recipe for one in spec.fits]
        found = f"recipe: {', '.join(given)}" if given else "no `fit:`"
        yield Flaw(("fit",), _FIT, None, found=found)
        return
    if recipe.learns_from is None:
        yield Flaw(("fit", "data"), _FIT, None, found="triples")
    if not isinstance(recipe.heads, ProbedHeads):
        yield Flaw(("fit", "heads"), _FIT, None, found=f"rule: {recipe.heads.rule}")
    if recipe.gate != "adaptive":
        yield Flaw(("fit", "gate"), "adaptive, since arms are low-rank edits", recipe.gate)
    if recipe.validation is None:
        expected = "a share of the questions, on which strengths are chosen"
        yield Flaw(("fit", "validation"), expected, None, found="null")
    for place, asked in enumerate(spec.evaluate):
        if isinstance(asked, LocalizationSpec):
            yield from _flaws_of_objective(recipe, place, asked)
            yield from _flaws_of_draws(spec, place, asked)
