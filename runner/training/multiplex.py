"""Edits of many experiments that act in one forward pass: every row of the batch carries its own.

Rows of a batch do not see each other, so that neither activations nor gradients of one experiment reach
another; what is shared is the pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from subvene.interventions import Sizes
from subvene.runner.edits.hooks import on_input
from subvene.runner.models.anatomy import Anatomy, component_module
from subvene.runner.models.devices import input_device

SITE = "attention_heads"
# The stream of random numbers that first factors are drawn from.
_FACTORS = 0


@dataclass(frozen=True)
class EditShape:
    """Where one experiment's edit acts, and of what form it is.

    Attributes:
        heads: layer → the heads that it writes to; no layer without heads.
        read_heads: see `LocalizedEditSpec`, as for `rank`, `per` and `gate`.
        rank: pairs of factors of each layer (or head).
        per: one edit for a layer's heads, or one for each.
        gate: whether a factor is read from the activation or is 1.
        seed: of the first factors.
    """

    heads: Mapping[int, tuple[int, ...]]
    read_heads: Literal["all", "written"] = "all"
    rank: int = 1
    per: Literal["layer", "head"] = "layer"
    gate: Literal["adaptive", "constant"] = "adaptive"
    seed: int = 0

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited layers, ascending."""
        return tuple(sorted(self.heads))

    def masks(self, layer: int, sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor]:
        """What each factor of a layer may read and write: 0 or 1, float32 [factors, n_heads*head_dim]."""
        heads = sorted(self.heads[layer])
        written: list[tuple[int, ...]] = [(head,) for head in heads for _ in range(self.rank)]
        if self.per == "layer" or self.gate == "constant":
            written = [tuple(heads)] * self.rank
        write = torch.stack([_mask(some, sizes) for some in written])
        return (torch.ones_like(write) if self.read_heads == "all" else write.clone()), write

    def first_readers(self, layer: int, sizes: Sizes) -> torch.Tensor:
        """Kaiming-uniform readers (as LoRA starts: a = √5, so U(±1/√(inputs read))), [factors, width].

        They depend on the seed, the layer and the form alone, not on which other layers are edited.
        """
        read, _ = self.masks(layer, sizes)
        drawn = np.random.default_rng([self.seed, _FACTORS, layer]).uniform(-1.0, 1.0, tuple(read.shape))
        bound = 1 / read.sum(1, keepdim=True).sqrt()
        return torch.from_numpy(drawn).float() * bound * read


def _mask(heads: Sequence[int], sizes: Sizes) -> torch.Tensor:
    mask = torch.zeros(sizes.n_heads)
    mask[list(heads)] = 1.0
    return mask.repeat_interleave(sizes.head_dim)


@dataclass(frozen=True)
class _One:
    """One experiment's factors, [layers, factors, width]; a layer with fewer factors has masked ones."""

    shape: EditShape
    a: torch.nn.Parameter | None
    b: torch.nn.Parameter
    read: torch.Tensor
    write: torch.Tensor


