"""Fitting: run a spec's recipe and compile its interventions with the tensors that come out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from subvene.interventions import Sizes
from subvene.runner.anatomy import Anatomy, sizes_from_config
from subvene.runner.compile import CompileError, check_sizes
from subvene.runner.intervened import IntervenedModel
from subvene.runner.model import load_config, load_model, with_overrides
from subvene.runner.recipes import RECIPES
from subvene.specs import ExperimentSpec, InterventionSpec, SubveneError, load_spec, resolve_pairs


def fit(
    spec: ExperimentSpec | str | os.PathLike[str],
    *,
    model: torch.nn.Module | None = None,
    tokenizer: Any = None,
    folder: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> IntervenedModel:
    """Run the `fit:` block of a spec.

    Args:
        spec: an experiment spec with a `fit:` block, or its path.
        model: an already loaded model to fit on, with its `tokenizer`.
        tokenizer: the model's.
        folder: where relative files are looked for; default: the spec's folder.
        **overrides: fields of the spec's `model:` to replace.

    Returns:
        The model with its interventions, whose `save_pretrained` writes every fitted layer.

    Raises:
        SpecError: the spec or its file of pairs is not valid; no model has been loaded.
        CompileError: a layer is out of the model's range; nothing has been fitted, no weights loaded.
    """
    declared: InterventionSpec
    if isinstance(spec, InterventionSpec):
        what, declared = "this spec", spec
    else:
        what, declared = str(spec), load_spec(Path(spec))
        folder = Path(spec).parent if folder is None else folder
    if not isinstance(declared, ExperimentSpec) or declared.fit is None:
        raise SubveneError(f"{what}: there is no `fit:` block, so there is nothing to fit")
    spec, recipe = declared, declared.fit
    folder = Path() if folder is None else Path(folder)
    pairs = resolve_pairs(recipe.pairs, folder)
    if model is None:
        spec = with_overrides(spec, overrides)
        _check_layers(spec, sizes_from_config(load_config(spec.model, **overrides)))
        model, tokenizer = load_model(spec.model, **overrides)
    elif tokenizer is None:
        raise SubveneError("fitting on an already loaded model needs its tokenizer too; pass tokenizer=")
    else:
        _check_layers(spec, Anatomy.of(model).sizes)
    fitted = RECIPES[recipe.recipe](recipe, pairs, Anatomy.of(model), tokenizer)
    return IntervenedModel.from_spec(
        spec,
        model=model,
        tokenizer=tokenizer,
        tensors=fitted.tensors,
        folder=folder,
        provenance={"model": spec.model.name, **fitted.provenance},
    )


def _check_layers(spec: ExperimentSpec, sizes: Sizes) -> None:
    """Check that the model has the layers that are fitted and edited, and that what is edited is fitted."""
    check_sizes(spec, sizes)
    recipe = spec.fit
    if recipe is None:
        return
    if recipe.layers != "all" and max(recipe.layers) >= sizes.n_layers:
        raise CompileError(
            f"fit.layers: expected layers from 0 to {sizes.n_layers - 1} for this model, "
            f"found {max(recipe.layers)}"
        )
    for i, declared in enumerate(spec.interventions):
        if all(ref.file is not None for _, ref in declared.tensor_refs()):
            continue
        site, layer = getattr(declared, "site", None) or recipe.site, getattr(declared, "layer", None)
        if site != recipe.site:
            raise CompileError(f"interventions[{i}].site: `fit:` gives {recipe.site}, found {site}")
        if layer is not None and recipe.layers != "all" and layer not in recipe.layers:
            fitted = ", ".join(map(str, recipe.layers))
            raise CompileError(f"interventions[{i}].layer: `fit:` gives layers {fitted}, found {layer}")
