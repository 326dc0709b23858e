"""What an experiment that compares conditions must be like."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw
from subvene.specs.evaluations import ConditionEvaluation
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import TruthfulQASpec


def comparison_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what is wrong with the conditions, seeds, folds and evaluations of an experiment together."""
    if spec.seeds is not None and "seed" in spec.model_fields_set:
        yield Flaw(("seeds",), "either `seed` or `seeds`", None, found="both")
    if spec.asks_localization:
        from subvene.specs.localization_flaws import localization_flaws

        yield from localization_flaws(spec)
        return
    if not spec.compares_conditions:
        for field in ("conditions", "seeds", "folds"):
            if getattr(spec, field):
                kinds = "truthfulqa or divergence"
                expected = f"nothing, since no entry of `evaluate` compares conditions ({kinds})"
                yield Flaw((field,), expected, None, found=f"`{field}`")
        return
    for i, evaluation in enumerate(spec.evaluate):
        if not isinstance(evaluation, ConditionEvaluation):
            expected = "an evaluation that compares conditions, as other entries do (in a file of its own, "
            yield Flaw(("evaluate", i), f"{expected}this one is fine)", None, found=evaluation.kind)
            continue
        for seed in evaluation.seeds or ():
            if seed not in spec.all_seeds:
                expected = f"seeds of the experiment: {', '.join(map(str, spec.all_seeds))}"
                yield Flaw(("evaluate", i, "seeds"), expected, evaluation.seeds)
                break
    learns = spec.fit is not None and spec.fit.learns_from is not None
    if spec.folds is not None and not learns:
        expected = "nothing, since no `fit:` learns from questions"
        yield Flaw(("folds",), expected, spec.folds)
    chosen = [i for i, condition in enumerate(spec.conditions) if condition.choose is not None]
    questions = any(isinstance(evaluation, TruthfulQASpec) for evaluation in spec.evaluate)
    for i in chosen:
        if not questions or not learns:
            expected = (
                "nothing, since it needs a `fit:` that learns from TruthfulQA and a truthfulqa evaluation"
            )
            yield Flaw(("conditions", i, "choose"), expected, None, found="choose")