class Edits(Protocol):
    """What is trained: parameters of each experiment, and how they act on rows of a batch.

    Untrained, they change nothing.
    """

    def parameters_of(self, experiment: int) -> dict[str, torch.nn.Parameter]:
        """What an experiment trains, by name."""

    def first_layer(self, experiment: int) -> int:
        """The lowest block whose output an experiment changes."""

    def factors_of(self, experiment: int, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What these values of an experiment's parameters come to, by name, on the CPU."""

    def acting(self, experiments: Sequence[int], prompts: Sequence[int]) -> AbstractContextManager[None]:
        """Within the block, row i of the batch is edited as `experiments[i]` has it.

        Args:
            experiments: of each row.
            prompts: tokens of each row's prompt, with which it begins.
        """


class StackedEdits:
    """The edits of several experiments, float32, each with parameters of its own.

    Args:
        shapes: of the experiments, in their order.
        anatomy: of the model.
    """

    def __init__(self, shapes: Sequence[EditShape], anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        model: Any = anatomy.model
        self._edits = [_fresh(shape, anatomy.sizes, input_device(model)) for shape in shapes]

    def parameters_of(self, experiment: int) -> dict[str, torch.nn.Parameter]:
        """What an experiment trains: `a` (not of a constant edit) and `b`, [layers, factors, width]."""
        one = self._edits[experiment]
        return {"b": one.b} if one.a is None else {"a": one.a, "b": one.b}

    def first_layer(self, experiment: int) -> int:
        """The lowest layer that an experiment edits; below it, its activations are the original model's."""
        return self._edits[experiment].shape.layers[0]

    def factors_of(self, experiment: int, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parts of an experiment's edit by `{layer}.{a|b}`, zero outside the heads that it may touch.

        Args:
            experiment: which one.
            values: of its parameters.
        """
        one, found = self._edits[experiment], {}
        for i, layer in enumerate(one.shape.layers):
            count = len(one.shape.masks(layer, self._anatomy.sizes)[1])
            for part, mask in (("a", one.read), ("b", one.write)):
                if part in values:
                    found[f"{layer}.{part}"] = (values[part][i] * mask[i])[:count].detach().cpu()
        return found

    @contextlib.contextmanager
    def acting(self, experiments: Sequence[int], prompts: Sequence[int] = ()) -> Iterator[None]:
        """Within the block, row i of the batch is edited as `experiments[i]` has it, at every token."""
        handles = []
        try:
            for layer in sorted({layer for e in set(experiments) for layer in self._edits[e].shape.layers}):
                module, _ = component_module(self._anatomy.model, self._anatomy.component(SITE, layer))
                handles.append(on_input(module, self._edit(layer, experiments)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _edit(self, layer: int, experiments: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        def edit(given: torch.Tensor) -> torch.Tensor:
            readers, writers, constant = self._stacked(layer, experiments)
            o = given.view(len(experiments), -1, given.shape[-1])
            wide = o.to(torch.promote_types(o.dtype, torch.float32))
            gate = torch.bmm(wide, readers.to(wide).transpose(1, 2)) + constant.to(wide)
            edited = torch.baddbmm(wide, gate, writers.to(wide))
            return edited.to(given.dtype).view_as(given)

        return edit

    def _stacked(self, layer: int, experiments: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Of each row: its readers and writers at a layer [rows, factors, width], and its constant gates."""
        there = [e for e in sorted(set(experiments)) if layer in self._edits[e].shape.heads]
        most = max(self._edits[e].b.shape[1] for e in there)
        readers, writers, constant = [], [], []
        for e in there:
            one = self._edits[e]
            i = one.shape.layers.index(layer)
            missing = (0, 0, 0, most - one.b.shape[1])
            a = torch.zeros_like(one.b[i]) if one.a is None else one.a[i] * one.read[i]
            readers.append(torch.nn.functional.pad(a, missing))
            writers.append(torch.nn.functional.pad(one.b[i] * one.write[i], missing))
            constant.append(torch.full((1, most), float(one.a is None), device=one.b.device))
        # At last an edit that does nothing, for rows of experiments that leave this layer alone.
        for stack in (readers, writers, constant):
            stack.append(torch.zeros_like(stack[0]))
        place = {e: i for i, e in enumerate(there)}
        index = torch.tensor([place.get(e, len(there)) for e in experiments], device=readers[0].device)
        return tuple(torch.stack(stack)[index] for stack in (readers, writers, constant))


def _fresh(shape: EditShape, sizes: Sizes, device: torch.device) -> _One:
    masks = [shape.masks(layer, sizes) for layer in shape.layers]
    most = max(len(write) for _, write in masks)

    def stack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        padded = [torch.nn.functional.pad(part, (0, 0, 0, most - len(part))) for part in parts]
        return torch.stack(padded).to(device)

    read, write = stack([read for read, _ in masks]), stack([write for _, write in masks])
    a = None
    if shape.gate == "adaptive":
        a = torch.nn.Parameter(stack([shape.first_readers(layer, sizes) for layer in shape.layers]))
    # A random and B zero: both zero would be a saddle without a gradient.
    return _One(shape, a, torch.nn.Parameter(torch.zeros_like(write)), read, write)
