"""What an experiment that traces the model as it is must be like, and when there must be interventions."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import TracingEvaluation


def tracing_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what is wrong with what a file declares beside its tracing, or without one."""
    if not spec.traces:
        if not spec.interventions and not spec.asks_interchange:
            expected, given = "a non-empty list of interventions", "interventions" in spec.model_fields_set
            yield Flaw(("interventions",), expected, (), "expected" if given else "missing_field")
        return
    for field in ("interventions", "fit"):
        if getattr(spec, field):
            expected = "nothing, since `evaluate` traces the model as it is"
            yield Flaw((field,), expected, None, found=f"`{field}`")
    for i, evaluation in enumerate(spec.evaluate):
        if not isinstance(evaluation, TracingEvaluation):
            expected = (
                "causal_tracing or patching, as other entries are (in a file of its own, this one is fine)"
            )
            yield Flaw(("evaluate", i), expected, None, found=evaluation.kind)
