"""Causal tracing of one fact: a clean run, a corrupted one, and what each restored state gives back.

Meng et al., 2022, "Locating and Editing Factual Associations in GPT", section 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict

from subvene.runner.data.facts import FactTokens
from subvene.runner.edits.not_finite import check_finite
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.devices import input_device
from subvene.runner.passes.kept import KeptRun, Place, keep
from subvene.runner.passes.patches import WAYS, Patch, Patcher, PatchWay, why_not_packed
from subvene.specs import CausalTracingSpec
from subvene.specs.evaluations.causal_tracing import NoiseCorruption, TracedSite, TraceMetric

# How far two computations of one log-probability may be apart, in nats. A way to compute that is not this
# model's is off by much more.
_SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
_SAME_IN_LOW_PRECISION = 0.2


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Read(_Record):
    """What the model says of a fact, clean and corrupted.

    Attributes:
        clean: by metric.
        corrupted: by metric, mean over the draws.
        draws: by metric, of each draw.
        rank: how many tokens are likelier than the answer in the clean run; 0 if none is.
        predicted: the token that is the likeliest.
        deviation: standard deviation of the noise; None without noise.
    """

    clean: dict[str, float]
    corrupted: dict[str, float]
    draws: dict[str, tuple[float, ...]]
    rank: int
    predicted: int
    deviation: float | None = None


class FloorCell(_Record):
    """A cell at which a step in a random direction took the restoration's place.

    Attributes:
        layer: of the cell.
        token: of the cell.
        values: by metric.
    """

    layer: int
    token: int
    values: dict[str, float]


class Traced(_Record):
    """What one site's states give back of a fact.

    Attributes:
        layers: that were restored, one after the other.
        values: by metric, [layers][tokens], mean over the draws.
        floor: cells of the noise floor.
        way: how it was computed.
        computed: tokens × blocks that were passed.
    """

    layers: tuple[int, ...]
    values: dict[str, tuple[tuple[float, ...], ...]]
    floor: tuple[FloorCell, ...]
    way: PatchWay
    computed: int


@dataclass(frozen=True)
class Corrupted:
    """How a fact's run is corrupted.

    Attributes:
        ids: Long[rows, tokens]: what the corrupted runs read.
        noise: that is added to its embeddings, [rows, tokens, width]; None for none.
        deviation: of the noise; None for none.
    """

    ids: torch.Tensor
    noise: torch.Tensor | None = None
    deviation: float | None = None


class FactScore:
    """Measures the answer's first token: probability, its logarithm, logit minus the foil's.

    Args:
        fact: whose answer it is.

    Attributes:
        metrics: in the order of the columns.
    """

    def __init__(self, fact: FactTokens) -> None:
        self._answer, self._foil = fact.answer, fact.foil
        self.metrics: tuple[TraceMetric, ...] = ("probability", "log_probability")
        if fact.foil is not None:
            self.metrics += ("logit_difference",)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """From logits [n, vocabulary] to [n, metrics]."""
        logits = logits.float()
        log_p = logits[:, self._answer] - logits.logsumexp(-1)
        columns = [log_p.exp(), log_p]
        if self._foil is not None:
            columns.append(logits[:, self._answer] - logits[:, self._foil])
        return torch.stack(columns, dim=-1)


@torch.no_grad()
def embedding_deviation(model: Any, facts: Sequence[FactTokens]) -> float:
    """Standard deviation of all values of the embeddings of all subjects' tokens (n below the root)."""
    ids = [token for fact in facts for token in fact.ids[fact.start : fact.end]]
    embeddings = model.get_input_embeddings()(torch.tensor(ids, device=input_device(model)))
    return float(embeddings.float().std(correction=0))


def corrupted(
    model: Any, fact: FactTokens, spec: CausalTracingSpec, deviation: float, seed: int
) -> Corrupted:
    """The corrupted run of a fact.

    Args:
        model: that is traced.
        fact: of which.
        spec: what is declared.
        deviation: of the embeddings, as `embedding_deviation` has it; unused where there is no noise.
        seed: of the draws, which depend on it and the fact's tokens alone.
    """
    if not isinstance(spec.corruption, NoiseCorruption):
        return Corrupted(torch.tensor([fact.swapped]))
    draws, scale = spec.corruption.draws, spec.corruption.sigma * deviation
    width = model.get_input_embeddings().weight.shape[1]
    noise = torch.zeros(draws, len(fact.ids), width)
    random = generator(seed, fact, "noise")
    noise[:, fact.start : fact.end] = scale * torch.randn(
        draws, fact.end - fact.start, width, generator=random
    )
    return Corrupted(torch.tensor([fact.ids] * draws), noise.to(input_device(model)), scale)


def generator(seed: int, fact: FactTokens, what: str) -> torch.Generator:
    """Random numbers of one fact, whichever facts there are beside it."""
    text = f"{seed} {what} {fact.ids} {fact.start} {fact.end}"
    state = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(state)


