"""Carrying a vector to another model: v ↦ W·v, W fitted on what both models make of the same texts.

Bello et al. (2025, arXiv:2506.00653) fit an affine map between the hidden states of two models, and carry
steering vectors along it: of a direction, which is a difference, the constant falls away. Here

    W = argmin Σ‖(y − ȳ) − W·(x − x̄)‖² + λ‖W‖²

over rows x of the source and y of this model that stand for the same words (`shared_texts`). What W·v has
in length says how far x says anything about y, and not how much of a trait is wanted: the carried vector is
as long as the native one.

Lee et al. (2025, arXiv:2503.21073) fit W on the token embeddings of both models in place of activations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from subvene.interventions import Sizes, TensorError
from subvene.runner.data.texts import read_texts, texts_sha256
from subvene.runner.edits.compile import CompileError, load_tensors
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import Anatomy, sizes_from_config
from subvene.runner.models.identity import files_sha256, tensors_digest
from subvene.runner.models.loading import load_config, load_model, resolve
from subvene.runner.recipes.base import Fitted, Made, Origin, Reach, Recipe
from subvene.runner.recipes.shared_texts import Moments, Reader, explained, least_squares, moments
from subvene.specs import SubveneError, TransferSpec, parse_tensor_name, tensor_name
from subvene.specs.sites import Site

_ONE_VECTOR = frozenset({"mean_difference", "pca", "logistic"})
"""Recipes of pairs that give a vector a layer."""
_NOTHING = 1e-5
"""A vector that is carried to less than this part of what its and the map's lengths allow is the float32
rounding of the activations: a direction of chance, which no length makes one of the model."""


@dataclass(frozen=True)
class Shared:
    """What a transfer reads.

    Attributes:
        texts: the shared texts.
        sizes: of the source.
        source_sha256: of its files.
        vectors: its stored vectors; None: they are to be fitted.
    """

    texts: tuple[str, ...]
    sizes: Sizes
    source_sha256: str
    vectors: Mapping[str, torch.Tensor] | None


@dataclass(frozen=True)
class Carried:
    """What a transfer is fitted on: what it reads, and the fit that gives the native vectors."""

    shared: Shared
    native: Origin


def fit_transfer(spec: TransferSpec, data: Carried, anatomy: Anatomy, tokenizer: Any, *, seed: int) -> Fitted:
    """Carry the source's vectors to the layers that have a native one.

    Raises:
        SubveneError: the source has no vector for a layer, a stored one is of another width, or its vectors
            cannot be taken as they are.
    """
    site, native = _native(spec, data.native)
    layers = layers_between(spec, sorted(native), anatomy.sizes.n_layers, data.shared.sizes.n_layers)
    stored = data.shared.vectors
    source: Reader | None = None
    if stored is None or spec.by == "least_squares":
        model, own = load_model(spec.source)
        source = Reader(Anatomy.of(model), own, spec.source.name)
    if stored is None and source is not None:
        stored = _fitted(data.native, source, sorted(set(layers.values())), seed)
    if source is not None:
        _check_widths(spec, stored or {}, source.anatomy.sizes)
    vectors = _of_source(spec, stored or {}, site, layers)
    widths = {"source": len(next(iter(vectors.values()))), "target": len(next(iter(native.values())))}
    equally_wide = widths["source"] == widths["target"]
    told: dict[str, Json] = {
        "recipe": spec.recipe,
        "key": spec.key,
        "like": spec.like,
        "site": site,
        "by": spec.by,
        "source": {"name": spec.source.name, "sha256": data.shared.source_sha256},
        "vector": "fitted" if spec.vector is None else spec.vector.key,
        "layers_of_source": {str(layer): its for layer, its in layers.items()},
        "widths": widths,
        "equally_wide": equally_wide,
    }
    maps: dict[int, torch.Tensor] = {}
    if spec.by == "none" and not equally_wide:
        raise SubveneError(
            f"recipe {spec.recipe}: {spec.key}: `by: none` needs two models of one width, and at {site} "
            f"{spec.source.name} has {widths['source']} columns and this model {widths['target']}; leave "
            "out what uses it"
        )
    if spec.by == "least_squares" and source is not None:
        here = Reader(anatomy, tokenizer, "this model")
        maps, about = _maps(spec, site, data.shared.texts, source, here, layers)
        told |= about
    carried = {
        layer: (maps[layer] @ vector.double() if maps else vector.double())
        for layer, vector in vectors.items()
    }
    allowed = {layer: float(maps[layer].norm() * vectors[layer].norm()) if maps else 0.0 for layer in carried}
    fitted = _as_long_as_native(spec, site, carried, native, allowed, told)
    # What strengths may be counted in belongs to this model and to no vector of it.
    norms = {
        tensor_name(spec.key, site, place.layer, place.part): tensor
        for name, tensor in data.native.tensors.items()
        if (place := parse_tensor_name(name)) is not None and place.part and place.layer in layers
    }
    return Fitted(fitted.tensors | norms, fitted.provenance, fitted.left_out)


def layers_between(spec: TransferSpec, native: Sequence[int], n_target: int, n_source: int) -> dict[int, int]:
    """The layers that get a vector, each with the source's layer that it comes from."""
    if spec.layers is not None:
        return {layer: spec.layers[layer] for layer in sorted(spec.layers)}
    share = (n_source - 1) / (n_target - 1) if n_target > 1 else 0.0
    return {layer: int(layer * share + 0.5) for layer in native}


