"""A `causal_tracing` entry: facts read, those that are known traced site by site, effects over facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from subvene.runner.data.facts import FactTokens
from subvene.runner.experiments.tracing.effects import band_of, effects_of, interval, peak_of, role_effects
from subvene.runner.experiments.tracing.entry import Entry, key_of
from subvene.runner.experiments.tracing.section import FactMap, FactRecord, Interval, SiteTrace, Trace
from subvene.runner.files.json_value import Json
from subvene.runner.measures.tracing import (
    FactTracer,
    Read,
    Traced,
    corrupted,
    embedding_deviation,
    trial_patches,
    usable_way,
)
from subvene.runner.passes.patches import PatchWay
from subvene.specs import CausalTracingSpec, Fact, SubveneError
from subvene.specs.evaluations.causal_tracing import TracedSite


class CausalEntry(Entry):
    """One `causal_tracing` entry; see `Entry` for its arguments."""

    def __init__(self, name: str, declared: CausalTracingSpec, facts: Sequence[Fact], **shared: Any) -> None:
        super().__init__(name, declared, facts, **shared)
        self.declared = declared
        self.deviation = embedding_deviation(self.anatomy.model, self.facts)
        self.base = self.base | {
            "corruption": declared.corruption.model_dump(mode="json"),
            "deviation": self.deviation if declared.corruption.kind == "noise" else None,
        }

    def trace(self) -> Trace:
        """Every fact read, those that are known traced, and what that is over facts."""
        records: list[FactRecord] = []
        maps: list[list[FactMap]] = [[] for _ in self.declared.sites]
        for fact in self.facts:
            record = self._record(fact)
            records.append(record)
            for site, own in zip(self.declared.sites, maps, strict=True):
                if record.traced:
                    own.append(FactMap(key=record.key, traced=self._traced(fact, site)))
                else:
                    self.told(f"not known, left out: {fact.fact.subject}", was_done=True)
        traced = [record for record in records if record.traced]
        if not traced:
            raise SubveneError(
                f"{self.name}: of {len(records)} facts the model knows none (the answer is never its "
                "likeliest next token); give others, or set `known: false`"
            )
        return Trace(
            name=self.name,
            corruption=self.declared.corruption.kind,
            metrics=self.declared.metrics,
            facts=tuple(records),
            total={metric: self._total(traced, metric) for metric in self.declared.metrics},
            sites=tuple(
                self._site(site, traced, own) for site, own in zip(self.declared.sites, maps, strict=True)
            ),
            note=self.note,
        )

    def tried(self, fact: FactTokens) -> tuple[PatchWay, str | None]:
        """What `usable_way` says for one fact."""
        tracer = self._tracer(fact, *self.declared.sites)
        patches = trial_patches(fact, self.declared.sites, self.anatomy.sizes.n_layers)
        return usable_way(self.anatomy, tracer.base, tracer.clean, patches)

    def _record(self, fact: FactTokens) -> FactRecord:
        read = self.unit(fact, "fact", Read, {}, "", lambda: self._tracer(fact).read())
        return FactRecord(
            key=key_of(fact.fact),
            prompt=fact.fact.prompt,
            subject=fact.fact.subject,
            answer=self.tokenizer.decode([fact.answer]),
            foil=None if fact.foil is None else self.tokenizer.decode([fact.foil]),
            pieces=fact.pieces,
            roles=fact.roles,
            read=read,
            predicted=self.tokenizer.decode([read.predicted]),
            traced=read.rank == 0 or not self.declared.known,
        )

    def _traced(self, fact: FactTokens, site: TracedSite) -> Traced:
        def work() -> Traced:
            way, tracer = self.way(), self._tracer(fact, site)
            return tracer.traced(site, self.layers, way, floor=self.declared.floor, seed=self.seed)

        asked: dict[str, Json] = {
            "site": site.model_dump(mode="json"),
            "layers": self.layers,
            "floor": self.declared.floor,
        }
        return self.unit(fact, "trace", Traced, asked, f" {site.site}", work)

    def _tracer(self, fact: FactTokens, *sites: TracedSite) -> FactTracer:
        corruption = corrupted(self.anatomy.model, fact, self.declared, self.deviation, self.seed)
        return FactTracer(self.anatomy, fact, corruption, sites)

    def _total(self, traced: Sequence[FactRecord], metric: str) -> Interval:
        values = [fact.read.clean[metric] - fact.read.corrupted[metric] for fact in traced]
        return interval(np.array(values), self.declared.resamples, self.seed)

    def _site(self, site: TracedSite, traced: Sequence[FactRecord], maps: Sequence[FactMap]) -> SiteTrace:
        by_role = [one for metric in self.declared.metrics for one in role_effects(metric, traced, maps)]
        resamples, seed = self.declared.resamples, self.seed
        bands = [band_of(one, resamples, seed) for one in by_role]
        return SiteTrace(
            site=site.site,
            window=site.window,
            maps=tuple(maps),
            effects=tuple(e for one in by_role for e in effects_of(one, self.layers, resamples, seed)),
            floor=tuple(bands),
            peaks=tuple(
                peak_of(one, self.layers, band, resamples, seed)
                for one, band in zip(by_role, bands, strict=True)
            ),
        )