class FactTracer:
    """The runs of one fact.

    Args:
        anatomy: of the model, which is in evaluation mode.
        fact: that is traced.
        corruption: its corrupted run.
        sites: whose states are to be restored.
    """

    def __init__(
        self, anatomy: Anatomy, fact: FactTokens, corruption: Corrupted, sites: Sequence[TracedSite]
    ) -> None:
        self.anatomy, self.fact, self.corruption = anatomy, fact, corruption
        self.score = FactScore(fact)
        names = tuple(dict.fromkeys(site.site for site in sites))
        self.clean = keep(anatomy, torch.tensor([fact.ids]), names)
        self.base = keep(anatomy, corruption.ids, names, corruption.noise)

    def read(self) -> Read:
        """What the two runs say of the answer."""
        logits = self.clean.logits[0].float()
        clean, draws = self.score(self.clean.logits), self.score(self.base.logits)
        check_finite(torch.cat([clean, draws]), "the answer's logits")
        return Read(
            clean=self._by_metric(clean[0]),
            corrupted=self._by_metric(draws.mean(0)),
            draws=dict(zip(self.score.metrics, (tuple(c.tolist()) for c in draws.unbind(1)), strict=True)),
            rank=int((logits > logits[self.fact.answer]).sum()),
            predicted=int(logits.argmax()),
            deviation=self.corruption.deviation,
        )

    def traced(
        self, site: TracedSite, layers: Sequence[int], way: PatchWay, *, floor: int, seed: int
    ) -> Traced:
        """One site's states restored, layer by layer and token by token.

        Args:
            site: and how many layers at once.
            layers: around which.
            way: how passes are made.
            floor: cells of the noise floor.
            seed: of those cells and their directions.
        """
        tokens = range(len(self.fact.ids))
        patches = [self._patch(site, layer, token) for layer in layers for token in tokens]
        patcher = Patcher(self.anatomy, self.base, self.clean.states, self.score, way)
        values = patcher.values(patches).mean(1)
        check_finite(values, f"what {site.site} gives back")
        values = values.unflatten(0, (len(layers), len(tokens)))
        return Traced(
            layers=tuple(layers),
            values={
                metric: tuple(map(tuple, values[..., m].tolist()))
                for m, metric in enumerate(self.score.metrics)
            },
            floor=self._floor(site, layers, way, floor, seed),
            way=way,
            computed=patcher.computed,
        )

    def _floor(
        self, site: TracedSite, layers: Sequence[int], way: PatchWay, count: int, seed: int
    ) -> tuple[FloorCell, ...]:
        """Cells from the subject on, without replacement, each with a random step of the same length."""
        if not count:
            return ()
        random = generator(seed, self.fact, f"floor {site.site} {site.window} {list(layers)}")
        cells = [(layer, token) for layer in layers for token in range(self.fact.start, len(self.fact.ids))]
        chosen = [cells[i] for i in torch.randperm(len(cells), generator=random)[:count].tolist()]
        patches = [self._patch(site, layer, token) for layer, token in chosen]
        places: list[Place] = sorted({(site.site, layer) for patch in patches for layer in patch.layers})
        source = {place: self._elsewhere(place, random) for place in places}
        patcher = Patcher(self.anatomy, self.base, source, self.score, way)
        values = patcher.values(patches).mean(1)
        check_finite(values, f"the noise floor of {site.site}")
        return tuple(
            FloorCell(layer=layer, token=token, values=self._by_metric(row))
            for (layer, token), row in zip(chosen, values, strict=True)
        )

    def _elsewhere(self, place: Place, random: torch.Generator) -> torch.Tensor:
        """Corrupted states, each moved as far as its restoration would, in a direction drawn at random."""
        own = self.base.states[place]
        step = (self.clean.states[place] - own).float().norm(dim=-1, keepdim=True)
        direction = torch.randn(own.shape, generator=random).to(own.device)
        return own + (step * direction / direction.norm(dim=-1, keepdim=True)).to(own.dtype)

    def _patch(self, site: TracedSite, layer: int, token: int) -> Patch:
        return Patch(site.site, window(layer, site.window, self.anatomy.sizes.n_layers), (token,))

    def _by_metric(self, row: torch.Tensor) -> dict[str, float]:
        return dict(zip(self.score.metrics, row.tolist(), strict=True))


def window(layer: int, width: int, n_layers: int) -> tuple[int, ...]:
    """The layers of a window around one, as far as the model has them (Meng et al.'s code has the same)."""
    low, high = layer - width // 2, layer + -(-width // 2)
    return tuple(range(max(0, low), min(n_layers, high)))


def usable_way(
    anatomy: Anatomy, base: KeptRun, source: KeptRun, patches: Sequence[Patch]
) -> tuple[PatchWay, str | None]:
    """The cheapest way that gives what whole passes give, and why it is none that costs less.

    Tried rather than looked up, since masks, positions and caches are every architecture's own affair.

    Args:
        anatomy: of the model.
        base: the longest text that will be patched.
        source: what is put into it.
        patches: to try.
    """

    def log_p(way: PatchWay) -> torch.Tensor:
        patcher = Patcher(anatomy, base, source.states, lambda x: x.float().log_softmax(-1), way)
        return patcher.values(patches)

    known = log_p("whole")
    notes: list[str] = []
    likely = known > known.amax(-1, keepdim=True) - 12  # the tail says nothing of a probability
    limit = _SAME.get(cast(Any, anatomy.model).dtype, _SAME_IN_LOW_PRECISION)
    for way in WAYS[:-1]:
        reason = why_not_packed(anatomy.model, base) if way == "packed" else None
        if reason is None:
            try:
                off = float(((log_p(way) - known).abs() * likely).max())
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
                reason = f"{type(error).__name__}: {str(error)[:200]}"
            else:
                reason = None if off <= limit else f"log-probabilities are off by {off:.2g} nats"
        if reason is None:
            return way, "; ".join(notes) or None
        notes.append(f"not {way}: {reason}")
    return "whole", "; ".join(notes)


def trial_patches(fact: FactTokens, sites: Sequence[TracedSite], n_layers: int) -> list[Patch]:
    """A few patches of each site, at the ends and in the middle, for `usable_way`."""
    tokens = sorted({fact.start, fact.end - 1, len(fact.ids) - 1})
    layers = sorted({0, n_layers // 2, n_layers - 1})
    return [
        Patch(site.site, window(layer, site.window, n_layers), (token,))
        for site in sites
        for layer in layers
        for token in tokens
    ]
