"""What an experiment on a model that is quantised while it is loaded must be like."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw
from subvene.specs.experiment_fields import ExperimentFields


def quantization_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what cannot be done with quantised weights."""
    if spec.model.quantization_config is None:
        return
    place = ("model", "quantization_config")
    if spec.engine is not None:
        expected = "nothing beside `engine`, which computes with quantised weights in another way"
        yield Flaw(place, expected, None, found="a mapping")
    for i, condition in enumerate(spec.conditions):
        if condition.bake:
            expected = "false: a change does not go exactly into quantised weights (`quantization_config`)"
            yield Flaw(("conditions", i, "bake"), expected, condition.bake)