def _native(spec: TransferSpec, origin: Origin) -> tuple[Site, dict[int, torch.Tensor]]:
    """The site and the native vectors by layer."""
    vectors: dict[int, torch.Tensor] = {}
    sites: set[Site] = set()
    for name, tensor in origin.tensors.items():
        place = parse_tensor_name(name)
        if place is None or (place.part is None and tensor.ndim != 1):
            raise SubveneError(
                f"recipe {spec.recipe}: {spec.like!r} gives {name}, which is no vector; `like` names a fit "
                "of one vector a layer (mean_difference, pca, logistic, persona)"
            )
        if place.part is None:
            sites.add(place.site)
            vectors[place.layer] = tensor
        elif place.part != "residual_norm":
            raise SubveneError(f"recipe {spec.recipe}: {spec.like!r} gives {name}, which is no vector")
    if len(sites) != 1:
        where = " and ".join(sorted(sites)) or "no site"
        raise SubveneError(f"recipe {spec.recipe}: {spec.like!r} gives vectors at {where}, expected one site")
    return sites.pop(), vectors


def _fitted(origin: Origin, source: Reader, layers: Sequence[int], seed: int) -> dict[str, torch.Tensor]:
    """What the native recipe gives on the source."""
    recipe = origin.recipe.model_copy(update={"layers": tuple(layers)})
    fitted = origin.how.fit(recipe, origin.data, source.anatomy, source.tokenizer, seed=seed, work=None)
    return fitted.tensors


def _of_source(
    spec: TransferSpec, tensors: Mapping[str, torch.Tensor], site: Site, layers: Mapping[int, int]
) -> dict[int, torch.Tensor]:
    """This model's layer → the source's vector for it."""
    key = spec.like if spec.vector is None else spec.vector.key
    found = {}
    for layer, its in layers.items():
        name = tensor_name(key, site, its)
        if name not in tensors or tensors[name].ndim != 1:
            there = ", ".join(sorted(tensors)) or "none"
            raise SubveneError(
                f"recipe {spec.recipe}: layer {layer} takes {name} of the source, and there is no such "
                f"vector; there is: {there}"
            )
        found[layer] = tensors[name]
    return found


