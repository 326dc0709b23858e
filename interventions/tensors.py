"""The stored tensors that interventions are built from, looked up by key, site and layer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import safetensors
import torch

from subvene.specs import Site, SubveneError, parse_tensor_name, tensor_name

# What safetensors raises for a file that is none; KeyError for a type of number that it does not know.
UNREADABLE = (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError)
OWN_WIDTHS = ("mlp_neurons", "query", "key", "value")
"""Sites of a width that only the model's modules tell."""
_NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def why_not_dense(tensor: torch.Tensor) -> str | None:
    """Why a tensor is not plain numbers in memory, in words that follow its name; None if it is."""
    odd = {
        "nested": tensor.is_nested,
        "quantised": tensor.is_quantized,
        f"of layout {tensor.layout}": tensor.layout != torch.strided,
        f"without values, on {tensor.device}": tensor.is_meta,
    }
    found = next((what for what, is_it in odd.items() if is_it), None)
    return None if found is None else f"is no dense tensor ({found})"


def why_unusable(tensor: torch.Tensor) -> str | None:
    """Why a tensor cannot stand in an artifact, in words that follow its name; None if it can."""
    if why := why_not_dense(tensor):
        return why
    # Integers, which no edit reads, are kept as they are; float8 has no arithmetic of its own.
    if tensor.dtype not in _NUMBERS and (tensor.is_floating_point() or tensor.is_complex()):
        return f"is {tensor.dtype}, expected {', '.join(map(str, _NUMBERS))}"
    return None if bool(torch.isfinite(tensor).all()) else "holds NaN or infinite values"


class TensorError(SubveneError, ValueError):
    """A tensor is missing, or has another shape than its intervention needs."""


@dataclass(frozen=True)
class Part:
    """Where an intervention acts: a site or a module's path, and which columns of the tensor there.

    Attributes:
        site: of ours, or a module's path.
        unit_width: how wide the class's vectors are; None where only the module knows.
        columns: of the tensor; None: all of them.
        unit: how many neighbouring columns belong to one vector (a head); None: all of them.
    """

    site: str
    unit_width: int | None
    columns: tuple[int, ...] | None = None
    unit: int | None = None

    @classmethod
    def of_heads(cls, site: str, heads: Sequence[int], head_dim: int) -> Part:
        """Heads that stand side by side in a tensor, each a vector of its own."""
        columns = tuple(column for h in heads for column in range(h * head_dim, (h + 1) * head_dim))
        return cls(site, head_dim, columns, head_dim)

    def total(self, width: int) -> int:
        """How many columns of a tensor of `width` it has."""
        return width if self.columns is None else len(self.columns)


@dataclass(frozen=True)
class Sizes:
    """What of a model's anatomy an intervention's tensors depend on (all counts, 0-based indices)."""

    n_layers: int
    width: int
    n_heads: int
    head_dim: int
    #: `site[layer]` → width, of sites whose width is no count above.
    widths: Mapping[str, int] = field(default_factory=dict, compare=False, kw_only=True)

    def site_width(self, site: str, layer: int | None = None) -> int:
        """Width of the activation at `site`: `n_heads * head_dim` for attention heads, else `width`.

        Args:
            site: of ours.
            layer: 0-based; asked for at sites whose width layers may differ in (neurons, query, key, value).

        Raises:
            TensorError: it is not known without the loaded model.
        """
        if site == "attention_heads":
            return self.n_heads * self.head_dim
        return self.own_width(site, layer) if site in OWN_WIDTHS else self.width

    def own_width(self, site: str, layer: int | None) -> int:
        """The width of a site that follows from no count of the model.

        Raises:
            TensorError: it is not known without the loaded model.
        """
        if (width := self.widths.get(f"{site}[{layer}]")) is None:
            raise TensorError(f"how wide {site}[{layer}] is, only the loaded model tells")
        return width

    def part(self, component: str, layer: int, heads: Sequence[int] | None) -> Part:
        """Where pyvene's component of block `layer` is, of which sizes alone tell nothing.

        Raises:
            TensorError: always; what knows the model's modules says better.
        """
        raise TensorError(f"where {component} of block {layer} is, only the loaded model tells")

    def module_width(self, component: str) -> int:
        """How wide a module's input or output is, of which sizes alone tell nothing.

        Raises:
            TensorError: always, as for `part`.
        """
        raise TensorError(f"how wide {component} is, only the loaded model tells")


def stored_name(key: str, site: str, layer: int | None, part: str | None = None) -> str:
    """The name that an artifact gives to a tensor; `layer` is None where the site is a module's path."""
    if layer is None:
        return key if part is None else f"{key}.{part}"
    return tensor_name(key, cast(Site, site), layer, part)


