"""Any class of pyvene's own interventions, from the allow-list of its spec, at any site.

pyvene's classes swap, add or rotate in a source activation. Here the source is constant (a stored tensor),
the class is applied to each token on its own, and the tokens that are not selected keep their activation.
"""

from __future__ import annotations

import types
from typing import Any, Self

import torch

from subvene.interventions._pyvene import pyvene
from subvene.interventions.base import ActivationIntervention
from subvene.interventions.tensors import Sizes, TensorError, TensorTable
from subvene.specs import PyveneSpec, tensor_name

_PCA_STATE = ("pca_components", "pca_mean", "pca_std")


class PyveneIntervention(ActivationIntervention):
    """h ← h + s·(f(h, source) − h), f being the wrapped pyvene class.

    Args:
        inner: the pyvene intervention; see `make_inner`.
        source: constant source activation, shape [width]; None for classes without one.
        **kwargs: see `ActivationIntervention`; `options` describe `inner` so that it can be rebuilt.
    """

    kind = "pyvene"
    buffer_names = ("source",)

    def __init__(
        self, inner: torch.nn.Module | None = None, source: torch.Tensor | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.inner = inner
        self.register_buffer("source", torch.zeros(0) if source is None else source.detach().float())

    @classmethod
    def build(
        cls, spec: PyveneSpec, table: TensorTable | None, sizes: Sizes
    ) -> list[tuple[str, int | None, Self]]:
        source = None
        if spec.site is not None:
            site, width = spec.site, sizes.site_width(spec.site)
            if spec.source is not None:
                source = table.get(spec.source.key, spec.site, spec.layer, shape=(width,))
        else:
            # Only the source knows how wide a module named by its path is; classes without one take any width.
            site, width = spec.component, None
            if spec.source is not None:
                source = table.checked(spec.source.key, tuple(table.tensors.get(spec.source.key, torch.empty(0)).shape))
                width = source.shape[-1]
        options = {
            "class": spec.class_name,
            "width": width,
            "low_rank_dimension": spec.low_rank_dimension,
            "latent_dim": spec.latent_dim,
            "subspaces": spec.subspaces,
            "subspace_partition": spec.subspace_partition,
        }
        state = {}
        if spec.state is not None:
            prefix = spec.state.key + "."
            state = {n.removeprefix(prefix): t for n, t in table.tensors.items() if n.startswith(prefix)}
            if not state:
                raise TensorError(f"{table.origin}: no parameters stored as {prefix}<parameter>")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            inner = make_inner(options, state)
        if state:
            try:
                inner.load_state_dict(inner.state_dict() | state)
            except RuntimeError as error:
                raise TensorError(f"{table.origin}: {spec.state.key!r} does not fit {spec.class_name}: {error}") from error
        edit = cls(inner, source, strength=torch.tensor(spec.strength), positions=spec.positions, options=options)
        return [(site, spec.layer, edit)]

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        stored = {f"{key}.state.{name}": value for name, value in self.inner.state_dict().items()}
        if self.source.numel():
            stored[key if layer is None else tensor_name(key, site, layer)] = self.source
        return stored

    def edit(
        self, h: torch.Tensor, scale: torch.Tensor, *, module_input: torch.Tensor | None = None, **context: Any
    ) -> torch.Tensor:
        if self.collects:
            return h
        source = self.source.to(h.dtype).expand_as(h) if self.source.numel() else None
        if self.needs_module_input:
            if module_input is None:
                raise ValueError("SkipIntervention needs the module's input, which only subvene's runner passes on")
            source = module_input.to(h.dtype)
        rows = h.reshape(-1, h.shape[-1])
        subspaces = self.options["subspaces"]
        # pyvene's classes expect one unit a row and write into their argument.
        edited = self.inner(
            rows.clone(),
            None if source is None else source.reshape(-1, h.shape[-1]),
            None if subspaces is None else [subspaces] * len(rows),
        )
        # lerp returns either end exactly, so that strength 1 is pyvene's own result bit for bit.
        return torch.lerp(h, edited.to(h.dtype).view_as(h), scale.expand_as(h))

    @property
    def collects(self) -> bool:
        """Whether the class only reads (`CollectIntervention`)."""
        return self.options.get("class") == "CollectIntervention"

    @property
    def needs_module_input(self) -> bool:
        """Whether the source is the input of the module whose output is edited (`SkipIntervention`)."""
        return self.options.get("class") == "SkipIntervention"

    @property
    def expects_change(self) -> bool:
        return not self.collects

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        # Children are loaded after their parent, so the inner class can still be made here.
        inner_prefix = prefix + "inner."
        state = {n.removeprefix(inner_prefix): t for n, t in state_dict.items() if n.startswith(inner_prefix)}
        self.inner = make_inner(self.options, state)


def make_inner(options: dict[str, Any], state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A fresh pyvene intervention of the declared class (`options["class"]`, `options["width"]`, …).

    `state` is looked at only for PCA, whose components are constructor arguments; load it afterwards.
    """
    name = options["class"]
    if name not in PyveneSpec.allowed_classes():
        raise ValueError(f"{name!r} is not one of pyvene's intervention classes that subvene allows")
    kwargs: dict[str, Any] = {"embed_dim": options["width"], "subspace_partition": options["subspace_partition"]}
    kwargs |= {k: options[k] for k in ("low_rank_dimension", "latent_dim") if options[k] is not None}
    if name == "PCARotatedSpaceIntervention":
        if missing := [part for part in _PCA_STATE if part not in state]:
            raise TensorError(f"PCARotatedSpaceIntervention needs {', '.join(_PCA_STATE)}; missing: {', '.join(missing)}")
        components, mean, std = (state[part].numpy() for part in _PCA_STATE)
        kwargs |= {"pca": types.SimpleNamespace(components_=components), "pca_mean": mean, "pca_std": std}
    inner = getattr(pyvene, name)(**kwargs)
    if name == "AutoencoderIntervention":
        # pyvene indexes the latent by this tensor; its default, the width, is no index at all.
        inner.set_interchange_dim(torch.arange(options["latent_dim"]))
    if name in ("PCARotatedSpaceIntervention", "JumpReLUAutoencoderIntervention"):
        latent = options["low_rank_dimension"] or len(state["pca_components"])
        inner.set_interchange_dim(torch.tensor(latent))
    return inner