def _maps(
    spec: TransferSpec,
    site: Site,
    texts: Sequence[str],
    source: Reader,
    target: Reader,
    layers: Mapping[int, int],
) -> tuple[dict[int, torch.Tensor], dict[str, Json]]:
    """W by layer, and what is told of the fit."""
    kept = _fitted_on(spec, len(texts))
    sides: list[dict[int, Moments]] = [
        moments(
            part,
            source,
            target,
            site,
            layers,
            tokens=spec.tokens,
            max_tokens=spec.max_tokens,
            batch_size=spec.batch_size,
            description=f"fitting {spec.key}",
        )
        for part in (texts[:kept], texts[kept:])
    ]
    fitted, held_out = sides
    maps = {layer: least_squares(fitted[layer], spec.ridge) for layer in layers}
    first = next(iter(layers))
    shares = {layer: explained(maps[layer], fitted[layer], held_out[layer]) for layer in layers}
    return maps, {
        "ridge": spec.ridge,
        "tokens": spec.tokens,
        "texts": kept,
        "texts_sha256": texts_sha256(texts),
        "rows": fitted[first].n,
        "texts_held_out": len(texts) - kept,
        "rows_held_out": held_out[first].n,
        "explained_by_layer": {
            str(layer): None if share is None else round(share, 4) for layer, share in shares.items()
        },
    }


def _as_long_as_native(
    spec: TransferSpec,
    site: Site,
    carried: Mapping[int, torch.Tensor],
    native: Mapping[int, torch.Tensor],
    allowed: Mapping[int, float],
    told: Mapping[str, Json],
) -> Fitted:
    """The carried vectors at the native ones' length, with the angle between the two.

    `allowed` is the length that a vector could have had, ‖W‖·‖v‖; 0 where nothing is mapped.
    """
    tensors: dict[str, torch.Tensor] = {}
    left_out: dict[tuple[str, str, int], str] = {}
    cosines, lengths = {}, {}
    for layer, vector in carried.items():
        own, length = native[layer].double(), float(vector.norm())
        if not length or not bool(vector.isfinite().all()):
            left_out[spec.key, site, layer] = "what is carried there is zero or not finite"
            continue
        if length <= _NOTHING * allowed[layer]:
            left_out[spec.key, site, layer] = (
                "the map takes the source's vector to nothing but rounding: the texts do not differ along it"
            )
            continue
        cosines[str(layer)] = round(float(vector @ own / (length * own.norm())), 4)
        lengths[str(layer)] = round(length / float(own.norm()), 4)
        tensors[tensor_name(spec.key, site, layer)] = (vector / length * own.norm()).to(native[layer].dtype)
    about: dict[str, Json] = {
        "cosine_to_native_by_layer": cosines,
        "length_before_by_layer": lengths,
        "left_out": {str(layer): why for (_, _, layer), why in left_out.items()},
    }
    return Fitted(tensors, {**told, **about}, left_out)


def _read(spec: TransferSpec, folder: Path) -> Shared:
    """Texts, the source's sizes and digest, and its stored vectors; no weights are read.

    A text that comes again is left out: among those held out, the map would have been fitted on it.
    """
    config = load_config(spec.source)
    texts = tuple(dict.fromkeys(read_texts(spec.texts, folder, spec.limit)))
    if len(texts) < 2:
        raise SubveneError(
            f"recipe {spec.recipe}: texts: expected two different texts or more, one of them to hold out, "
            f"found {len(texts)}"
        )
    if not _fitted_on(spec, len(texts)):
        raise SubveneError(
            f"recipe {spec.recipe}: held_out: {spec.held_out:g} of {len(texts)} texts leaves none to fit on; "
            "give more texts or a smaller share"
        )
    stored = None if spec.vector is None else load_tensors(folder / str(spec.vector.file))
    return Shared(texts, sizes_from_config(config), files_sha256(resolve(spec.source), config), stored)


def _fitted_on(spec: TransferSpec, n_texts: int) -> int:
    """How many texts the map is fitted on, the first ones."""
    return n_texts - max(1, round(spec.held_out * n_texts))