class TensorTable:
    """Tensors of one safetensors file (or of a fit that has just been made); it may hold none.

    Args:
        tensors: name → tensor; names as `subvene.specs.tensor_name` makes them, or plain ones.
        origin: what error messages call the table (a file's path).
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
        self.tensors = dict(tensors)
        self.origin = origin

    def layers(self, key: str, site: str, part: str | None = None) -> list[int]:
        """The layers for which `key` (or a part of it) is stored at `site`, ascending."""
        parsed = (parse_tensor_name(name) for name in self.tensors)
        return sorted({p[2] for p in parsed if p and p[0] == key and p[1] == site and p[3] == part})

    def one_or_all(self, layer: int | None, key: str, site: str, part: str | None = None) -> list[int]:
        """The layer that a spec names, or all for which `key` is stored.

        Raises:
            TensorError: the spec names none, and none is stored.
        """
        found = self.layers(key, site, part) if layer is None else [layer]
        if not found:
            what = "nothing" if part is None else f"no {part}"
            raise TensorError(f"{self.origin}: {what} under the key {key!r} at the site {site}")
        return found

    def find(self, key: str, site: Site, layer: int, part: str | None = None) -> str | None:
        """The name under which a tensor of `key` is stored: in full, or the plain key; None if it is not."""
        names = (tensor_name(key, site, layer, part), stored_name(key, site, None, part))
        return next((name for name in names if name in self.tensors), None)

    def get(
        self,
        key: str,
        site: Site,
        layer: int,
        *,
        shape: tuple[int, ...],
        part: str | None = None,
        nonzero: bool = False,
    ) -> torch.Tensor:
        """The tensor of `key` at `site[layer]`, float32, of exactly `shape`.

        A plain key that names no site is taken at its word; a key that names another site or layer than the
        spec does is refused, because that is how an off-by-one gets in.
        """
        name = self.find(key, site, layer, part)
        if name is None:
            full = tensor_name(key, site, layer, part)
            raise TensorError(f"{self.origin}: no tensor {full!r}; {self._what_there_is(key)}")
        parsed = parse_tensor_name(name)
        if parsed and (parsed[1], parsed[2]) != (site, layer):
            raise TensorError(
                f"{self.origin}: tensor {name!r} was made for {parsed[1]}[{parsed[2]}], and the spec puts it "
                f"at {site}[{layer}]; name the same site and layer, or refit"
            )
        tensor = self.checked(name, shape)
        if nonzero and not tensor.any():
            raise TensorError(f"{self.origin}: tensor {name!r} is zero everywhere, so it has no direction")
        return tensor

    def checked(self, name: str, shape: tuple[int, ...] | None) -> torch.Tensor:
        """The tensor called `name` in float32; its shape must be `shape` (if given), every value finite."""
        if name not in self.tensors:
            raise TensorError(f"{self.origin}: no tensor {name!r}; {self._what_there_is(name)}")
        tensor = self.tensors[name]
        if shape is not None and tuple(tensor.shape) != shape:
            raise TensorError(
                f"{self.origin}: tensor {name!r} has shape {list(tensor.shape)}, "
                f"expected {list(shape)} for this model"
            )
        if not tensor.is_floating_point():
            raise TensorError(f"{self.origin}: tensor {name!r} is {tensor.dtype}, expected floating point")
        tensor = tensor.detach().to(torch.float32, copy=True)
        if not torch.isfinite(tensor).all():
            raise TensorError(f"{self.origin}: tensor {name!r} holds NaN or infinite values")
        return tensor

    def _what_there_is(self, key: str) -> str:
        names = sorted(self.tensors)
        related = [n for n in names if n.startswith(key)] or names
        shown = ", ".join(related[:6]) + (f", … ({len(related)} in all)" if len(related) > 6 else "")
        return f"there is: {shown}" if names else "it holds no tensors"


class InventedTable(TensorTable):
    """A table that holds whatever it is asked for: what a kind's examples are built from.

    Tensors are drawn, the same ones for the same name.
    """

    def __init__(self) -> None:
        super().__init__({}, "the examples")

    def layers(self, key: str, site: str, part: str | None = None) -> list[int]:
        return [0, 1]

    def find(self, key: str, site: Site, layer: int, part: str | None = None) -> str | None:
        return tensor_name(key, site, layer, part)

    def checked(self, name: str, shape: tuple[int, ...] | None) -> torch.Tensor:
        if name not in self.tensors:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            self.tensors[name] = torch.randn(shape or (), generator=generator)
        return super().checked(name, shape)
