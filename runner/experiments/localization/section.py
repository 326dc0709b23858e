"""What only a localization experiment knows: heads, training, and what the numbers say of its question."""

from __future__ import annotations

from typing import Literal

from subvene.runner.experiments.results import Point, Record, Results, ResultsError
from subvene.runner.files.power import Power, smallest_p

SECTION = "localization"

Interval = tuple[float, float]
"""Lower and upper bound."""
Heads = dict[int, tuple[int, ...]]
"""Layer → heads, both from 0."""


class Evaluation(Record):
    """A look at the validation pairs.

    Attributes:
        step: how many steps were done.
        loss: mean over the pairs, of the arm's objective.
        accuracy: share of the pairs whose true answer is preferred, from 0 to 1; None of an objective that
            prefers none.
    """

    step: int
    loss: float
    accuracy: float | None = None


class Training(Record):
    """How an arm was trained.

    Attributes:
        steps: that were done.
        best_step: that was kept; 0: none lowered the validation loss.
        pairs: it was trained on.
        epoch_losses: mean loss of the steps of each epoch.
        evaluations: in the order of the steps.
    """

    steps: int
    best_step: int
    pairs: int
    epoch_losses: tuple[float, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()


class ArmRecord(Record):
    """What is known of an arm beside what was measured of it.

    Attributes:
        family: what it is: an untouched model, ITI, a trained edit, a LoRA.
        heads: that it acts on; None where it acts on none or on the weights.
        n_heads: how many.
        probe_accuracy: mean accuracy of their probes on validation questions, from 0 to 1; of probed heads
            the accuracy that chose them, which flatters them.
        unseen_accuracy: the same on answers to the test questions, which chose nothing.
        training: None where nothing was trained.
    """

    family: Literal["none", "iti", "edit", "lora"] = "none"
    heads: Heads | None = None
    n_heads: int | None = None
    probe_accuracy: float | None = None
    unseen_accuracy: float | None = None
    training: Training | None = None


class Rank(Record):
    """The rank of the probed set among the draws.

    Attributes:
        at_least: draws that are at least as good.
        n: draws.
        p: (1 + at_least) / (1 + n); of draws that were stopped (Besag and Clifford 1991) at_least / n by the
            metric that stopped them, and None by any other, which had no part in how many there are.
        most: draws that there would have been if none had stopped them; None: as many as there are.
    """

    at_least: int
    n: int
    p: float | None
    most: int | None = None

    @property
    def smallest(self) -> float:
        """The smallest p that there could have been."""
        return smallest_p(self.most or self.n)


class TTest(Record):
    """One-sample t-test of the mean of the draws against the probed value.

    Attributes:
        t: the statistic.
        df: degrees of freedom.
        p: two-sided.
    """

    t: float
    df: int
    p: float


class Evidence(Record):
    """The probed set among random draws, by one metric.

    Attributes:
        family: of the arms.
        draws: of any heads, or matched by layer.
        metric: its name.
        probed: its value at the probed heads.
        random: its value at each draw.
        mean: of the draws.
        sd: of the draws, n − 1 below the root; None for one.
        rank: of the probed set.
        t_test: None where the draws do not differ, and where they were stopped, for which it is not made.
        prediction: where one further draw is expected; None likewise.
        level: of the prediction interval, from 0 to 1.
        inside: whether the probed set is in it.
    """

    family: Literal["iti", "edit"]
    draws: Literal["random", "matched"] = "random"
    metric: str
    probed: float
    random: tuple[float, ...]
    mean: float
    sd: float | None
    rank: Rank
    t_test: TTest | None
    prediction: Interval | None
    level: float
    inside: bool | None


class SingleHeads(Record):
    """Edits at one head each, by one metric.

    Attributes:
        metric: its name.
        values: of each edit.
        best: of them.
        reach: how many do at least as well as the edit at the probed heads; None without that arm.
        n: edits.
    """

    metric: str
    values: tuple[float, ...]
    best: float
    reach: int | None
    n: int


class Difference(Record):
    """Of two arms by one metric.

    Attributes:
        a: an arm; `edit_random` and the like stand for the mean of their draws.
        b: what it is compared with.
        metric: its name.
        difference: a − b.
        interval: paired bootstrap interval; None where a sample had no value.
    """

    a: str
    b: str
    metric: str
    difference: float
    interval: Interval | None


class Selection(Record):
    """How points were chosen.

    Attributes:
        metric: by which.
        questions: on how many validation questions.
    """

    metric: str
    questions: int


class Split(Record):
    """How many questions went where.

    Attributes:
        train: that edits were trained on.
        validation: that the best step of training was chosen on.
        test: that arms were tested on.
        tuning: all that are no test questions, from which probes and directions come.
        pairs: of answers to the training questions.
    """

    train: int
    validation: int
    test: int
    tuning: int
    pairs: int


class Probes(Record):
    """What every head's probe gives.

    Attributes:
        accuracy: [n_layers][n_heads], on validation questions, from 0 to 1.
        chance: share of the commoner label.
        unseen: as `accuracy`, of answers to the test questions; None where results of an older version do
            not have it.
        unseen_chance: there.
    """

    accuracy: tuple[tuple[float, ...], ...]
    chance: float
    unseen: tuple[tuple[float, ...], ...] | None = None
    unseen_chance: float | None = None


class CurvePoint(Record):
    """What one point of an arm gave.

    Attributes:
        arm: its name.
        group: its group.
        questions: of validation, by which points are chosen; or of the test, which is exploratory.
        point: α, or τ.
        metrics: by name.
    """

    arm: str
    group: str
    questions: Literal["validation", "test"]
    point: Point
    metrics: dict[str, float]


class LocalizationSection(Record):
    """What a localization experiment says beside what was measured of its arms.

    Attributes:
        arms: by the name of the condition.
        evidence: by family and metric.
        singles: by metric; empty without edits at one head.
        comparisons: of arms.
        selection: how points were chosen.
        split: None where results of an older version do not say it.
        probes: None where results of an older version do not have them.
        curves: what every point gave; empty where arms have but one.
        power: what so many draws and questions could find, as it was printed before the run; None where
            results of an older version do not say it.
        verdict: in sentences.
    """

    arms: dict[str, ArmRecord]
    evidence: tuple[Evidence, ...] = ()
    singles: tuple[SingleHeads, ...] = ()
    comparisons: tuple[Difference, ...] = ()
    selection: Selection
    split: Split | None = None
    probes: Probes | None = None
    curves: tuple[CurvePoint, ...] = ()
    power: Power | None = None
    verdict: tuple[str, ...] = ()


def section_of(results: Results) -> LocalizationSection:
    """The section of a localization experiment.

    Raises:
        ResultsError: the results have none, or it is not as it must be.
    """
    section = results.section(SECTION, LocalizationSection)
    if section is None:
        raise ResultsError(f"results: sections.{SECTION}: expected what a localization found, found nothing")
    return section
