"""What a tracing run knows beyond its conditions: facts by token, maps of every fact, effects over facts."""

from __future__ import annotations

from subvene.runner.data.facts import Role
from subvene.runner.experiments.results import Record, Results
from subvene.runner.measures.tracing import Read, Traced
from subvene.specs.evaluations.causal_tracing import TracedSiteName, TraceMetric

SECTION = "tracing"


class FactRecord(Record):
    """A fact as the model read it.

    Attributes:
        key: of the fact in `Results.questions`.
        prompt: its text, without the answer.
        subject: what it is about.
        answer: the answer's first token.
        foil: the foil's first token; None without one.
        pieces: what each token stands for.
        roles: what each token is to the fact.
        read: what the model says of it, clean and corrupted.
        predicted: the likeliest next token of the clean run.
        traced: whether it was; one that the model does not know may be left out.
    """

    key: str
    prompt: str
    subject: str
    answer: str
    foil: str | None = None
    pieces: tuple[str, ...]
    roles: tuple[Role, ...]
    read: Read
    predicted: str
    traced: bool


class FactMap(Record):
    """The states of one site, restored in one fact.

    Attributes:
        key: of the fact.
        traced: what was measured.
    """

    key: str
    traced: Traced


class Interval(Record):
    """A mean over facts.

    Attributes:
        mean: over facts; within a fact over its tokens of the role.
        low: lower bound of its interval; None for one fact.
        high: upper bound.
        n: how many facts.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    n: int


class Effect(Record):
    """The indirect effect of a site's states at one layer and role: restored minus corrupted.

    Attributes:
        metric: that it is of.
        role: of the tokens.
        layer: 0-based; of a window, the layer that it is around.
        value: over facts.
    """

    metric: TraceMetric
    role: Role
    layer: int
    value: Interval


class Band(Record):
    """The noise floor: where the mean over facts lies if each has a meaningless step for a restoration.

    Attributes:
        metric: that it is of.
        role: whose facts there are.
        low: lower bound.
        high: upper bound.
        n: how many facts.
    """

    metric: TraceMetric
    role: Role
    low: float
    high: float
    n: int


class Peak(Record):
    """The largest effect of a role, at layers that other facts have chosen.

    Attributes:
        metric: that it is of.
        role: of the tokens.
        layer: with the largest mean over all facts.
        value: each half of the facts at the layer that is best on the other half, over facts.
        floor: upper bound of the noise floor.
        stands_out: whether the whole interval lies above the floor.
    """

    metric: TraceMetric
    role: Role
    layer: int
    value: Interval
    floor: float
    stands_out: bool


class SiteTrace(Record):
    """What one site's states give back.

    Attributes:
        site: of the model.
        window: layers that are restored at once.
        maps: of each fact.
        effects: by metric, role and layer.
        floor: by metric and role.
        peaks: by metric and role.
    """

    site: TracedSiteName
    window: int
    maps: tuple[FactMap, ...]
    effects: tuple[Effect, ...]
    floor: tuple[Band, ...]
    peaks: tuple[Peak, ...]

    @property
    def name(self) -> str:
        """`mlp_output`, or with a window `mlp_output, 10 layers`."""
        return self.site if self.window == 1 else f"{self.site}, {self.window} layers"


class Trace(Record):
    """One entry of `evaluate:`.

    Attributes:
        name: its kind, and a number from the second of a kind on.
        corruption: `noise` or `swap`.
        metrics: that were asked for.
        facts: all, in the file's order.
        total: by metric, clean minus corrupted: the total effect.
        sites: in the file's order.
        note: why passes were not made in a way that costs less; None where they were.
    """

    name: str
    corruption: str
    metrics: tuple[TraceMetric, ...]
    facts: tuple[FactRecord, ...]
    total: dict[str, Interval]
    sites: tuple[SiteTrace, ...]
    note: str | None = None

    def fact(self, key: str) -> FactRecord:
        """The fact of a key."""
        return next(fact for fact in self.facts if fact.key == key)

    @property
    def left_out(self) -> tuple[FactRecord, ...]:
        """Facts that the model does not know."""
        return tuple(fact for fact in self.facts if not fact.traced)


class TracingSection(Record):
    """What a tracing run found.

    Attributes:
        traces: one an entry of `evaluate:`.
    """

    traces: tuple[Trace, ...] = ()


def tracing_of(results: Results) -> TracingSection:
    """The section of a tracing run's results; an empty one where there is none.

    Raises:
        ResultsError: it is not of that type.
    """
    return results.section(SECTION, TracingSection) or TracingSection()