def _given(spec: TransferSpec, data: Any) -> Any:
    raise SubveneError("data: what a transfer reads is named in its spec: `texts`, `source`, `vector`")


def _check(spec: TransferSpec, data: Shared, seed: int) -> None:
    """Refuse layers that the source does not have.

    Raises:
        CompileError: naming the layer.
    """
    n_layers = data.sizes.n_layers
    if spec.layers is not None and (beyond := [its for its in spec.layers.values() if its >= n_layers]):
        raise CompileError(
            f"fit.layers: expected layers of {spec.source.name} from 0 to {n_layers - 1}, found {beyond[0]}"
        )
    _check_widths(spec, data.vectors or {}, data.sizes)


def _check_widths(spec: TransferSpec, stored: Mapping[str, torch.Tensor], sizes: Sizes) -> None:
    """Refuse stored vectors that are no vectors of the source; of some sites only its weights tell the width.

    Raises:
        SubveneError: naming the file and the tensor.
    """
    for name, tensor in stored.items():
        place = parse_tensor_name(name)
        if spec.vector is None or place is None or place.key != spec.vector.key or place.part:
            continue
        try:
            width = sizes.site_width(place.site, place.layer)
        except TensorError:
            continue
        if tensor.shape != (width,):
            raise SubveneError(
                f"recipe {spec.recipe}: {spec.vector.file}: {name}: expected a vector of {width} columns, as "
                f"{spec.source.name} has, found shape {list(tensor.shape)}; it is another model's"
            )


def _carried(spec: TransferSpec, shared: Shared, native: Origin) -> Carried:
    """What is read, with the fit of the native vectors.

    Raises:
        SubveneError: that recipe cannot be fitted on the source.
    """
    if spec.vector is None and native.recipe.recipe not in _ONE_VECTOR:
        raise SubveneError(
            f"recipe {spec.recipe}: {spec.like!r} comes from recipe {native.recipe.recipe}, which is not "
            f"fitted on the source by itself (only {', '.join(sorted(_ONE_VECTOR))} are): fit it there with "
            "a file of its own, and name what it gives as `vector: {file: …, key: …}`"
        )
    _check(spec, shared, 0)
    return Carried(shared, native)


def _reach(spec: TransferSpec, sizes: Sizes) -> Reach:
    raise NotImplementedError("it reaches what the fit of the native vectors reaches")


def _reach_like(spec: TransferSpec, like: Reach) -> Reach:
    """The layers that `layers` names, at the site of the native vectors.

    Raises:
        CompileError: a layer has no native vector.
    """
    if spec.layers is None:
        return like
    if like.layers is not None and (other := sorted(set(spec.layers) - like.layers)):
        raise CompileError(
            f"fit.layers: {spec.like!r} gives layers {', '.join(map(str, sorted(like.layers)))}, found "
            f"{other[0]}"
        )
    return replace(like, layers=frozenset(spec.layers))


def _sha256(data: Carried | Shared) -> str:
    """A hash of the texts, the source and the vectors on both sides."""
    shared = data if isinstance(data, Shared) else data.shared
    stored = None if shared.vectors is None else tensors_digest(shared.vectors)
    about: list[Json] = [texts_sha256(shared.texts), shared.source_sha256, stored]
    if isinstance(data, Carried):
        about.append(tensors_digest(data.native.tensors))
        if stored is None:
            recipe = data.native.recipe
            about += [recipe.model_dump(mode="json"), data.native.how.sha256(data.native.data)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _fit(
    spec: TransferSpec, data: Carried, anatomy: Anatomy, tokenizer: Any, *, seed: int, work: Path | None
) -> Fitted:
    return fit_transfer(spec, data, anatomy, tokenizer, seed=seed)


TRANSFER = Recipe(_read, _given, _check, _reach, _sha256, _fit, Made(_carried, _reach_like))
