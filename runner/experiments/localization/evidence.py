"""Evidence: is the set of heads that probes find special among sets drawn at random?

Three answers to three questions, which are easily taken for one another:

- the rank of the probed set among the draws: how often would a random set do at least as well;
- the prediction interval: where one further random set is expected, if draws are normally distributed;
- the one-sample t-test of the paper (Wang and Veitch 2025): whether the *mean* of the draws differs from the
  probed set. With many draws it becomes significant for a set in the midst of them, so it says nothing about
  whether a random set would do.

Draws may stop early, with the h-th that does at least as well as the probed set (Besag and Clifford 1991,
"Sequential Monte Carlo p-values", Biometrika 78): then p is h by the draws made. How many there are depends
on what they gave, so that of the other two, and of p by other metrics, nothing is said.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from subvene.runner.experiments.localization.samples import Resamples, Sample
from subvene.runner.experiments.localization.section import Difference, Evidence, Rank, SingleHeads, TTest
from subvene.runner.experiments.results import Condition
from subvene.runner.experiments.rows import LOWER_IS_BETTER, METRICS
from subvene.runner.files.statistics import percentile_interval

_PAIRS = (
    ("edit_probed", "iti_probed"),
    ("iti_probed", "baseline"),
    ("edit_probed", "baseline"),
    ("edit_all", "edit_probed"),
    ("lora", "edit_all"),
    ("edit_probed", "edit_random"),
    ("iti_probed", "iti_random"),
    ("edit_probed", "edit_matched"),
    ("iti_probed", "iti_matched"),
)


Family = Literal["iti", "edit"]
Draws = Literal["random", "matched"]
_FAMILIES: tuple[Family, ...] = ("iti", "edit")
_DRAWS: tuple[Draws, ...] = ("random", "matched")


@dataclass(frozen=True)
class Stop:
    """Draws that were stopped.

    Attributes:
        metric: by which.
        most: draws that there would have been.
    """

    metric: str
    most: int


def as_good(value: float, probed: float, metric: str) -> bool:
    """Whether a draw does at least as well as the probed set; of CE and KL less is better."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return sign * value >= sign * probed


def among_draws(
    family: Family,
    probed: float,
    draws: Sequence[float],
    metric: str,
    level: float,
    *,
    of: Draws = "random",
    stop: Stop | None = None,
) -> Evidence:
    """The probed set among random draws, by one metric; tests are None where the draws do not differ.

    Args:
        family: of the arms.
        probed: the metric of the probed set.
        draws: the metric of each draw.
        metric: its name.
        level: of the prediction interval.
        of: what is drawn from.
        stop: why there are no more; None: they are all that were asked for.
    """
    n, mean = len(draws), float(np.mean(draws))
    sd = float(np.std(draws, ddof=1)) if n > 1 else None
    test, prediction = None, None
    # Draws that are equal differ by rounding.
    if stop is None and sd is not None and sd > 1e-9 * max(1.0, abs(mean)):
        found = stats.ttest_1samp(draws, probed)
        test = TTest(t=float(found.statistic), df=n - 1, p=float(found.pvalue))
        reach = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd * math.sqrt(1 + 1 / n)
        prediction = (mean - reach, mean + reach)
    return Evidence(
        family=family,
        draws=of,
        metric=metric,
        probed=probed,
        random=tuple(draws),
        mean=mean,
        sd=sd,
        rank=_rank(sum(as_good(draw, probed, metric) for draw in draws), n, metric, stop),
        t_test=test,
        prediction=prediction,
        level=level,
        inside=None if prediction is None else prediction[0] <= probed <= prediction[1],
    )


def _rank(at_least: int, n: int, metric: str, stop: Stop | None) -> Rank:
    if stop is None:
        return Rank(at_least=at_least, n=n, p=(1 + at_least) / (1 + n))
    p = at_least / n if metric == stop.metric else None
    return Rank(at_least=at_least, n=n, p=p, most=stop.most)


def evidence(
    arms: Sequence[Condition], level: float, stops: Mapping[str, Stop] | None = None
) -> tuple[Evidence, ...]:
    """`among_draws` of ITI and of trained edits, by every metric that all of them have.

    Args:
        arms: what was measured.
        level: of the prediction intervals.
        stops: by group, of draws that were stopped.
    """
    found = []
    for family, of in itertools.product(_FAMILIES, _DRAWS):
        group = f"{family}_{of}"
        probed = next((arm for arm in arms if arm.group == f"{family}_probed"), None)
        draws = [arm for arm in arms if arm.group == group]
        if probed is None or not draws:
            continue
        stop = (stops or {}).get(group)
        for metric in _shared([probed, *draws]):
            values = [arm.metrics[metric].mean for arm in draws]
            there = probed.metrics[metric].mean
            found.append(among_draws(family, there, values, metric, level, of=of, stop=stop))
    return tuple(found)


def singles(arms: Sequence[Condition]) -> tuple[SingleHeads, ...]:
    """Edits at one head, by every metric."""
    probed = next((arm for arm in arms if arm.group == "edit_probed"), None)
    alone = [arm for arm in arms if arm.group == "edit_single"]
    found = []
    for metric in _shared([*alone, *([probed] if probed else [])]) if alone else ():
        sign = -1 if metric in LOWER_IS_BETTER else 1
        values = [arm.metrics[metric].mean for arm in alone]
        reach = None
        if probed is not None:
            reach = sum(sign * value >= sign * probed.metrics[metric].mean for value in values)
        best = max(values, key=lambda value: sign * value)
        found.append(SingleHeads(metric=metric, values=tuple(values), best=best, reach=reach, n=len(values)))
    return tuple(found)


def comparisons(
    samples: Mapping[str, Sample], resamples: Resamples, level: float, stopped: Collection[str] = ()
) -> tuple[Difference, ...]:
    """Differences a − b of arms by every metric, with paired bootstrap intervals over questions or texts.

    An arm `edit_random` and the like stands for the mean of its draws; not of draws that were stopped, whose
    number depends on what they gave.

    Args:
        samples: by the name of the arm.
        resamples: the bootstrap samples.
        level: of the intervals.
        stopped: groups of draws that were.
    """
    groups: dict[str, list[Sample]] = {}
    for name, sample in samples.items():
        head, _, number = name.rpartition("_")
        groups.setdefault(head if number.isdigit() else name, []).append(sample)
    found = []
    for a, b in _PAIRS:
        if a not in groups or b not in groups or b in stopped:
            continue
        metrics = [m for m in groups[a][0].metrics() if all(m in s.metrics() for s in groups[b])]
        for metric in metrics:
            there, drawn = (
                [
                    np.mean([each(sample) for sample in groups[name]], axis=0)
                    for each in (lambda s: s.value(metric), lambda s: resamples.of(s, metric))  # noqa: B023
                ]
                for name in (a, b)
            )
            found.append(
                Difference(
                    a=a,
                    b=b,
                    metric=metric,
                    difference=float(there[0] - drawn[0]),
                    interval=percentile_interval(there[1] - drawn[1], level),
                )
            )
    return tuple(found)


def _shared(arms: Sequence[Condition]) -> list[str]:
    """The metrics that every arm has a number for."""
    names = [name for name in arms[0].metrics if name in METRICS]
    return [name for name in names if all(name in arm.metrics for arm in arms)]
