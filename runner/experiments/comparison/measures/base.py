"""What measures of conditions have in common: what they are given, and what they give."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypedDict, TypeVar

from pydantic import JsonValue

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.edits.finite_points import is_marked, marking
from subvene.runner.edits.receipt import Receipt
from subvene.runner.experiments.comparison.arms import Arm, Arms, Fits
from subvene.runner.experiments.results import Condition, Item, JudgeRecord, Metric, QuestionText
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, Result, digest
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.judges import Identity, JudgeError
from subvene.runner.measures.missing import missing_in_words
from subvene.specs import SubveneError

if TYPE_CHECKING:
    from subvene.runner.engines.engine import Engine


class WithReceipts(TypedDict):
    """What a unit that runs a model gives, beside its numbers: a record for each intervention."""

    receipts: list[JsonValue]


@dataclass
class Marks:
    """What was measured of one question.

    Attributes:
        text: what the model answered; None where it was not asked to.
        scores: by name.
        missing: by name, why a verdict is still owed.
    """

    text: str | None = None
    scores: dict[str, float | bool | None] = field(default_factory=dict)
    missing: dict[str, str | None] = field(default_factory=dict)

    def add(self, other: Marks) -> None:
        """What else was measured of it."""
        self.text = self.text if other.text is None else other.text
        self.scores |= other.scores
        self.missing |= other.missing


@dataclass
class Measured:
    """What one arm gave.

    Attributes:
        metrics: by name; those that have no number are left out.
        counts: by name: verdicts that are missing, or that the judge did not give.
        units: name of a measurement → key of its unit in the ledger.
        receipts: name of a measurement → what the interventions did in it.
        questions: by question key, what was measured of it.
        texts: `ce`, `kl` and `tokens` of each text of a divergence.
        items: what was measured of texts, pairs and responses, where a question may have several.
        not_finite: why there are no numbers, in words; None where there are.
        out_of_reach: why there are none since a budget is not met; None where there are.
    """

    metrics: dict[str, Metric] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    receipts: dict[str, list[JsonValue]] = field(default_factory=dict)
    questions: dict[str, Marks] = field(default_factory=dict)
    texts: dict[str, list[float]] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    not_finite: str | None = None
    out_of_reach: str | None = None

    def of(self, key: str) -> Marks:
        """What was measured of a question, to be added to."""
        return self.questions.setdefault(key, Marks())

    def value(self, metric: str) -> float | None:
        """A metric's number; None where it has none."""
        return None if metric not in self.metrics else self.metrics[metric].mean

    def mean(self, metric: str, values: Iterable[float | bool]) -> None:
        """Set a metric to the mean of numbers; nothing where there are none."""
        numbers = [float(value) for value in values]
        mean = statistics.fmean(numbers) if numbers else math.nan
        if math.isfinite(mean):
            self.metrics[metric] = Metric(mean=mean, n=len(numbers))


def merged(name: str, label: str, measured: Sequence[Measured], **fields: Any) -> Condition:
    """What several measures gave of one condition.

    Args:
        name: of the condition.
        label: what the table calls it.
        measured: by each measure.
        **fields: what else is known of the condition.
    """
    whole = Measured()
    for one in measured:
        whole.metrics |= one.metrics
        whole.counts |= one.counts
        whole.units |= one.units
        whole.receipts |= one.receipts
        whole.items += one.items
        whole.not_finite = one.not_finite or whole.not_finite
        whole.out_of_reach = one.out_of_reach or whole.out_of_reach
        for key, marks in one.questions.items():
            whole.of(key).add(marks)
    return Condition(
        name=name,
        label=label,
        metrics=whole.metrics,
        counts=fields.pop("counts", {}) | whole.counts,
        units=whole.units,
        receipts=whole.receipts,
        not_finite=whole.not_finite,
        out_of_reach=whole.out_of_reach,
        items=(*(_item(key, marks) for key, marks in whole.questions.items()), *whole.items),
        **fields,
    )


def _item(key: str, marks: Marks) -> Item:
    return Item(key=key, text=marks.text, scores=marks.scores, missing=marks.missing)


def check_complete(measured: Measured, what: str) -> None:
    """Check that nothing is missing in what a choice is made by: another point might be the best.

    Raises:
        JudgeError: verdicts are missing.
    """
    owed = [marks.missing for marks in measured.questions.values()]
    owed += [item.missing for item in measured.items]
    reasons = Counter(str(reason) for missing in owed for reason in missing.values())
    if reasons:
        raise JudgeError(f"{what}: nothing can be chosen yet: {missing_in_words(reasons)}")


class Progress(Protocol):
    """Told of every unit of work, done now or before."""

    def __call__(self, what: str, *, was_done: bool) -> None:
        """Say which unit it was."""


@dataclass(frozen=True)
class Session:
    """What measures work with once the model is loaded.

    Attributes:
        arms: makes arms, and knows the model.
        original: the untouched model.
        ledger: where units are recorded.
        fits: gives what was fitted for some keys in the cell that is measured.
        engine: generates and scores; None: transformers in this process.
    """

    arms: Arms
    original: IntervenedModel
    ledger: Ledger
    fits: Callable[[Sequence[str], int, int], Fits | None]
    engine: Engine | None = None

    @property
    def base(self) -> dict[str, Json]:
        """What units of the untouched model depend on: the model, and the engine that runs it."""
        return self.arms.base | ({} if self.engine is None else self.engine.identity)


