"""The arms of a localization experiment as reports show them: grouped, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from subvene.runner.experiments.localization.section import ArmRecord, Interval, section_of
from subvene.runner.experiments.results import Choice, Condition, Results
from subvene.runner.experiments.rows import LOWER_IS_BETTER, METRICS
from subvene.runner.reports.blocks import Over
from subvene.runner.reports.curves import point_in_words
from subvene.runner.reports.persona_tables import number

GROUPS = {
    "baseline": "untouched model",
    "iti_probed": "ITI, probed heads",
    "iti_random": "ITI, random heads",
    "iti_matched": "ITI, heads matched by layer",
    "edit_probed": "edit, probed heads",
    "edit_random": "edit, random heads",
    "edit_matched": "edit, heads matched by layer",
    "edit_single": "edit, one head",
    "edit_all": "edit, all heads",
    "lora": "LoRA, unrestricted",
}
"""What the groups of arms are called."""
SETS = {"random": "random ones", "matched": "ones matched by layer"}
"""What draws are called beside the probed set."""
FAMILIES = {"iti": "ITI", "edit": "Trained edit", "lora": "LoRA"}


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        condition: what was measured of it.
        record: its heads and its training.
        choice: of its point; None where it had but one.
    """

    condition: Condition
    record: ArmRecord = field(default_factory=ArmRecord)
    choice: Choice | None = None

    @property
    def name(self) -> str:
        """`edit_random_3`."""
        return self.condition.name

    @property
    def group(self) -> str:
        """`edit_random`; of a condition without a group its name."""
        return self.condition.group or self.condition.name

    def value(self, metric: str) -> float | None:
        """A metric; None if it was not measured."""
        return self.condition.value(metric)

    def interval(self, metric: str) -> Interval | None:
        """A metric's bootstrap interval; None where there is none."""
        found = self.condition.metrics.get(metric)
        return None if found is None or found.low is None or found.high is None else (found.low, found.high)


def arms_of(results: Results) -> list[Arm]:
    """Every arm, in the order of the results.

    Raises:
        ResultsError: these are no results of a localization experiment.
    """
    records = section_of(results).arms
    choices = {choice.condition: choice for choice in results.choices}
    return [Arm(one, records.get(one.name, ArmRecord()), choices.get(one.name)) for one in results.conditions]


def by_group(results: Results) -> dict[str, list[Arm]]:
    """The arms of each group, in the order in which the results have them."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms_of(results):
        groups.setdefault(arm.group, []).append(arm)
    return groups


def group_label(group: str, n: int = 1) -> str:
    """`edit, random heads × 16`."""
    return GROUPS.get(group, group) + (f" × {n}" if n > 1 else "")


def arm_label(arm: Arm) -> str:
    """`edit, random heads 3`."""
    _, _, last = arm.name.rpartition("_")
    return GROUPS.get(arm.group, arm.name) + (f" {last}" if last.isdecimal() else "")


def metrics_of(results: Results) -> list[str]:
    """The metrics that any arm has, in the table's order."""
    return [name for name in METRICS if any(name in arm.metrics for arm in results.conditions)]


def metric_label(metric: str) -> str:
    """Its name, with an arrow to where it is better."""
    return f"{METRICS.get(metric, metric)} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def known(values: Sequence[float | None]) -> list[float]:
    """Those that were measured."""
    return [value for value in values if value is not None]


def p_in_words(p: float | None) -> str:
    """A p-value with three digits, and never 0."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def compared(p: float | None) -> str:
    """`= 0.123`, `< 0.001`."""
    words = p_in_words(p)
    return words if words.startswith("<") else f"= {words}"


def interval_in_words(interval: Interval | None) -> str:
    """`[0.41, 0.55]`."""
    return "–" if interval is None else f"[{', '.join(number(bound, '.3f') for bound in interval)}]"


def spread(values: Sequence[float | None]) -> Over:
    """A value; of several the mean, the lowest and the highest."""
    found = known(values)
    if not found:
        return Over("–")
    mean = number(sum(found) / len(found), ".3f")
    if len(found) == 1:
        return Over(mean)
    return Over(mean, f"({number(min(found), '.3f')} to {number(max(found), '.3f')})")


def measured(arms: Sequence[Arm], metric: str) -> Over:
    """The arms' values of a metric: one with its bootstrap interval, several with their range."""
    interval = arms[0].interval(metric) if len(arms) == 1 else None
    said = spread([arm.value(metric) for arm in arms])
    return said if interval is None else Over(said.main, interval_in_words(interval))


def heads_in_words(arms: Sequence[Arm]) -> str:
    """How many heads the arms act on: `13`, `1 to 3`, – for none to speak of."""
    chosen = [arm.record.heads for arm in arms if arm.record.heads is not None]
    counts = sorted({sum(map(len, heads.values())) for heads in chosen})
    return " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) if counts else "–"


def points_in_words(arms: Sequence[Arm]) -> str:
    """What was chosen; of several arms with how many chose it, the most frequent first."""
    found = [point_in_words(arm.condition.point) for arm in arms if arm.condition.point]
    if not found:
        return "–"
    if len(arms) == 1:
        return found[0]
    by_count = sorted(dict.fromkeys(found), key=lambda point: -found.count(point))
    return "; ".join(f"{point} ({found.count(point)}×)" for point in by_count)
