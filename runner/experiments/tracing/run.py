"""Running a tracing: the plan, the entries one after the other, and the results of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import transformers

from subvene.interventions import Sizes
from subvene.runner.experiments.results import Condition, Item, Metric, QuestionText, Results
from subvene.runner.experiments.study import Step
from subvene.runner.experiments.tracing.causal import CausalEntry
from subvene.runner.experiments.tracing.entry import key_of, named, needs_foil, needs_swap
from subvene.runner.experiments.tracing.patching import PatchingEntry
from subvene.runner.experiments.tracing.section import SECTION, Patching, Trace, TracingSection
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.identity import Manifest, model_sha256, reading_sha256, run_manifest, versions
from subvene.runner.training.passes import frozen
from subvene.specs import (
    CausalTracingSpec,
    ExperimentSpec,
    Fact,
    PatchingSpec,
    SubveneError,
    dump_spec,
    resolve_facts,
)

# How a result is computed; whoever changes that changes this number, and old units are done again.
UNITS = 1


class Tracing:
    """The plan: which facts, which runs of them, and which states of one are put into the other."""

    what: ClassVar[str] = "a tracing"
    here: ClassVar[str | None] = "how passes are made is tried once, and told with all facts"

    def __init__(self, spec: ExperimentSpec, folder: Path, sizes: Sizes, step: Step) -> None:
        self.spec, self.folder, self.sizes, self.step = spec, folder, sizes, step
        self.declared = [one for one in spec.evaluate if isinstance(one, CausalTracingSpec | PatchingSpec)]
        kinds = [one.kind for one in self.declared]
        counts = [kinds[: i + 1].count(kind) for i, kind in enumerate(kinds)]
        self.names = [f"{kind}_{n}" if n > 1 else kind for kind, n in zip(kinds, counts, strict=True)]
        self.facts = [resolve_facts(declared.facts, folder).facts for declared in self.declared]

    def manifest(self) -> Manifest:
        """What there is to know about where the numbers come from."""
        data: dict[str, Json] = {
            name: {"facts": len(facts), "sha256": digest([fact.model_dump(mode="json") for fact in facts])}
            for name, facts in zip(self.names, self.facts, strict=True)
        }
        return run_manifest(dump_spec(self.spec), self.folder, data=data, judges=[])

    def check(self) -> None:
        """Check layers and heads against the model's, and that every fact has what its entry needs.

        Raises:
            SubveneError: naming the entry, and the fact, the layer or the head.
        """
        for name, declared, facts in zip(self.names, self.declared, self.facts, strict=True):
            self._check_reach(name, declared)
            needed = [("swap", needs_swap(declared), f"{_where_swapped(declared)}")]
            needed.append(("foil", needs_foil(declared), "the metric is logit_difference"))
            for i, fact in enumerate(facts):
                if fact in facts[:i]:
                    raise SubveneError(f"{name}: {named(i, fact)}: the same as fact {facts.index(fact)}")
                for field, wanted, why in needed:
                    if wanted and getattr(fact, field) is None:
                        raise SubveneError(f"{name}: {named(i, fact)}: expected a `{field}`, since {why}")

    def _check_reach(self, name: str, declared: CausalTracingSpec | PatchingSpec) -> None:
        reach = [("layers", declared.layers, self.sizes.n_layers)]
        if isinstance(declared, PatchingSpec):
            reach += [("heads", site.heads or "all", self.sizes.n_heads) for site in declared.sites]
        for what, chosen, count in reach:
            if chosen != "all" and max(chosen) >= count:
                raise SubveneError(
                    f"{name}: {what}: {max(chosen)} is out of range: this model has {what} 0 to {count - 1}"
                )

    def units(self) -> int:
        """Facts that are read, and sites of facts that are traced or patched."""
        return sum(
            len(facts) * (1 + _parts(declared))
            for declared, facts in zip(self.declared, self.facts, strict=True)
        )

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
        shared = {"anatomy": Anatomy.of(model), "tokenizer": tokenizer, "ledger": ledger}
        shared |= {"base": base, "seed": self.spec.seed, "step": self.step}
        traces, patchings = [], []
        with frozen(model):
            for name, declared, facts in zip(self.names, self.declared, self.facts, strict=True):
                if isinstance(declared, CausalTracingSpec):
                    traces.append(CausalEntry(name, declared, facts, **shared).trace())
                else:
                    patchings.append(PatchingEntry(name, declared, facts, **shared).patching())
        return _results(traces, patchings, self.facts)


def _parts(declared: CausalTracingSpec | PatchingSpec) -> int:
    """Units of a fact, beside its reading."""
    directions = len(declared.directions) if isinstance(declared, PatchingSpec) else 1
    return len(declared.sites) * directions


def _where_swapped(declared: CausalTracingSpec | PatchingSpec) -> str:
    if isinstance(declared, PatchingSpec):
        return "patching is between two subjects"
    return "the corruption is `swap`"


def _results(
    traces: Sequence[Trace], patchings: Sequence[Patching], facts: Sequence[Sequence[Fact]]
) -> Results:
    """The two runs of every entry as conditions, and the section."""
    conditions = [_condition(trace, side) for trace in traces for side in ("clean", "corrupted")]
    conditions += [condition for patching in patchings for condition in _patched(patching)]
    notes = []
    for trace in traces:
        if trace.left_out:
            names = ", ".join(fact.subject for fact in trace.left_out)
            notes.append(f"{trace.name}: {len(trace.left_out)} facts that the model does not know: {names}")
    section = TracingSection(traces=tuple(traces), patchings=tuple(patchings))
    return Results(
        kind="tracing",
        conditions=tuple(conditions),
        questions={
            key_of(fact): QuestionText(question=fact.prompt, best=fact.answer)
            for some in facts
            for fact in some
        },
        notes=tuple(notes),
        sections={SECTION: section.model_dump(mode="json")},
    )


def _condition(trace: Trace, side: str) -> Condition:
    traced = [fact for fact in trace.facts if fact.traced]
    values = {key: [getattr(fact.read, side)[key] for fact in traced] for key in trace.metrics}
    return Condition(
        name=side,
        label=f"{trace.name}: {side}",
        group=trace.name,
        metrics={key: _metric(some) for key, some in values.items()},
        counts={"not_known": len(trace.left_out)},
        items=tuple(
            Item(key=fact.key, scores={key: getattr(fact.read, side)[key] for key in trace.metrics})
            for fact in traced
        ),
    )


def _patched(patching: Patching) -> Iterator[Condition]:
    """The run of the facts, and that about the other subjects."""
    for side in ("clean", "other"):
        values = [float(getattr(fact, side)) for fact in patching.facts]
        yield Condition(
            name=side,
            label=f"{patching.name}: {side}",
            group=patching.name,
            metrics={patching.metric: _metric(values)},
            items=tuple(
                Item(key=fact.key, scores={patching.metric: value})
                for fact, value in zip(patching.facts, values, strict=True)
            ),
        )


def _metric(values: Sequence[float]) -> Metric:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Metric(mean=float(np.mean(values)), sd=spread, n=len(values))
