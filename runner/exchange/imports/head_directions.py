"""ITI's heads and directions, as the published code computes them, converted to numpy beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch

from subvene.interventions import Sizes
from subvene.runner.exchange.imports.base import Imported, Importer, identifier
from subvene.runner.exchange.imports.opened import Opened
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import (
    AnyIntervention,
    HeadDirectionSpec,
    Positions,
    SteeringSpec,
    TensorRef,
    tensor_name,
)

_SITE: Final = "attention_heads"
_PUBLISHED_ALPHA = 15.0
# What a file or an array of an archive is called, by the ends of its name.
_ENDS = {
    "top_heads": ("top_heads",),
    "directions": ("com_directions", "directions"),
    "sigma": ("proj_val_std", "sigma", "stds", "std"),
}
_PICKLES = (".pkl", ".pickle", ".joblib")


class HeadDirections(Importer):
    """A folder of .npy files, or one .npz file.

    It holds `top_heads` [K, 2], pairs (layer, head); `directions` (`com_directions`) [n_layers*n_heads,
    head_dim] or [n_layers, n_heads, head_dim]; and perhaps `sigma` (`std`, `proj_val_std`), of shape
    [n_layers*n_heads], [n_layers, n_heads], or [K] in the order of `top_heads`.

    The paper's directions are of the input of the output projection. Ones that were collected at its output,
    cut into as many parts, have the same shape in most models: `--collected after_o_proj` says so, and makes
    them steering at `attention_output`.
    """

    name = "iti"
    says = "ITI's heads and directions in numpy files"
    takes = frozenset({"strength", "positions", "collected"})

    @classmethod
    def recognises(cls, source: Opened) -> bool:
        if source.is_folder:
            return any(name.endswith((".npy", ".npz", *_PICKLES)) for name in source.names)
        return source.path.suffix in (".npz", ".npy", *_PICKLES) or source.head(count=6) == b"\x93NUMPY"

    def read(self) -> None:
        arrays = self._arrays()
        self.heads = self._heads(arrays["top_heads"])
        self.directions = arrays["directions"]
        self.sigma = arrays.get("sigma")
        for what in ("directions", "sigma"):
            if what in arrays and arrays[what].dtype.kind != "f":
                raise self.refuse(f"{what} is {arrays[what].dtype}, expected floating point")

    def _arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        source = self.source
        if pickles := [name for name in source.names if name.endswith(_PICKLES)]:
            raise self.refuse(
                "reading a pickle runs whatever code it holds, so it is refused; where you trust it, convert "
                "it first, and give the folder of the results: numpy.save('top_heads.npy', "
                "numpy.array(top_heads, dtype=int)); numpy.save('com_directions.npy', com_directions)",
                pickles[0] if source.is_folder else None,
            )
        if source.is_folder:
            names = {name: name.removesuffix(".npy") for name in source.names if name.endswith(".npy")}
            chosen = self._chosen(names)
            return {what: source.numpy(name) for what, name in chosen.items()}
        if source.head(count=4) != b"PK\x03\x04":
            raise self.refuse(
                "one array of several; give the folder that holds top_heads.npy and com_directions.npy, or "
                "one .npz file with both"
            )
        arrays = source.numpy_archive()
        return {what: arrays[name] for what, name in self._chosen({name: name for name in arrays}).items()}

    def _chosen(self, names: dict[str, str]) -> dict[str, str]:
        """Which name holds what, from the ends of the names."""
        chosen: dict[str, str] = {}
        for what, ends in _ENDS.items():
            found = [name for name, stem in names.items() if stem.endswith(ends)]
            if len(found) > 1:
                raise self.refuse(f"several arrays could be the {what}: {', '.join(sorted(found))}")
            if found:
                chosen[what] = found[0]
            elif what != "sigma":
                there = ", ".join(sorted(names)) or "none"
                raise self.refuse(f"no array called {ends[-1]}; there is: {there}")
        return chosen

    def _heads(self, array: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
        if array.dtype.kind not in "iu" or array.ndim != 2 or array.shape[1] != 2 or not len(array):
            raise self.refuse(
                f"top_heads is {array.dtype} {list(array.shape)}, expected integers [K, 2], (layer, head)"
            )
        heads = [(int(layer), int(head)) for layer, head in array]
        if len(set(heads)) != len(heads):
            raise self.refuse("top_heads names a head twice")
        return heads

    def check(self, sizes: Sizes) -> None:
        self.check_layers([layer for layer, _ in self.heads], sizes)
        if outside := [pair for pair in self.heads if not 0 <= pair[1] < sizes.n_heads]:
            raise self.refuse(
                f"top_heads: expected heads from 0 to {sizes.n_heads - 1} for this model, found "
                f"{outside[0][1]} at layer {outside[0][0]}; pairs are (layer, head), query heads"
            )
        shape, count = self.directions.shape, sizes.n_layers * sizes.n_heads
        if shape[:-1] not in ((count,), (sizes.n_layers, sizes.n_heads)):
            raise self.refuse(
                f"directions has shape {list(shape)}, expected [{count}, head_dim], a row per layer and head "
                f"({sizes.n_layers} layers of {sizes.n_heads} heads)"
            )
        if self.sigma is not None and self.sigma.shape not in (*self._grids(sizes), (len(self.heads),)):
            raise self.refuse(
                f"sigma has shape {list(self.sigma.shape)}, expected [{count}], "
                f"[{sizes.n_layers}, {sizes.n_heads}] or [{len(self.heads)}], in the order of top_heads"
            )

    @staticmethod
    def _grids(sizes: Sizes) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return (sizes.n_layers * sizes.n_heads,), (sizes.n_layers, sizes.n_heads)

    def onto(self, anatomy: Anatomy) -> Imported:
        sizes = anatomy.sizes
        after = self.options.collected == "after_o_proj"
        parts = sizes.width / sizes.n_heads if after else sizes.head_dim
        if self.directions.shape[-1] != parts:
            what = "the output of this model's o_proj has parts of" if after else "this model's heads have"
            raise self.refuse(f"directions has rows of {self.directions.shape[-1]}, and {what} {parts:g}")
        grid = (sizes.n_layers, sizes.n_heads)
        directions = self.finite(_tensor(self.directions), "directions").view(*grid, int(parts))
        sigma = self._sigma(sizes).view(*grid)
        by_layer: dict[int, list[int]] = {}
        for layer, head in sorted(self.heads):
            by_layer.setdefault(layer, []).append(head)
        chosen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer, heads in by_layer.items():
            if zero := [head for head in heads if not directions[layer, head].any()]:
                raise self.refuse(f"the direction of layer {layer}, head {zero[0]} is zero: it has none")
            unit, spread = torch.zeros(sizes.n_heads, int(parts)), torch.ones(sizes.n_heads)
            unit[heads] = torch.nn.functional.normalize(directions[layer, heads].double(), dim=-1).float()
            spread[heads] = sigma[layer, heads]
            chosen[layer] = unit, spread
        of_sigma = (
            "the file has no standard deviations, so σ = 1: α counts in units of the activation"
            if self.sigma is None
            else "σ of each head is read from the file"
        )
        statements = [
            f"row layer*{sizes.n_heads} + head of the directions is that head's; scaled to unit length",
            self._where(sizes),
            f"{len(self.heads)} heads in {len(by_layer)} layers",
            of_sigma,
            f"α {self._strength:g} at positions {self._positions!r}",
        ]
        make = self._after if after else self._before
        return Imported(*make(chosen, by_layer), statements)

    @property
    def _positions(self) -> Positions:
        return self.options.positions or "response"

    @property
    def _strength(self) -> float:
        return _PUBLISHED_ALPHA if self.options.strength is None else self.options.strength

    def _where(self, sizes: Sizes) -> str:
        """Where the directions are taken to have been collected, and how far the file itself says so."""
        if self.options.collected == "after_o_proj":
            return "they were collected after o_proj, as --collected says: steering at attention_output"
        taken = "they are taken as collected before o_proj, at its input, as the paper's are"
        if self.options.collected is not None:
            return f"{taken} and --collected says"
        if sizes.n_heads * sizes.head_dim != sizes.width:
            return f"{taken}; their width says so, too"
        return f"{taken}; nothing in the file tells: if they were not, say --collected after_o_proj"

    def _before(
        self, chosen: Mapping[int, tuple[torch.Tensor, torch.Tensor]], by_layer: Mapping[int, list[int]]
    ) -> tuple[tuple[AnyIntervention, ...], dict[str, torch.Tensor]]:
        tensors: dict[str, torch.Tensor] = {}
        for layer, (unit, spread) in chosen.items():
            tensors[tensor_name(self.key, _SITE, layer)] = unit
            tensors[tensor_name(self.key, _SITE, layer, "sigma")] = spread
        edit = HeadDirectionSpec(
            name=identifier(self.key),
            directions=TensorRef(key=self.key),
            strength=self._strength,
            heads={layer: tuple(heads) for layer, heads in by_layer.items()},
            positions=self._positions,
        )
        return (edit,), tensors

    def _after(
        self, chosen: Mapping[int, tuple[torch.Tensor, torch.Tensor]], by_layer: Mapping[int, list[int]]
    ) -> tuple[tuple[AnyIntervention, ...], dict[str, torch.Tensor]]:
        tensors = {
            tensor_name(self.key, "attention_output", layer): (spread.unsqueeze(-1) * unit).flatten()
            for layer, (unit, spread) in chosen.items()
        }
        edits = tuple(
            SteeringSpec(
                name=identifier(f"{self.key}_{layer}"),
                site="attention_output",
                layer=layer,
                vector=TensorRef(key=self.key),
                coefficient=self._strength,
                positions=self._positions,
            )
            for layer in by_layer
        )
        return edits, tensors

    def _sigma(self, sizes: Sizes) -> torch.Tensor:
        """σ by flat index, 1 where the file says nothing."""
        if self.sigma is None:
            return torch.ones(sizes.n_layers * sizes.n_heads)
        found = self.finite(_tensor(self.sigma), "sigma").flatten()
        if (found < 0).any():
            raise self.refuse("sigma holds negative values, and standard deviations are none")
        if self.sigma.shape in self._grids(sizes):
            flat = [layer * sizes.n_heads + head for layer, head in self.heads]
            if self.sigma.ndim == 1 and len(flat) == len(found) and flat != sorted(flat):
                raise self.refuse(
                    f"sigma has {len(found)} values, by head number or in the order of the heads, which "
                    "differ here; give it as [layers, heads]"
                )
            return found
        sigma = torch.ones(sizes.n_layers * sizes.n_heads)
        for (layer, head), value in zip(self.heads, found, strict=True):
            sigma[layer * sizes.n_heads + head] = value
        return sigma


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    # To the machine's byte order and a type that torch has (numpy's long double is none).
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
