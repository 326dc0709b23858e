"""Running a tracing: facts read and, one by one, their states restored; effects over facts at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import transformers

from subvene.interventions import Sizes
from subvene.runner.data.facts import FactTokens, fact_tokens
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.experiments.results import Condition, Item, Metric, QuestionText, Results
from subvene.runner.experiments.study import Step
from subvene.runner.experiments.tracing.effects import band_of, effects_of, interval, peak_of, role_effects
from subvene.runner.experiments.tracing.section import (
    SECTION,
    FactMap,
    FactRecord,
    Interval,
    SiteTrace,
    Trace,
    TracingSection,
)
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.measures.tracing import (
    Corrupted,
    FactTracer,
    Read,
    Traced,
    corrupted,
    embedding_deviation,
    trial_patches,
    usable_way,
)
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.identity import model_sha256, reading_sha256, run_manifest, versions
from subvene.runner.passes.patches import PatchWay
from subvene.runner.training.passes import frozen
from subvene.specs import CausalTracingSpec, ExperimentSpec, Fact, SubveneError, dump_spec, resolve_facts
from subvene.specs.evaluations.causal_tracing import TracedSite

# How a result is computed; whoever changes that changes this number, and old units are done again.
UNITS = 1


class Tracing:
    """The plan: which facts, corrupted how, and which states are restored."""

    what: ClassVar[str] = "a causal tracing"

    def __init__(self, spec: ExperimentSpec, folder: Path, sizes: Sizes, step: Step) -> None:
        self.spec, self.folder, self.sizes, self.step = spec, folder, sizes, step
        self.declared = [one for one in spec.evaluate if isinstance(one, CausalTracingSpec)]
        self.names = [f"causal_tracing_{i + 1}" if i else "causal_tracing" for i in range(len(self.declared))]
        self.facts: list[tuple[Fact, ...]] = [
            resolve_facts(declared.facts, folder).facts for declared in self.declared
        ]

    def manifest(self) -> dict[str, Any]:
        """What there is to know about where the numbers come from."""
        data = {
            name: {"facts": len(facts), "sha256": digest([fact.model_dump(mode="json") for fact in facts])}
            for name, facts in zip(self.names, self.facts, strict=True)
        }
        return run_manifest(dump_spec(self.spec), self.folder, data=data, judges=[])

    def check(self) -> None:
        """Check layers against the model's, and that every fact has what its entry needs.

        Raises:
            SubveneError: naming the entry, and the fact or the layer.
        """
        for name, declared, facts in zip(self.names, self.declared, self.facts, strict=True):
            if declared.layers != "all" and max(declared.layers) >= self.sizes.n_layers:
                raise SubveneError(
                    f"{name}: layers: {max(declared.layers)} is out of range: this model has layers 0 to "
                    f"{self.sizes.n_layers - 1}"
                )
            for i, fact in enumerate(facts):
                if fact in facts[:i]:
                    raise SubveneError(f"{name}: {_named(i, fact)}: the same as fact {facts.index(fact)}")
            needed = [("swap", declared.corruption.kind == "swap", "the corruption is `swap`")]
            needed.append(("foil", "logit_difference" in declared.metrics, "`metrics` has logit_difference"))
            for i, fact in enumerate(facts):
                for field, wanted, why in needed:
                    if wanted and getattr(fact, field) is None:
                        raise SubveneError(f"{name}: {_named(i, fact)}: expected a `{field}`, since {why}")

    def units(self) -> int:
        """Facts that are read, and sites of facts that are traced; those of earlier runs among them."""
        pairs = zip(self.declared, self.facts, strict=True)
        return sum(len(facts) * (1 + len(declared.sites)) for declared, facts in pairs)

    def run(
        self, model: transformers.PreTrainedModel, tokenizer: Any, ledger: Ledger, output: Path
    ) -> Results:
        """Do every unit that is not done, and put the results together."""
        base = {
            "model": model_sha256(model),
            "text": reading_sha256(model, tokenizer),
            "versions": versions(),
            "units": UNITS,
            "seed": self.spec.seed,
        }
        with frozen(model):
            traces = [
                _Entry(self, i, Anatomy.of(model), tokenizer, ledger, base).trace()
                for i in range(len(self.declared))
            ]
        return _results(traces, self.facts)


class _Entry:
    """One entry of `evaluate:`, on a loaded model."""

    def __init__(
        self,
        plan: Tracing,
        i: int,
        anatomy: Anatomy,
        tokenizer: Any,
        ledger: Ledger,
        base: dict[str, Any],
    ) -> None:
        self.name, self.declared, self.step, self.seed = (
            plan.names[i],
            plan.declared[i],
            plan.step,
            plan.spec.seed,
        )
        self.anatomy, self.tokenizer, self.ledger = anatomy, tokenizer, ledger
        n_layers = anatomy.sizes.n_layers
        self.layers = tuple(range(n_layers)) if self.declared.layers == "all" else self.declared.layers
        needs = {
            "swap": self.declared.corruption.kind == "swap",
            "foil": "logit_difference" in self.declared.metrics,
        }
        self.facts = [
            fact_tokens(tokenizer, fact, f"{self.name}: {_named(j, fact)}", **needs)
            for j, fact in enumerate(plan.facts[i])
        ]
        lengths = [len(fact.ids) for fact in self.facts]
        refuse_beyond_context(anatomy.model, lengths, lambda j: _named(j, self.facts[j].fact))
        self.deviation = embedding_deviation(anatomy.model, self.facts)
        self.base = base | {
            "corruption": self.declared.corruption.model_dump(mode="json"),
            "deviation": self.deviation if self.declared.corruption.kind == "noise" else None,
        }
        self._way: tuple[PatchWay, str | None] | None = None

    def trace(self) -> Trace:
        """Every fact read, those that are known traced, and what that is over facts."""
        records, maps = [], [[] for _ in self.declared.sites]  # type: list[FactRecord], list[list[FactMap]]
        for fact in self.facts:
            record = self._record(fact)
            records.append(record)
            for site, own in zip(self.declared.sites, maps, strict=True):
                if record.traced:
                    own.append(FactMap(key=record.key, traced=self._traced(fact, site)))
                else:
                    said = f"{self.name}: not known, left out: {fact.fact.subject}"
                    self.step("unit", {"what": said, "was_done": True})
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
            note=None if self._way is None else self._way[1],
        )

    def _record(self, fact: FactTokens) -> FactRecord:
        found = self._unit(fact, "fact", {}, lambda: self._tracer(fact).read().model_dump(mode="json"))
        read = Read.model_validate(found)
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
        def work() -> dict[str, Any]:
            way = self.way()[0]
            tracer = self._tracer(fact, site)
            traced = tracer.traced(site, self.layers, way, floor=self.declared.floor, seed=self.seed)
            return traced.model_dump(mode="json")

        asked = {"site": site.model_dump(mode="json"), "layers": self.layers, "floor": self.declared.floor}
        return Traced.model_validate(self._unit(fact, "trace", asked, work))

    def _unit(self, fact: FactTokens, what: str, asked: dict[str, Any], work: Any) -> dict[str, Any]:
        tokens = [fact.ids, fact.start, fact.end, fact.answer, fact.foil, fact.swapped]
        identity = self.base | asked | {"unit": what, "tokens": tokens}
        was_done = self.ledger.has(identity)
        found = self.ledger.do(identity, work)
        place = f" {asked['site']['site']}" if "site" in asked else ""
        said = f"{self.name}: {fact.fact.subject}{place}"
        self.step("unit", {"what": said, "was_done": was_done})
        return found

    def _tracer(self, fact: FactTokens, *sites: TracedSite) -> FactTracer:
        return FactTracer(self.anatomy, fact, self._corrupted(fact), sites)

    def _corrupted(self, fact: FactTokens) -> Corrupted:
        return corrupted(self.anatomy.model, fact, self.declared, self.deviation, self.seed)

    def way(self) -> tuple[PatchWay, str | None]:
        """How passes are made, tried once on the longest fact."""
        if self._way is None:
            fact = max(self.facts, key=lambda fact: len(fact.ids))
            tracer = self._tracer(fact, *self.declared.sites)
            patches = trial_patches(fact, self.declared.sites, self.anatomy.sizes.n_layers)
            self._way = usable_way(self.anatomy, tracer.base, tracer.clean, patches)
        return self._way

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


def key_of(fact: Fact) -> str:
    """What items call a fact."""
    return digest(fact.model_dump(mode="json"))[:16]


def _named(i: int, fact: Fact) -> str:
    return f"fact {i} ({fact.subject})"


def _results(traces: Sequence[Trace], facts: Sequence[Sequence[Fact]]) -> Results:
    """The clean and the corrupted run of every entry as conditions, and the section."""
    conditions = [_condition(trace, side) for trace in traces for side in ("clean", "corrupted")]
    notes = []
    for trace in traces:
        if trace.left_out:
            names = ", ".join(fact.subject for fact in trace.left_out)
            notes.append(f"{trace.name}: {len(trace.left_out)} facts that the model does not know: {names}")
    return Results(
        kind="tracing",
        conditions=tuple(conditions),
        questions={
            key_of(fact): QuestionText(question=fact.prompt, best=fact.answer)
            for some in facts
            for fact in some
        },
        notes=tuple(notes),
        sections={SECTION: TracingSection(traces=tuple(traces)).model_dump(mode="json")},
    )


def _condition(trace: Trace, side: str) -> Condition:
    traced = [fact for fact in trace.facts if fact.traced]
    values = {key: [getattr(fact.read, side)[key] for fact in traced] for key in trace.metrics}
    return Condition(
        name=side,
        label=f"{trace.name}: {side}",
        group=trace.name,
        metrics={
            key: Metric(mean=float(np.mean(v)), sd=float(np.std(v, ddof=1)) if len(v) > 1 else None, n=len(v))
            for key, v in values.items()
        },
        counts={"not_known": len(trace.left_out)},
        items=tuple(
            Item(key=fact.key, scores={key: getattr(fact.read, side)[key] for key in trace.metrics})
            for fact in traced
        ),
    )
