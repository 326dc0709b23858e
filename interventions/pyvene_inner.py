"""A pyvene class made fresh from what its spec says of it."""

from __future__ import annotations

import types
from typing import Any, get_args

import torch

from subvene.interventions._pyvene import pyvene
from subvene.interventions.autoencoder import AutoencoderIntervention
from subvene.interventions.tensors import TensorError
from subvene.specs.interventions import PyveneClass

_PCA_STATE = ("pca_components", "pca_mean", "pca_std")
# Classes whose stock forward cannot be trained.
_OURS = {"AutoencoderIntervention": AutoencoderIntervention}


def make_inner(options: dict[str, Any], state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A fresh pyvene intervention of the declared class (`options["class"]`, `options["width"]`, …).

    `state` is looked at only for PCA, whose components are constructor arguments; load it afterwards.
    """
    name = options["class"]
    if name not in get_args(PyveneClass):
        raise ValueError(f"{name!r} is not one of pyvene's intervention classes that subvene allows")
    kwargs: dict[str, Any] = {
        "embed_dim": options["width"],
        "subspace_partition": options["subspace_partition"],
    }
    kwargs |= {k: options[k] for k in ("low_rank_dimension", "latent_dim") if options[k] is not None}
    if name == "PCARotatedSpaceIntervention":
        if missing := [part for part in _PCA_STATE if part not in state]:
            raise TensorError(
                f"PCARotatedSpaceIntervention needs {', '.join(_PCA_STATE)}; missing: {', '.join(missing)}"
            )
        if {state[part].shape[-1] for part in _PCA_STATE} - {options["width"]}:
            raise ValueError(f"{', '.join(_PCA_STATE)} need rows of the site's width {options['width']}")
        components, mean, std = (state[part].detach().cpu().numpy() for part in _PCA_STATE)
        kwargs |= {"pca": types.SimpleNamespace(components_=components), "pca_mean": mean, "pca_std": std}
    inner = _OURS.get(name, getattr(pyvene, name))(**kwargs)
    if options["subspace_partition"] is not None:
        # pyvene takes two numbers for the ends of a range: [3, 7] would be 3, 4, 5 and 6.
        inner.subspace_partition = [list(part) for part in options["subspace_partition"]]
    if name == "AutoencoderIntervention":
        # pyvene indexes the latent by this tensor; its default, the width, is no index at all.
        inner.set_interchange_dim(torch.arange(options["latent_dim"]))
    if name in ("PCARotatedSpaceIntervention", "JumpReLUAutoencoderIntervention"):
        latent = options["low_rank_dimension"] or len(state["pca_components"])
        inner.set_interchange_dim(torch.tensor(latent))
    return inner
