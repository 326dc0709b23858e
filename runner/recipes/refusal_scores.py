"""What removing a direction and adding it does to the token that an answer begins with."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subvene.runner.data.text import by_length, pad
from subvene.runner.edits.hooks import on_input, on_output
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import Anatomy, component_module
from subvene.runner.models.devices import input_device
from subvene.runner.passes.restart import logits_at
from subvene.specs import RefusalSpec

SITES = RefusalSpec.usual_sites
_EPSILON = 1e-8

Ids = list[int]
Change = Callable[[torch.Tensor], torch.Tensor]


def score(logits: torch.Tensor, refusal: torch.Tensor) -> torch.Tensor:
    """How much rather a refusal begins than not: log p − log(1 − p), p the probability of its first tokens.

    Args:
        logits: [rows, vocabulary].
        refusal: Long[tokens], those that refusals begin with.

    Returns:
        float64 [rows].
    """
    p = logits.double().softmax(-1)[:, refusal].sum(-1)
    return (p + _EPSILON).log() - (1 - p + _EPSILON).log()


@dataclass(frozen=True)
class Candidate:
    """A difference of means: of which block's input, and at which token from the end (-1 is the last)."""

    layer: int
    position: int
    direction: torch.Tensor


@dataclass(frozen=True)
class Scored:
    """What removing and adding a candidate does; see `refusal`."""

    candidate: Candidate
    bypass: float
    induced: float
    kl: float

    def told(self) -> dict[str, Json]:
        """JSON values."""
        return {"bypass": round(self.bypass, 6), "induced": round(self.induced, 6), "kl": round(self.kl, 6)}

    def passes(self, spec: RefusalSpec) -> bool:
        """Whether it is within the limits; what is not a number is not."""
        return not math.isnan(self.bypass) and self.induced >= spec.min_induced and self.kl <= spec.max_kl


@dataclass(frozen=True)
class Prompts:
    """Token ids of refused instructions and of followed ones."""

    positive: list[Ids]
    negative: list[Ids]


@dataclass(frozen=True)
class NextToken:
    """A model whose next token is asked for."""

    anatomy: Anatomy
    batch_size: int
    pad_id: int
    refusal: torch.Tensor

    @torch.no_grad()
    def logits(self, prompts: Sequence[Ids]) -> torch.Tensor:
        """What follows each prompt, float64 [prompts, vocabulary], on the CPU."""
        found: list[torch.Tensor | None] = [None] * len(prompts)
        model: Any = self.anatomy.model
        for chosen in by_length([len(ids) for ids in prompts], self.batch_size):
            rows = [prompts[i] for i in chosen]
            batch = pad(rows, [len(row) for row in rows], self.pad_id, "right").to(input_device(model))
            slots = batch.input_ids.shape[1]
            last = torch.tensor([row * slots + len(ids) - 1 for row, ids in enumerate(rows)])
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            logits = logits_at(model, last, use_cache=False, **inputs).cpu().double()
            for i, row in zip(chosen, logits, strict=True):
                found[i] = row
        return torch.stack([row for row in found if row is not None])

    def mean_score(self, prompts: Sequence[Ids]) -> float:
        """How much the model rather refuses prompts than not, on average."""
        return float(score(self.logits(prompts), self.refusal).mean())

    @contextlib.contextmanager
    def edited(self, places: Sequence[tuple[str, int]], change: Change) -> Iterator[None]:
        """Within the block, activations at (site, layer) have what `change` makes of them, at every token."""
        handles = []
        try:
            for site, layer in places:
                component = self.anatomy.component(site, layer)
                module, is_input = component_module(self.anatomy.model, component)
                handles.append((on_input if is_input else on_output)(module, change))
            yield
        finally:
            for handle in handles:
                handle.remove()


def scored(model: NextToken, prompts: Prompts, untouched: torch.Tensor, candidate: Candidate) -> Scored:
    """What a candidate does.

    Args:
        model: the model.
        prompts: by which the direction is chosen.
        untouched: logits after the negative ones of them.
        candidate: the direction.
    """
    direction = candidate.direction.to(getattr(model.anatomy.model, "device", "cpu"))
    unit = direction / direction.norm()

    def remove(h: torch.Tensor) -> torch.Tensor:
        own, along = h.float(), unit.to(h.device)
        return (own - (own @ along).unsqueeze(-1) * along).to(h.dtype)

    def add(h: torch.Tensor) -> torch.Tensor:
        return (h.float() + direction.to(h.device)).to(h.dtype)

    everywhere = [(site, layer) for site in SITES for layer in range(model.anatomy.sizes.n_layers)]
    with model.edited(everywhere, remove):
        bypass, removed = model.mean_score(prompts.positive), model.logits(prompts.negative)
    with model.edited([(SITES[0], candidate.layer)], add):
        induced = model.mean_score(prompts.negative)
    log_p, log_q = untouched.log_softmax(-1), removed.log_softmax(-1)
    return Scored(candidate, bypass, induced, float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
