"""Activation patching of one fact: states of its run in that about another subject, and the other way round.

An effect is how far a patch moves the metric from its base run's value towards the other run's: of
denoising, patched minus base; of noising, base minus patched. Both are positive where a state carries the
answer. Attribution patching estimates all effects to first order: the gradient of the metric at a state,
times what the state would be changed by (Nanda, 2023).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict

from subvene.runner.data.facts import FactTokens
from subvene.runner.edits.not_finite import check_finite
from subvene.runner.measures.tracing import FactScore, generator
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.kept import KeptRun, States, at_site, keep
from subvene.runner.passes.patches import Patch, Patcher, PatchWay
from subvene.runner.passes.restart import logits_at
from subvene.specs.evaluations.causal_tracing import TraceMetric
from subvene.specs.evaluations.patching import Direction, PatchedSite

Cells = tuple[tuple[tuple[float, ...], ...], ...]
"""[layers][heads, or one][tokens, or one]."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SampledCell(_Record):
    """A cell whose effect was both estimated and truly measured.

    Attributes:
        layer: its place among the layers.
        head: its place among the heads; 0 where all are patched at once.
        token: of the text; 0 where all are patched at once.
        estimate: to first order.
        effect: by patching.
    """

    layer: int
    head: int
    token: int
    estimate: float
    effect: float


class Patched(_Record):
    """One site of one fact, patched in one direction.

    Attributes:
        effects: of every cell; estimates where `sample` has any.
        sample: cells that were truly patched beside an estimate.
        way: how true effects were computed.
    """

    effects: Cells
    sample: tuple[SampledCell, ...] = ()
    way: PatchWay


