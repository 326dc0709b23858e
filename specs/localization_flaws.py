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
    asked = next((e for e in spec.evaluate if isinstance(e, LocalizationSpec)), None)
    if asked is not None and asked.tau is not None and not isinstance(recipe.objective, IPOSpec):
        place = spec.evaluate.index(asked)
        expected = "nothing, since only the objective ipo has a τ"
        yield Flaw(("evaluate", place, "tau"), expected, asked.tau)