@dataclass(frozen=True)
class Place:
    """For which seed and fold something is measured."""

    seed: int
    fold: int
    n_folds: int


One = TypeVar("One")
"""A question, a text, a pair: what a measure is of."""


class ConditionMeasure(ABC, Generic[One]):
    """One entry of `evaluate:`, measured of conditions. Its files and judges are checked when it is made."""

    @abstractmethod
    def steps(self, *, only: str | None = None) -> int:
        """Units of work for one arm."""

    @abstractmethod
    def tested(self, place: Place) -> Sequence[One]:
        """What conditions are tested on."""

    def validation(self, place: Place, held: Sequence[Mapping[str, Question]]) -> Sequence[One]:
        """What points of a sweep are chosen on; nothing of it is tested on.

        Args:
            place: the seed and the fold.
            held: of each fit that learns from questions, by key, those that it has not seen.
        """
        return ()

    @abstractmethod
    def run(
        self,
        arm: Arm,
        items: Sequence[One],
        session: Session,
        progress: Progress,
        place: Place,
        *,
        only: str | None = None,
    ) -> Measured:
        """Measure one arm.

        Args:
            arm: what is measured.
            items: on what.
            session: model and ledger.
            progress: told of every unit.
            place: for which seed and fold.
            only: measure only what this metric needs; None: all that the spec asks for.
        """

    @abstractmethod
    def data(self) -> Mapping[str, Json]:
        """What it is measured on, for the manifest: hashes."""

    def judge_identities(self) -> tuple[Identity, ...]:
        """Who judges, as far as it is known before a model is loaded; none without a judge."""
        return ()

    def judged_by(self) -> tuple[JudgeRecord, ...]:
        """Who has judged, after the run; none without a judge."""
        return ()

    def questions_asked(self) -> dict[str, QuestionText]:
        """By key, what items are of."""
        return {}

    def sections(self, conditions: Sequence[Condition], session: Session) -> dict[str, JsonValue]:
        """What there is to say of all conditions together, by section; what it asks a judge are units."""
        return {}


Given = TypeVar("Given", bound=WithReceipts)
"""What the unit of a measure gives."""


class OneUnit(ConditionMeasure[One], Generic[One, Given]):
    """A measure whose numbers all come of one unit of work.

    Attributes:
        name: of the unit, by which its receipts are found.
    """

    name: ClassVar[str]

    def steps(self, *, only: str | None = None) -> int:
        """One."""
        return 1

    @abstractmethod
    def unit(self, items: Sequence[One]) -> Mapping[str, Json]:
        """What its result depends on, beside the arm."""

    @abstractmethod
    def work(self, m: IntervenedModel, items: Sequence[One], system: str | None) -> Given:
        """Do the unit; JSON values.

        Args:
            m: the model of the arm.
            items: on what.
            system: the arm's system prompt; None without one.
        """

    def work_by(self, engine: Engine, m: IntervenedModel, items: Sequence[One], system: str | None) -> Given:
        """Do the unit by an engine; a measure that only generates, or scores given texts, does it.

        Raises:
            SubveneError: it does more.
        """
        raise SubveneError(f"{self.name}: no engine does this but transformers, in this process")

    @abstractmethod
    def record(self, measured: Measured, result: Given, items: Sequence[One]) -> None:
        """Take down the numbers and the items of a result."""

    def run(
        self,
        arm: Arm,
        items: Sequence[One],
        session: Session,
        progress: Progress,
        place: Place,
        *,
        only: str | None = None,
    ) -> Measured:
        """Measure one arm."""

        def work() -> Given:
            with arm.open() as m:
                if session.engine is None:
                    return self.work(m, items, arm.system)
                return self.work_by(session.engine, m, items, arm.system)

        measured = Measured()
        identity = {**arm.identity, **self.unit(items)}
        result = done_of(arm, self.name, identity, work, session.ledger, progress, measured)
        if result is not None:
            measured.receipts[self.name] = result["receipts"]
            self.record(measured, result, items)
        return measured


def done(
    name: str,
    identity: Mapping[str, Json],
    work: Callable[[], Result],
    ledger: Ledger,
    progress: Progress,
    measured: Measured,
) -> Result:
    """The unit's result, now or from an earlier run; told to `progress` and named in `measured`."""
    was_done = ledger.has(identity)
    result = ledger.do(identity, work)
    progress(name.replace("_", " "), was_done=was_done)
    measured.units[name] = digest(identity)
    return result


def done_of(
    arm: Arm,
    name: str,
    identity: Mapping[str, Json],
    work: Callable[[], Result],
    ledger: Ledger,
    progress: Progress,
    measured: Measured,
) -> Result | None:
    """As `done`; None for a point of a sweep that is no longer finite, of which `measured` says why."""
    result = done(name, identity, marking(arm.swept, work), ledger, progress, measured)
    if is_marked(result):
        measured.not_finite = result["not_finite"]
        return None
    return result


def plain(receipts: Sequence[Receipt]) -> list[JsonValue]:
    """Receipts as JSON values, one record an intervention."""
    return [one for receipt in receipts for one in receipt.to_dict()]