@dataclass(frozen=True)
class Grid:
    """The cells of a site.

    Attributes:
        site: as declared.
        layers: that are patched.
        heads: that are patched one by one; (None,) for the whole width.
        tokens: that are patched, each cell's.
    """

    site: PatchedSite
    layers: tuple[int, ...]
    heads: tuple[int | None, ...]
    tokens: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, heads, tokens."""
        return len(self.layers), len(self.heads), len(self.tokens)

    @property
    def patches(self) -> list[Patch]:
        """All cells, in the order of `shape`."""
        return [
            Patch(self.site.site, (layer,), tokens, None if head is None else (head,))
            for layer in self.layers
            for head in self.heads
            for tokens in self.tokens
        ]


def grid_of(site: PatchedSite, layers: Sequence[int], n_heads: int, n_tokens: int) -> Grid:
    """The cells of a site in a text of so many tokens."""
    heads: tuple[int | None, ...] = (None,)
    if site.heads is not None:
        heads = tuple(range(n_heads)) if site.heads == "all" else site.heads
    each = tuple((token,) for token in range(n_tokens))
    return Grid(site, tuple(layers), heads, each if site.positions == "each" else (tuple(range(n_tokens)),))


class FactPatcher:
    """The two runs of a fact.

    Args:
        anatomy: of the model, which is in evaluation mode, its weights frozen.
        fact: with its swapped prompt.
        sites: that are patched.
        metric: that effects are on.
    """

    def __init__(
        self, anatomy: Anatomy, fact: FactTokens, sites: Sequence[PatchedSite], metric: TraceMetric
    ) -> None:
        self.anatomy, self.fact = anatomy, fact
        scores = FactScore(fact)
        column = scores.metrics.index(metric)
        self._score = lambda logits: scores(logits)[:, column : column + 1]
        self.sites = tuple(dict.fromkeys(site.site for site in sites))
        self.clean = keep(anatomy, torch.tensor([fact.ids]), self.sites)
        self.other = keep(anatomy, torch.tensor([fact.swapped]), self.sites)

    def read(self) -> tuple[float, float]:
        """The metric of the fact's run, and of the other's."""
        values = torch.cat([self._score(self.clean.logits), self._score(self.other.logits)])
        check_finite(values, "the answer's logits")
        return float(values[0]), float(values[1])

    def patched(self, grid: Grid, direction: Direction, way: PatchWay) -> Patched:
        """Every cell's effect."""
        effects = self._effects(grid.patches, direction, way).reshape(grid.shape)
        return Patched(effects=_nested(effects), way=way)

    def attributed(
        self, grid: Grid, direction: Direction, way: PatchWay, *, sample: int, seed: int
    ) -> Patched:
        """Every cell's estimate, and the true effects of some cells.

        Args:
            grid: the cells.
            direction: of patching.
            way: how true effects are computed.
            sample: cells, drawn without replacement among those where the two runs differ.
            seed: of the draw.
        """
        base, source = self._runs(direction)
        gradients = self._gradients(base)
        estimates = torch.tensor([self._estimate(p, gradients, base, source) for p in grid.patches])
        if direction == "noising":
            estimates = -estimates
        check_finite(estimates, f"the estimates of {grid.site.site}")
        random = generator(seed, self.fact, f"sample {grid.site} {grid.layers} {direction}")
        differing = [i for i, p in enumerate(grid.patches) if p.tokens[-1] >= self.fact.start]
        chosen = [differing[i] for i in torch.randperm(len(differing), generator=random)[:sample].tolist()]
        effects = self._effects([grid.patches[i] for i in chosen], direction, way)
        cells = [
            SampledCell(layer=layer, head=head, token=token, estimate=float(estimates[i]), effect=float(true))
            for i, true in zip(chosen, effects, strict=True)
            for layer, head, token in [_place(i, grid.shape)]
        ]
        return Patched(effects=_nested(estimates.reshape(grid.shape)), sample=tuple(cells), way=way)

    def _runs(self, direction: Direction) -> tuple[KeptRun, KeptRun]:
        """The base and the source."""
        return (self.other, self.clean) if direction == "denoising" else (self.clean, self.other)

    def _effects(self, patches: Sequence[Patch], direction: Direction, way: PatchWay) -> torch.Tensor:
        base, source = self._runs(direction)
        patcher = Patcher(self.anatomy, base, source.states, self._score, way)
        values = patcher.values(patches)[:, 0, 0]
        check_finite(values, "patched runs")
        moved = values - patcher.base_values[0, 0]
        return moved if direction == "denoising" else -moved

    @torch.enable_grad()
    def _gradients(self, base: KeptRun) -> States:
        """Of the metric, by place."""
        model = cast(Any, self.anatomy.model)
        states: States = {}

        def leaf(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
            return output.detach().requires_grad_()

        with contextlib.ExitStack() as stack:
            stack.callback(model.get_input_embeddings().register_forward_hook(leaf).remove)
            for site in self.sites:
                for layer in range(self.anatomy.sizes.n_layers):

                    def take(activation: torch.Tensor, place: Any = (site, layer)) -> None:
                        activation.retain_grad()
                        states[place] = activation

                    stack.enter_context(at_site(self.anatomy, site, layer, take))
            last = torch.tensor([base.tokens - 1])
            mask = torch.ones_like(base.ids)
            logits = logits_at(model, last, input_ids=base.ids, attention_mask=mask, use_cache=False)
            self._score(logits).sum().backward()
        return {
            place: cast(torch.Tensor, state.grad).reshape(base.states[place].shape)
            for place, state in states.items()
        }

    def _estimate(self, patch: Patch, gradients: States, base: KeptRun, source: KeptRun) -> float:
        place, tokens = (patch.site, patch.layers[0]), list(patch.tokens)
        product = gradients[place] * (source.states[place] - base.states[place])
        width = self.anatomy.sizes.head_dim
        if patch.heads is not None:
            product = product[..., patch.heads[0] * width : (patch.heads[0] + 1) * width]
        return float(product[0, tokens].sum())


def _nested(effects: torch.Tensor) -> Cells:
    return tuple(tuple(map(tuple, layer)) for layer in effects.tolist())


def _place(i: int, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return i // (shape[1] * shape[2]), i // shape[2] % shape[1], i % shape[2]
