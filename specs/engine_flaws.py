"""What an experiment that an engine runs must be like."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import TraitScoresSpec
from subvene.specs.positions import TEXT_POSITIONS

_DONE = ("samples", "trait_scores", "truthfulqa", "multiple_choice", "contrast")
"""Evaluations that only generate, or score given texts."""


def engine_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what an engine cannot do; none of it is done by transformers instead."""
    if spec.engine is None:
        return
    if spec.fit is not None:
        expected = "nothing beside `engine`, which trains nothing: fit in a file without `engine`, and name "
        yield Flaw(("fit",), f"{expected}the artifact's tensors by `file`", None, found="`fit`")
    if not spec.evaluate:
        yield Flaw(("evaluate",), f"any of {', '.join(_DONE)}, for `engine` to do", None, found="none")
    for i, one in enumerate(spec.evaluate):
        if one.kind not in _DONE or not one.compares:
            expected = f"any of {', '.join(_DONE)}, of conditions and without `coefficients`: `engine` does "
            yield Flaw(("evaluate", i), f"{expected}nothing else", None, found=one.kind)
        elif isinstance(one, TraitScoresSpec) and one.projection is not None:
            expected = "nothing: `engine` gives no activations"
            yield Flaw(("evaluate", i, "projection"), expected, None, found="`projection`")
        if isinstance(one, TraitScoresSpec) and one.sampling.settings == "model":
            expected = "temperature and top_p: `engine` asks for no settings of the checkpoint"
            yield Flaw(("evaluate", i, "sampling"), expected, None, found="`settings: model`")
    for i, condition in enumerate(spec.conditions):
        if condition.bake:
            expected = "false: a baked checkpoint is not the model that `engine` holds"
            yield Flaw(("conditions", i, "bake"), expected, condition.bake)
    for i, intervention in enumerate(spec.interventions):
        if intervention.is_gated:
            field = "when" if intervention.when is not None else "during"
            expected = f"none beside `engine`, which carries out no `{field}`; leave `engine` out"
            yield Flaw(("interventions", i, field), expected, None, found="one")
    named = any(isinstance(one.positions, TEXT_POSITIONS) for one in spec.interventions)
    if spec.sources or named:
        what = "`sources`" if spec.sources else "positions that name a text"
        expected = f"none beside {what}, which requests to an engine cannot say"
        yield Flaw(("engine",), expected, None, found=f"`{'vllm' if spec.engine.url is None else 'url'}`")
