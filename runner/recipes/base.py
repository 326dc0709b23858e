"""What a recipe is, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from subvene.interventions import Sizes
from subvene.runner.edits.compile import CompileError
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import Anatomy


@dataclass(frozen=True)
class Fitted:
    """The outcome of a recipe.

    Attributes:
        tensors: full tensor name → tensor.
        provenance: how they came about, JSON values: the recipe, its data's hash, counts, norms.
        left_out: (key, site, layer) → why there is no tensor.
    """

    tensors: dict[str, torch.Tensor]
    provenance: dict[str, Json]
    left_out: Mapping[tuple[str, str, int], str] = field(default_factory=dict)


FOR_GATES = "a gate (`when:`)"
"""Among the kinds that a recipe's tensors are for: what gates read with."""


@dataclass(frozen=True)
class Reach:
    """What a recipe will fit, as far as its spec tells before it runs.

    Attributes:
        site: where its tensors act.
        layers: the layers that it gives; None: which ones is found in fitting.
        heads: layer → the heads that have a direction; None: which ones is found in fitting, or it gives
            none.
        also: further sites for which it gives the same layers.
        fields: of an intervention that uses them → what they have to say.
        kinds: the kinds of interventions that its tensors are for; None: any.
    """

    site: str
    layers: frozenset[int] | None = None
    heads: Mapping[int, frozenset[int]] | None = None
    kinds: frozenset[str] | None = None
    also: frozenset[str] = frozenset()
    fields: Mapping[str, object] = field(default_factory=dict)


def layers_of(layers: Literal["all"] | Sequence[int], sizes: Sizes) -> tuple[int, ...]:
    """The layers that a recipe reads, in order.

    Raises:
        CompileError: the model has no such layer.
    """
    if layers == "all":
        return tuple(range(sizes.n_layers))
    if max(layers) >= sizes.n_layers:
        raise CompileError(
            f"fit.layers: expected layers from 0 to {sizes.n_layers - 1} for this model, found {max(layers)}"
        )
    return tuple(sorted(layers))


def listed_heads(
    path: str, k: int | None, listed: Mapping[int, Sequence[int]] | None, sizes: Sizes
) -> dict[int, frozenset[int]] | None:
    """The heads that a spec lists, once it is seen that the model has all that it asks for.

    Args:
        path: the field that says which heads, `fit.select`.
        k: how many heads are to be found; None where the number is not given.
        listed: layer → heads; None where they are found in fitting.
        sizes: of the model.

    Raises:
        CompileError: more heads than there are, or a layer or head that there is not.
    """
    count = sizes.n_layers * sizes.n_heads
    if k is not None and k > count:
        raise CompileError(
            f"{path}.k: expected at most {count} for this model's {sizes.n_layers} layers of "
            f"{sizes.n_heads} heads, found {k}"
        )
    if listed is None:
        return None
    for layer, heads in listed.items():
        if layer >= sizes.n_layers:
            raise CompileError(
                f"{path}.heads: expected a layer from 0 to {sizes.n_layers - 1} for this model, found {layer}"
            )
        if max(heads) >= sizes.n_heads:
            raise CompileError(
                f"{path}.heads[{layer}]: expected a head from 0 to {sizes.n_heads - 1} for this model, "
                f"found {max(heads)}"
            )
    return {layer: frozenset(heads) for layer, heads in listed.items()}


class _Fit(Protocol):
    def __call__(
        self, spec: Any, data: Any, anatomy: Anatomy, tokenizer: Any, /, *, seed: int, work: Path | None
    ) -> Fitted: ...


@dataclass(frozen=True)
class Origin:
    """An earlier fit of the same file, which another one is made from.

    Attributes:
        recipe: its spec.
        how: what fits it.
        data: what it was fitted on.
        tensors: what came of it, by full name.
    """

    recipe: Any
    how: Recipe
    data: Any
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Made:
    """How a recipe is made from another fit.

    Attributes:
        data: (spec, what it reads itself, that fit) → what it is fitted on.
        reach: (spec, what that fit reaches) → what this one does.
    """

    data: Callable[[Any, Any, Origin], Any]
    reach: Callable[[Any, Reach], Reach] = lambda spec, reach: reach


@dataclass(frozen=True)
class Recipe:
    """One way in which tensors come about.

    Attributes:
        read: (spec, folder that its files are relative to) → the data that it fits on.
        given: (spec, what a caller hands over in their place: rows, or such data) → the data.
        check: (spec, data, seed); raises for data that it could not fit on, before a model is loaded.
        reach: (spec, sizes of the model) → what it will fit; raises CompileError for a spec that asks for
            what the model does not have.
        sha256: data → a hash of all that they say.
        fit: (spec, data, anatomy, tokenizer, seed, folder to keep intermediate results in) → tensors.
        made: of a recipe that is made from another fit, how; None: it is fitted on data alone.
    """

    read: Callable[[Any, Path], Any]
    given: Callable[[Any, Any], Any]
    check: Callable[[Any, Any, int], None]
    reach: Callable[[Any, Sizes], Reach]
    sha256: Callable[[Any], str]
    fit: _Fit
    made: Made | None = None
