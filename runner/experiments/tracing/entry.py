"""One entry of `evaluate:` on a loaded model: its facts as tokens, its units, how passes are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

from subvene.runner.data.facts import FactTokens, fact_tokens
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.experiments.study import Step
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.patches import PatchWay
from subvene.specs import CausalTracingSpec, Fact, PatchingSpec

Of = TypeVar("Of", bound=BaseModel)


class Entry:
    """What the kinds of entries have in common.

    Args:
        name: of the entry.
        declared: in the file.
        facts: that it is about.
        anatomy: of the model, which is in evaluation mode, its weights frozen.
        tokenizer: its tokenizer.
        ledger: where units are recorded.
        base: what every unit depends on.
        seed: of all that is drawn.
        step: see `study.Step`.

    Attributes:
        layers: that are restored or patched.
        facts: as tokens.
    """

    def __init__(
        self,
        name: str,
        declared: CausalTracingSpec | PatchingSpec,
        facts: Sequence[Fact],
        *,
        anatomy: Anatomy,
        tokenizer: Any,
        ledger: Ledger,
        base: dict[str, Json],
        seed: int,
        step: Step,
    ) -> None:
        self.name, self.anatomy, self.tokenizer = name, anatomy, tokenizer
        self.seed, self.base = seed, base
        self._ledger, self._step = ledger, step
        layers = declared.layers
        self.layers = tuple(range(anatomy.sizes.n_layers)) if layers == "all" else layers
        needs = {"swap": needs_swap(declared), "foil": needs_foil(declared)}
        self.facts = [
            fact_tokens(tokenizer, fact, f"{name}: {named(i, fact)}", **needs) for i, fact in enumerate(facts)
        ]
        lengths = [len(fact.ids) for fact in self.facts]
        refuse_beyond_context(anatomy.model, lengths, lambda i: named(i, self.facts[i].fact))
        self._way: tuple[PatchWay, str | None] | None = None

    @property
    def note(self) -> str | None:
        """Why passes were not made in a way that costs less; None where they were, or none was made now."""
        return None if self._way is None else self._way[1]

    def way(self) -> PatchWay:
        """How passes are made, tried once on the longest fact."""
        if self._way is None:
            self._way = self.tried(max(self.facts, key=lambda fact: len(fact.ids)))
        return self._way[0]

    def tried(self, fact: FactTokens) -> tuple[PatchWay, str | None]:
        """What `measures.tracing.usable_way` says for one fact."""
        raise NotImplementedError

    def unit(
        self,
        fact: FactTokens,
        what: str,
        kind: type[Of],
        asked: Mapping[str, Json],
        place: str,
        work: Callable[[], Of],
    ) -> Of:
        """Do a unit of one fact once.

        Args:
            fact: that it is about.
            what: is done.
            kind: of what `work` gives.
            asked: what it depends on beside the fact and the entry.
            place: which part of the fact, in words.
            work: does it.
        """
        tokens: list[Json] = [fact.ids, fact.start, fact.end, fact.answer, fact.foil, fact.swapped]
        identity = {**self.base, **asked, "unit": what, "tokens": tokens}
        was_done = self._ledger.has(identity)
        found = self._ledger.do(identity, lambda: work().model_dump(mode="json"))
        self.told(f"{fact.fact.subject}{place}", was_done=was_done)
        return kind.model_validate(found)

    def told(self, what: str, *, was_done: bool) -> None:
        """Tell of a unit."""
        self._step("unit", {"what": f"{self.name}: {what}", "was_done": was_done})


def needs_swap(declared: CausalTracingSpec | PatchingSpec) -> bool:
    """Whether every fact must have another subject."""
    return isinstance(declared, PatchingSpec) or declared.corruption.kind == "swap"


def needs_foil(declared: CausalTracingSpec | PatchingSpec) -> bool:
    """Whether every fact must have a foil."""
    metrics = (declared.metric,) if isinstance(declared, PatchingSpec) else declared.metrics
    return "logit_difference" in metrics


def key_of(fact: Fact) -> str:
    """What items call a fact."""
    return digest(fact.model_dump(mode="json"))[:16]


def named(i: int, fact: Fact) -> str:
    """What errors call a fact."""
    return f"fact {i} ({fact.subject})"
