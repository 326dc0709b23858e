"""What a tracing run knows beyond its conditions: facts by token, maps of every fact, effects over facts."""

from __future__ import annotations

from typing import Literal

from subvene.runner.data.facts import Role
from subvene.runner.experiments.results import Record, Results
from subvene.runner.measures.patching import Patched
from subvene.runner.measures.tracing import Read, Traced
from subvene.specs import Site
from subvene.specs.evaluations.causal_tracing import TracedSiteName, TraceMetric
from subvene.specs.evaluations.patching import Direction

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


class PatchedFact(Record):
    """A fact that was patched.

    Attributes:
        key: of the fact in `Results.questions`.
        prompt: its text, without the answer.
        subject: what it is about.
        swap: what the other run is about.
        pieces: what each token stands for.
        roles: what each token is to the fact.
        clean: the metric of its own run.
        other: the metric of the other run.
    """

    key: str
    prompt: str
    subject: str
    swap: str
    pieces: tuple[str, ...]
    roles: tuple[Role, ...]
    clean: float
    other: float


class PatchedMap(Record):
    """The cells of one fact.

    Attributes:
        key: of the fact.
        patched: what was measured or estimated.
    """

    key: str
    patched: Patched


class CellEffect(Record):
    """An effect over facts.

    Attributes:
        layer: 0-based.
        head: 0-based; None where all are patched at once.
        role: of the tokens; None where all are patched at once.
        value: over facts.
    """

    layer: int
    head: int | None = None
    role: Role | None = None
    value: Interval


class Ranking(Record):
    """How well first-order estimates rank true effects, on sampled cells.

    Attributes:
        pearson: mean over facts of the correlation within a fact; None where there is none.
        spearman: that of ranks.
        top: of a fact's fifth of cells with the largest true effects, the share that is in the fifth with the
            largest estimates, mean over facts.
        wrong_sign: the share of all true effect, in size, whose estimate has the other sign.
        cells: how many were truly patched.
        facts: of how many facts.
    """

    pearson: float | None
    spearman: float | None
    top: float
    wrong_sign: float
    cells: int
    facts: int


class SitePatching(Record):
    """One site, patched in one direction.

    Attributes:
        site: of the model.
        direction: `denoising` or `noising`.
        layers: that were patched.
        heads: that were patched one by one; None where all were at once.
        positions: `each` or `all`.
        maps: of each fact.
        effects: by layer, head and role.
        ranking: of estimates; None where every effect is true.
    """

    site: Site
    direction: Direction
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    positions: Literal["each", "all"]
    maps: tuple[PatchedMap, ...]
    effects: tuple[CellEffect, ...]
    ranking: Ranking | None = None

    @property
    def name(self) -> str:
        """`attention_heads, denoising, head by head, all tokens at once`."""
        heads = "" if self.heads is None else ", head by head"
        tokens = "token by token" if self.positions == "each" else "all tokens at once"
        return f"{self.site}, {self.direction}{heads}, {tokens}"


class Patching(Record):
    """One `patching` entry of `evaluate:`.

    Attributes:
        name: its kind, and a number from the second of a kind on.
        metric: that effects are on.
        estimated: whether effects are first-order estimates.
        facts: in the file's order.
        total: the metric of the fact's run minus that of the other.
        sites: by site and direction.
        note: why passes were not made in a way that costs less; None where they were.
    """

    name: str
    metric: TraceMetric
    estimated: bool
    facts: tuple[PatchedFact, ...]
    total: Interval
    sites: tuple[SitePatching, ...]
    note: str | None = None


class TracingSection(Record):
    """What a tracing run found.

    Attributes:
        traces: one a `causal_tracing` entry of `evaluate:`.
        patchings: one a `patching` entry.
    """

    traces: tuple[Trace, ...] = ()
    patchings: tuple[Patching, ...] = ()


def tracing_of(results: Results) -> TracingSection:
    """The section of a tracing run's results; an empty one where there is none.

    Raises:
        ResultsError: it is not of that type.
    """
    return results.section(SECTION, TracingSection) or TracingSection()
