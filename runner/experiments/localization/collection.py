"""What a localization experiment collects while it runs, arm by arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from subvene.runner.experiments.comparison.arms import Arm
from subvene.runner.experiments.comparison.measures import Measured, merged
from subvene.runner.experiments.localization.plan import Planned
from subvene.runner.experiments.localization.samples import Resamples, Sample
from subvene.runner.experiments.localization.section import ArmRecord, CurvePoint, Training
from subvene.runner.experiments.results import Choice, Condition
from subvene.runner.files.statistics import percentile_interval
from subvene.runner.recipes.localized_heads import Probed
from subvene.specs import SubveneError


class Collection:
    """The arms that are measured so far.

    Args:
        keys: of the test questions, which all arms share.
        order: names of the arms, as tables have them; they may be measured in another.

    Attributes:
        samples: by name, its values question by question and text by text.
    """

    def __init__(self, keys: Sequence[str], order: Sequence[str]) -> None:
        self.keys = keys
        self._place = {name: place for place, name in enumerate(order)}
        self._conditions: dict[str, Condition] = {}
        self._records: dict[str, ArmRecord] = {}
        self._choices: dict[str, Choice] = {}
        self._curves: list[CurvePoint] = []
        self.samples: dict[str, Sample] = {}

    @property
    def records(self) -> dict[str, ArmRecord]:
        """By name, what is known of each arm beside what was measured."""
        return {name: self._records[name] for name in self._ordered(self._records)}

    @property
    def choices(self) -> list[Choice]:
        """How the points of arms were chosen."""
        return [self._choices[name] for name in self._ordered(self._choices)]

    @property
    def curves(self) -> list[CurvePoint]:
        """What every point of arms gave."""
        return sorted(self._curves, key=lambda one: self._place[one.arm])

    def value(self, name: str, metric: str) -> float:
        """What was measured of an arm.

        Raises:
            SubveneError: it has no such metric.
        """
        value = self._conditions[name].value(metric)
        if value is None:
            raise SubveneError(f"{name}: no {metric} was measured, which draws are compared by")
        return value

    def add_choice(self, choice: Choice | None, curve: Sequence[CurvePoint]) -> None:
        """Take down how an arm's point was chosen, and what all of them gave."""
        if choice is not None:
            self._choices[choice.condition] = choice
        self._curves += curve

    def add(self, name: str, measured: Sequence[Measured], record: ArmRecord, **fields: Any) -> Condition:
        """Take down an arm.

        Args:
            name: of the arm.
            measured: by each measure.
            record: what else is known of it.
            **fields: of its condition.
        """
        condition = self._conditions[name] = merged(name, name, measured, **fields)
        self.samples[name] = Sample.of(measured, self.keys)
        self._records[name] = record
        return condition

    def bounded(self, drawn: Resamples, level: float) -> tuple[Condition, ...]:
        """The conditions with the bootstrap interval of every metric that can be resampled."""
        ordered = (self._conditions[name] for name in self._ordered(self._conditions))
        return tuple(_bounded(one, self.samples[one.name], drawn, level) for one in ordered)

    def _ordered(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self._place.__getitem__)


def arm_record(planned: Planned, arm: Arm, probed: Probed, unseen: Probed) -> ArmRecord:
    """What is known of an arm beside what is measured of it: its heads, their probes, its training.

    Args:
        planned: the arm.
        arm: at its point.
        probed: what the probes give on answers that choose heads.
        unseen: what they give on others.
    """
    provenance = {} if arm.fitted is None else arm.fitted.provenance
    heads = cast("dict[str, list[int]] | None", provenance.get("heads"))
    places = [(int(layer), head) for layer, some in (heads or {}).items() for head in some]
    training = {name: provenance[name] for name in Training.model_fields} if "steps" in provenance else None
    return ArmRecord.model_validate(
        {
            "family": planned.family,
            "heads": heads,
            "n_heads": None if heads is None else sum(map(len, heads.values())),
            "probe_accuracy": _mean_at(probed, places),
            "unseen_accuracy": _mean_at(unseen, places),
            "training": training,
        }
    )


def _mean_at(probed: Probed, places: Sequence[tuple[int, int]]) -> float | None:
    own = [float(probed.accuracy[place]) for place in places]
    return sum(own) / len(own) if own else None


def _bounded(condition: Condition, sample: Sample, drawn: Resamples, level: float) -> Condition:
    metrics = dict(condition.metrics)
    for name in sample.metrics():
        bounds = percentile_interval(drawn.of(sample, name), level)
        if bounds is not None:
            low, high = bounds
            metrics[name] = metrics[name].model_copy(update={"low": low, "high": high})
    return condition.model_copy(update={"metrics": metrics})
