"""What tells the model that an artifact was made for from another one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict, final

import torch

from subvene.interventions.tensors import OWN_WIDTHS
from subvene.runner.models.anatomy import Anatomy, component_module, sizes_from_config, text_config
from subvene.runner.models.parts import PartSizes
from subvene.specs import InterventionSpec


class ConfigFingerprint(TypedDict):
    """What a config tells of a model of attention blocks."""

    model_type: str
    n_layers: int
    width: int
    n_heads: int
    head_dim: int
    vocab_size: int | None
    revision: str | None


@final
class BlocksFingerprint(ConfigFingerprint):
    """Of a decoder language model; `name` is how the spec calls it.

    `widths` are of the places that are edited whose width is no count above: `mlp_neurons[3]` and the like.
    """

    architecture: str
    widths: NotRequired[dict[str, int]]
    name: NotRequired[str]


@final
class ModulesFingerprint(TypedDict):
    """Of a model whose blocks are not known: the modules that a spec names by their paths, in words."""

    model_type: str
    architecture: str
    n_layers: None
    width: None
    n_heads: None
    head_dim: None
    modules: dict[str, str]
    vocab_size: int | None
    revision: str | None
    name: NotRequired[str]


ModelFingerprint = BlocksFingerprint | ModulesFingerprint


def config_fingerprint(config: Any) -> ConfigFingerprint:
    """A model's fingerprint as far as its config alone tells it.

    Raises:
        AnatomyError: the config does not describe a model of attention blocks.
    """
    sizes = sizes_from_config(config)
    return {
        "model_type": text_config(config).model_type,
        "n_layers": sizes.n_layers,
        "width": sizes.width,
        "n_heads": sizes.n_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": text_config(config).vocab_size,
        "revision": getattr(config, "_commit_hash", None),
    }


def model_fingerprint(model: Any) -> BlocksFingerprint:
    """The fingerprint of a loaded decoder language model, with heads as its modules have them.

    Raises:
        AnatomyError: its blocks are not known.
    """
    sizes = Anatomy.of(model).sizes
    return {
        **config_fingerprint(model.config),
        "architecture": type(model).__name__,
        "n_layers": sizes.n_layers,
        "n_heads": sizes.n_heads,
        "head_dim": sizes.head_dim,
    }


def own_widths(model: Any, places: Iterable[str]) -> dict[str, int]:
    """The widths of those places (`mlp_neurons[3]`) that only the modules of a model tell."""
    sizes: PartSizes | None = None
    found: dict[str, int] = {}
    for place in places:
        site, _, layer = place.rstrip("]").rpartition("[")
        if site in OWN_WIDTHS:
            sizes = sizes or PartSizes.of(Anatomy.of(model))
            found[place] = sizes.site_width(site, int(layer))
    return found


def modules_fingerprint(spec: InterventionSpec, model: torch.nn.Module) -> ModulesFingerprint:
    """The fingerprint of any other model: what the modules are that a spec names by their paths."""
    config: Any = model.config
    paths = [str(declared.module_path) for declared in spec.interventions]
    return {
        "model_type": text_config(config).model_type,
        "architecture": type(model).__name__,
        "n_layers": None,
        "width": None,
        "n_heads": None,
        "head_dim": None,
        "modules": {path: _module_in_words(model, path) for path in paths},
        "vocab_size": getattr(text_config(config), "vocab_size", None),
        "revision": getattr(config, "_commit_hash", None),
    }


def _module_in_words(model: torch.nn.Module, component: str) -> str:
    try:
        module = component_module(model, component)[0]
    except AttributeError:
        return "no such module"
    shapes = {name: list(parameter.shape) for name, parameter in module.named_parameters()}
    return f"{type(module).__name__} {json.dumps(shapes)}"
