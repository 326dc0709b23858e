"""What a localization experiment collects while it runs, arm by arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.comparison.measures import Measured, merged
from subvene.runner.experiments.localization.plan import Planned
from subvene.runner.experiments.localization.samples import Resamples, Sample
from subvene.runner.experiments.localization.section import ArmRecord, Training
from subvene.runner.experiments.results import Choice, Condition
from subvene.runner.files.statistics import percentile_interval
from subvene.runner.recipes.localized_heads import Probed


class Collection:
    """The arms that are measured so far.

    Args:
        keys: of the test questions, which all arms share.

    Attributes:
        conditions: what was measured of each.
        records: by name, what else is known of it.
        samples: by name, its values question by question and text by text.
        choices: of their points.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.conditions: list[Condition] = []
        self.records: dict[str, ArmRecord] = {}
        self.samples: dict[str, Sample] = {}
        self.choices: list[Choice] = []

    def add(self, name: str, measured: Sequence[Measured], record: ArmRecord, **fields: Any) -> None:
        """Take down an arm.

        Args:
            name: of the arm.
            measured: by each measure.
            record: what else is known of it.
            **fields: of its condition.
        """
        self.conditions.append(merged(name, name, measured, **fields))
        self.samples[name] = Sample.of(measured, self.keys)
        self.records[name] = record

    def bounded(self, drawn: Resamples, level: float) -> tuple[Condition, ...]:
        """The conditions with the bootstrap interval of every metric that can be resampled."""
        return tuple(_bounded(one, self.samples[one.name], drawn, level) for one in self.conditions)


def arm_record(planned: Planned, arm: Arm, probed: Probed) -> ArmRecord:
    """What is known of an arm beside what is measured of it: its heads, their probes, its training."""
    provenance = {} if arm.fitted is None else arm.fitted.provenance
    heads = cast("dict[str, list[int]] | None", provenance.get("heads"))
    accuracy = None
    if heads is not None:
        own = [float(probed.accuracy[int(layer), head]) for layer, some in heads.items() for head in some]
        accuracy = sum(own) / len(own)
    training = {name: provenance[name] for name in Training.model_fields} if "steps" in provenance else None
    return ArmRecord.model_validate(
        {
            "family": planned.family,
            "heads": heads,
            "n_heads": None if heads is None else sum(map(len, heads.values())),
            "probe_accuracy": accuracy,
            "training": training,
        }
    )


def _bounded(condition: Condition, sample: Sample, drawn: Resamples, level: float) -> Condition:
    metrics = dict(condition.metrics)
    for name in sample.metrics():
        bounds = percentile_interval(drawn.of(sample, name), level)
        if bounds is not None:
            low, high = bounds
            metrics[name] = metrics[name].model_copy(update={"low": low, "high": high})
    return condition.model_copy(update={"metrics": metrics})
