"""What an experiment whose responses a server generates must be like."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import TraitScoresSpec
from subvene.specs.positions import TEXT_POSITIONS


def engine_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what a server cannot do; none of it is done by this process instead."""
    if spec.engine is None:
        return
    if spec.fit is not None:
        expected = "nothing beside `engine: {url: …}`, which trains nothing: fit in a file without `engine`, "
        yield Flaw(
            ("fit",), f"{expected}serve its artifact, and name its tensors by `file`", None, found="`fit`"
        )
    if not spec.evaluate:
        yield Flaw(("evaluate",), "samples or trait_scores, for `engine` to generate", None, found="none")
    for i, one in enumerate(spec.evaluate):
        if one.kind not in ("samples", "trait_scores") or not one.compares:
            expected = "samples without `coefficients`, or trait_scores: `engine: {url: …}` does nothing else"
            yield Flaw(("evaluate", i), expected, None, found=one.kind)
        elif isinstance(one, TraitScoresSpec) and one.projection is not None:
            expected = "nothing: `engine: {url: …}` gives no activations"
            yield Flaw(("evaluate", i, "projection"), expected, None, found="`projection`")
        if isinstance(one, TraitScoresSpec) and one.sampling.settings == "model":
            expected = "temperature and top_p: `engine: {url: …}` asks for no settings of the checkpoint"
            yield Flaw(("evaluate", i, "sampling"), expected, None, found="`settings: model`")
    for i, condition in enumerate(spec.conditions):
        if condition.bake:
            expected = "false: a baked checkpoint is not what the server of `engine` holds"
            yield Flaw(("conditions", i, "bake"), expected, condition.bake)
    named = any(isinstance(one.positions, TEXT_POSITIONS) for one in spec.interventions)
    if spec.sources or named:
        what = "`sources`" if spec.sources else "positions that name a text"
        yield Flaw(
            ("engine",), f"none beside {what}, which requests to a server cannot say", None, found="`url`"
        )
