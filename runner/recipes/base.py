"""What a recipe is, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from subvene.interventions import Sizes
from subvene.runner.anatomy import Anatomy


@dataclass(frozen=True)
class Fitted:
    """The outcome of a recipe.

    Attributes:
        tensors: full tensor name → tensor.
        provenance: how they came about, JSON values: the recipe, its data's hash, counts, norms.
    """

    tensors: dict[str, torch.Tensor]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Reach:
    """What a recipe will fit, as far as its spec tells before it runs.

    Attributes:
        site: where its tensors act.
        layers: the layers that it gives; None: which ones is found in fitting.
        heads: layer → the heads that have a direction; None: which ones is found in fitting, or it gives
            none.
        kinds: the kinds of interventions that its tensors are for; None: any.
    """

    site: str
    layers: frozenset[int] | None = None
    heads: Mapping[int, frozenset[int]] | None = None
    kinds: frozenset[str] | None = None


class _Fit(Protocol):
    def __call__(
        self, spec: Any, data: Any, anatomy: Anatomy, tokenizer: Any, /, *, seed: int, work: Path | None
    ) -> Fitted: ...


@dataclass(frozen=True)
class Recipe:
    """One way in which tensors come about.

    Attributes:
        read: (spec, folder that its files are relative to) → the data that it fits on.
        check: (spec, data, seed); raises for data that it could not fit on, before a model is loaded.
        reach: (spec, sizes of the model) → what it will fit; raises CompileError for a spec that asks for
            what the model does not have.
        fit: (spec, data, anatomy, tokenizer, seed, folder to keep intermediate results in) → tensors.
    """

    read: Callable[[Any, Path], Any]
    check: Callable[[Any, Any, int], None]
    reach: Callable[[Any, Sizes], Reach]
    fit: _Fit
