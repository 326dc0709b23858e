"""A `patching` entry: every fact patched site by site in both directions, and effects over facts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from subvene.runner.data.facts import FactTokens
from subvene.runner.experiments.results import Record
from subvene.runner.experiments.tracing.effects import interval, intervals
from subvene.runner.experiments.tracing.entry import Entry, key_of
from subvene.runner.experiments.tracing.section import (
    CellEffect,
    PatchedFact,
    PatchedMap,
    Patching,
    Ranking,
    SitePatching,
)
from subvene.runner.files.json_value import Json
from subvene.runner.files.statistics import correlation, mean_and_sd
from subvene.runner.measures.patching import FactPatcher, Grid, Patched, SampledCell, grid_of
from subvene.runner.measures.tracing import usable_way
from subvene.runner.passes.patches import PatchWay
from subvene.specs import Fact, PatchingSpec
from subvene.specs.evaluations.patching import Direction, PatchedSite


class _BothRuns(Record):
    clean: float
    other: float


class PatchingEntry(Entry):
    """One `patching` entry; see `Entry` for its arguments."""

    def __init__(self, name: str, declared: PatchingSpec, facts: Sequence[Fact], **shared: Any) -> None:
        super().__init__(name, declared, facts, **shared)
        self.declared = declared
        self.base = self.base | {"metric": declared.metric}

    def patching(self) -> Patching:
        """Every fact read and patched, and what that is over facts."""
        facts = tuple(self._fact(fact) for fact in self.facts)
        sites = tuple(
            self._site(site, direction, facts)
            for site, direction in itertools.product(self.declared.sites, self.declared.directions)
        )
        totals = np.array([fact.clean - fact.other for fact in facts])
        return Patching(
            name=self.name,
            metric=self.declared.metric,
            estimated=self.declared.attribution is not None,
            facts=facts,
            total=interval(totals, self.declared.resamples, self.seed),
            sites=sites,
            note=self.note,
        )

    def tried(self, fact: FactTokens) -> tuple[PatchWay, str | None]:
        """What `usable_way` says for one fact: the first and the last patch of every site."""
        patcher = self._patcher(fact, *self.declared.sites)
        grids = [self._grid(fact, site) for site in self.declared.sites]
        tried = [grid.patches[i] for grid in grids for i in (0, len(grid.patches) // 2, -1)]
        return usable_way(self.anatomy, patcher.other, patcher.clean, tried)

    def _fact(self, fact: FactTokens) -> PatchedFact:
        def work() -> _BothRuns:
            clean, other = self._patcher(fact).read()
            return _BothRuns(clean=clean, other=other)

        runs = self.unit(fact, "both runs", _BothRuns, {}, "", work)
        return PatchedFact(
            key=key_of(fact.fact),
            prompt=fact.fact.prompt,
            subject=fact.fact.subject,
            swap=fact.fact.swap or "",
            pieces=fact.pieces,
            roles=fact.roles,
            clean=runs.clean,
            other=runs.other,
        )

    def _site(self, site: PatchedSite, direction: Direction, facts: Sequence[PatchedFact]) -> SitePatching:
        maps = [self._map(fact, site, direction) for fact in self.facts]
        grid = self._grid(self.facts[0], site)
        return SitePatching(
            site=site.site,
            direction=direction,
            layers=self.layers,
            heads=None if site.heads is None else tuple(head for head in grid.heads if head is not None),
            positions=site.positions,
            maps=tuple(PatchedMap(key=f.key, patched=m) for f, m in zip(facts, maps, strict=True)),
            effects=tuple(self._effects(site, grid, facts, maps)),
            ranking=None if self.declared.attribution is None else ranking_of([m.sample for m in maps]),
        )

    def _map(self, fact: FactTokens, site: PatchedSite, direction: Direction) -> Patched:
        attribution = self.declared.attribution

        def work() -> Patched:
            way, patcher, grid = self.way(), self._patcher(fact, site), self._grid(fact, site)
            if attribution is None:
                return patcher.patched(grid, direction, way)
            return patcher.attributed(grid, direction, way, sample=attribution.sample, seed=self.seed)

        asked: dict[str, Json] = {
            "site": site.model_dump(mode="json"),
            "layers": self.layers,
            "direction": direction,
            "attribution": None if attribution is None else attribution.model_dump(mode="json"),
        }
        place = f" {direction} {site.site}"
        return self.unit(fact, "patch", Patched, asked, place, work)

    def _effects(
        self, site: PatchedSite, grid: Grid, facts: Sequence[PatchedFact], maps: Sequence[Patched]
    ) -> Iterator[CellEffect]:
        """Means over facts by layer, head and, where tokens are patched one by one, role."""
        roles = list(dict.fromkeys(role for fact in facts for role in fact.roles))
        for role in roles if site.positions == "each" else [None]:
            means = []
            for fact, found in zip(facts, maps, strict=True):
                tokens = [i for i, own in enumerate(fact.roles) if own == role] if role is not None else [0]
                if tokens:
                    means.append(np.array(found.effects)[:, :, tokens].mean(2))
            values = np.stack(means)
            flat = values.reshape(len(values), -1)
            over_facts = intervals(flat, self.declared.resamples, self.seed)
            places = itertools.product(grid.layers, grid.heads)
            for (layer, head), value in zip(places, over_facts, strict=True):
                yield CellEffect(layer=layer, head=head, role=role, value=value)

    def _grid(self, fact: FactTokens, site: PatchedSite) -> Grid:
        return grid_of(site, self.layers, self.anatomy.sizes.n_heads, len(fact.ids))

    def _patcher(self, fact: FactTokens, *sites: PatchedSite) -> FactPatcher:
        return FactPatcher(self.anatomy, fact, sites, self.declared.metric)


def ranking_of(samples: Sequence[Sequence[SampledCell]]) -> Ranking:
    """How well estimates rank the true effects of the sampled cells.

    The correlations are within each fact, and their mean over facts is taken: facts differ in size, and what
    is asked is which of a fact's cells matter.
    """
    pearson, spearman, overlap = [], [], []
    for cells in samples:
        found = correlation([cell.estimate for cell in cells], [cell.effect for cell in cells])
        if found["spearman"] is not None:
            pearson.append(found["pearson"])
            spearman.append(found["spearman"])
        top = max(1, len(cells) // 5)
        by_estimate = sorted(range(len(cells)), key=lambda i: -cells[i].estimate)[:top]
        by_effect = sorted(range(len(cells)), key=lambda i: -cells[i].effect)[:top]
        overlap.append(len(set(by_estimate) & set(by_effect)) / top)
    every = [cell for cells in samples for cell in cells]
    size = sum(abs(cell.effect) for cell in every)
    return Ranking(
        pearson=_mean(pearson),
        spearman=_mean(spearman),
        top=float(np.mean(overlap)),
        wrong_sign=sum(abs(c.effect) for c in every if c.effect * c.estimate < 0) / size if size else 0.0,
        cells=len(every),
        facts=len(samples),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Of the values that there are; None without any."""
    return mean_and_sd(values)[0]
