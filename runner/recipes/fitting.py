"""Fitting: run a spec's recipe and compile its interventions with the tensors that come out."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from subvene.interventions import Sizes
from subvene.runner.edits.compile import CompileError, check_sizes
from subvene.runner.edits.gate_compile import in_words
from subvene.runner.files.json_value import Json
from subvene.runner.files.reporting import reporting
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, sizes_from_config
from subvene.runner.models.chat_settings import refuse_overrides, with_chat
from subvene.runner.models.loading import check_given, load_config, load_model, with_overrides
from subvene.runner.recipes import RECIPES, Fitted, Reach
from subvene.runner.recipes.base import FOR_GATES, Origin
from subvene.runner.recipes.by_name import asked, is_recipe, name_of
from subvene.specs import ExperimentSpec, InterventionSpec, SubveneError, load_spec, parse_tensor_name
from subvene.specs.gates import MeasuredGate, comes_before
from subvene.specs.interventions.base import BaseIntervention
from subvene.specs.recipes.base import BaseRecipe


def fit(
    spec: ExperimentSpec | str | os.PathLike[str],
    model: torch.nn.Module | IntervenedModel | str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    work: str | os.PathLike[str] | None = None,
    data: Any = None,
    logging_dir: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> IntervenedModel:
    """Run the `fit:` block of a spec, or a recipe by its name.

        fit("mean_difference", "Qwen/Qwen2.5-0.5B", pairs=[("Joy!", "Woe.")], layer=14, coefficient=2.0)

    Args:
        spec: an experiment spec with a `fit:` block, or its path; or a recipe's name, with fields of the
            recipe and of the intervention that uses what it gives as keywords.
        model: an already loaded model to fit on, with its `tokenizer`, or an `IntervenedModel`, which has
            both and whose own interventions are left out; or what the spec's `model:` would name.
        tokenizer: the model's.
        folder: where relative files are looked for; default: the spec's folder.
        seed: of what the recipe draws at random; default: the spec's.
        work: folder where the recipe keeps, by content, what other fits may need; default: nothing is kept.
        data: what is fitted on, in place of what the `fit:` block names: a `datasets.Dataset`, a DataFrame or
            a list of rows, whose columns are those of a file (pairs for `mean_difference`, preferences or
            TruthfulQA's questions for `localized_edit`, TruthfulQA's questions for `iti`); or what those are
            read into.
        logging_dir: of `report_to: tensorboard`; default: `runs/KEY/tensorboard`.
        **overrides: fields of the spec's `model:` to replace; of a recipe that is named also its own fields
            (`pairs=`, `data=`, `traits=` take rows, a path, a Hub dataset's id, or what a spec says there),
            those of its usual intervention (`layer=`, `coefficient=`, `positions=`, `kind=` for another), or
            `interventions=`, a list of mappings as a file has them, and `report_to=`.

    Returns:
        The model with its interventions, whose `save_pretrained` writes every fitted layer.

    Raises:
        SpecError: the spec or its file of pairs is not valid; no model has been loaded.
        SubveneError: the recipe cannot be fitted on this data (no model has been loaded), or there is no
            direction where an intervention needs one.
        NotFiniteError: the model's own activations are not finite.
        CompileError: a layer is out of the model's range; nothing has been fitted, no weights loaded.
    """
    own: Any = model
    if isinstance(model, IntervenedModel):
        own, tokenizer = model.model, tokenizer or model.tokenizer
    if is_recipe(spec):
        ask = asked(str(spec), name_of(own), data, overrides)
        spec, data, overrides = ask.spec, ask.data, ask.overrides
    elif not isinstance(spec, InterventionSpec):
        folder = Path(spec).parent if folder is None else folder
    spec = _with_fits(spec)
    folder = Path() if folder is None else Path(folder)
    if isinstance(model, str | os.PathLike):
        own, overrides = None, overrides | {"name": os.fspath(model)}
    seed = spec.seed if seed is None else _seed(seed)
    read = _read(spec.fits, folder, data, seed)
    if own is None:
        spec = with_overrides(spec, overrides)
        check_reach(spec, sizes_from_config(load_config(spec.model, **overrides)))
        own, tokenizer = load_model(spec.model, **overrides)
    elif tokenizer is None:
        raise SubveneError("fitting on an already loaded model needs its tokenizer too; pass tokenizer=")
    else:
        refuse_overrides(overrides)
        spec = with_overrides(spec, overrides)
        tokenizer = with_chat(tokenizer, spec.model)
        check_reach(spec, Anatomy.of(own).sizes)
        check_given(own, tokenizer, spec.model.name)
    tensors, told = _fit_all(spec, read, own, tokenizer, seed, work, logging_dir)
    return IntervenedModel.from_spec(
        spec,
        model=own,
        tokenizer=tokenizer,
        tensors=tensors,
        folder=folder,
        provenance={"model": spec.model.name, **provenance_of_all(told)},
    )


def _seed(seed: object) -> int:
    """A seed as a file may have it: what draws nothing at random would take anything."""
    found = operator.index(seed) if hasattr(seed, "__index__") and not isinstance(seed, bool) else -1
    if not 0 <= found < 2**63:
        raise SubveneError(f"fit: seed: expected an integer >= 0 and < 2**63, found {seed!r}")
    return found


def _with_fits(spec: InterventionSpec | str | os.PathLike[str]) -> ExperimentSpec:
    """A spec, or that of a path, once it is seen that it says how to fit."""
    declared = spec if isinstance(spec, InterventionSpec) else load_spec(Path(spec))
    if not isinstance(declared, ExperimentSpec) or not declared.fits:
        what = "this spec" if isinstance(spec, InterventionSpec) else str(spec)
        raise SubveneError(f"{what}: there is no `fit:` block, so there is nothing to fit")
    return declared


def _fit_all(
    spec: ExperimentSpec,
    read: Mapping[str, object],
    model: torch.nn.Module,
    tokenizer: Any,
    seed: int,
    work: str | os.PathLike[str] | None,
    logging_dir: str | os.PathLike[str] | None,
) -> tuple[dict[str, torch.Tensor], list[Mapping[str, Json]]]:
    """Every fit of a spec, in its order: their tensors, and how each came about."""
    tensors: dict[str, torch.Tensor] = {}
    told: list[Mapping[str, Json]] = []
    kept, project = None if work is None else Path(work), spec.fits[0].keys[0]
    with reporting(spec.trackers, project, Path(logging_dir or Path("runs", project, "tensorboard"))):
        for recipe in spec.fits:
            on = fitted_on(spec, recipe, lambda one: read[one.keys[0]], tensors)
            fitted = fit_one(spec, recipe, on, model, tokenizer, seed=seed, work=kept)
            tensors |= fitted.tensors
            told.append(fitted.provenance)
    return tensors, told


def fit_one(
    spec: ExperimentSpec,
    recipe: BaseRecipe,
    data: Any,
    model: torch.nn.Module,
    tokenizer: Any,
    *,
    seed: int,
    work: Path | None,
    anatomy: Anatomy | None = None,
) -> Fitted:
    """Run one recipe of a spec.

    Args:
        spec: whose interventions need what it gives.
        recipe: the recipe.
        data: what it is fitted on (`fitted_on`).
        model: the loaded model.
        tokenizer: the model's.
        seed: of what is drawn at random.
        work: folder for what another fit may need again; None: nothing is kept.
        anatomy: of the model, where something else than this process runs it.

    Raises:
        SubveneError: there is no direction where an intervention needs one.
    """
    how = RECIPES[recipe.recipe]
    fitted = how.fit(recipe, data, anatomy or Anatomy.of(model), tokenizer, seed=seed, work=work)
    _refuse_left_out(spec, fitted.left_out)
    return fitted


def fitted_on(
    spec: ExperimentSpec,
    recipe: BaseRecipe,
    data: Callable[[BaseRecipe], Any],
    tensors: Mapping[str, torch.Tensor],
) -> Any:
    """What a recipe is fitted on: its data, and what an earlier fit gave where it is made from one.

    Args:
        spec: with all its fits.
        recipe: one of them.
        data: recipe → what it reads.
        tensors: what the earlier fits gave.
    """
    made, source = RECIPES[recipe.recipe].made, recipe.made_from
    if made is None or source is None:
        return data(recipe)
    first = next(one for one in spec.fits if source in one.keys)
    origin = Origin(first, RECIPES[first.recipe], data(first), of_key(tensors, source))
    return made.data(recipe, data(recipe), origin)


def of_key(tensors: Mapping[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with a key."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if (place := parse_tensor_name(name)) is not None and place.key == key
    }


def provenance_of_all(told: Sequence[Mapping[str, Json]]) -> dict[str, Json]:
    """That of the one fit; of several, `fits` with that of each, and the model that all of them have."""
    if len(told) == 1:
        return dict(told[0])
    model = {"model": told[0]["model"]} if told and "model" in told[0] else {}
    return model | {"fits": [{k: v for k, v in one.items() if k not in model} for one in told]}


def _read(fits: Sequence[BaseRecipe], folder: Path, data: Any, seed: int) -> dict[str, object]:
    """What each recipe fits on, by its first key."""
    if data is not None and len(fits) > 1:
        raise SubveneError(
            "data: this spec has several fits; name files in it, or fit each of them with a spec of its own"
        )
    read = {}
    for recipe in fits:
        how = RECIPES[recipe.recipe]
        read[recipe.keys[0]] = how.read(recipe, folder) if data is None else how.given(recipe, data)
        how.check(recipe, read[recipe.keys[0]], seed)
    return read


def _refuse_left_out(spec: ExperimentSpec, left_out: Mapping[tuple[str, str, int], str]) -> None:
    """Refuse interventions at layers where the fit has found no direction.

    Raises:
        SubveneError: naming the intervention, the layer, and why there is none.
    """
    for i, declared in enumerate(spec.interventions):
        site, layer = declared.site, getattr(declared, "layer", None)
        named = [(name, ref, site, layer) for name, ref in declared.tensor_refs()]
        for loc, gate in declared.when.measured() if declared.when is not None else ():
            if gate.ref is not None:
                named.append((f"when{in_words(loc)}.vector", gate.ref, gate.site, gate.layer))
        for name, ref, at_site, at_layer in named:
            where = None if at_site is None or at_layer is None else (ref.key, at_site, at_layer)
            reason = None if where is None else left_out.get(where)
            if ref.file is None and reason is not None:
                others = sorted(at for other, _, at in left_out if other == ref.key)
                raise SubveneError(
                    f"interventions[{i}].{name}: the fit gives {ref.key!r} no direction at "
                    f"{at_site}[{at_layer}]: {reason} (layers without one: {', '.join(map(str, others))}); "
                    "choose another layer, other data, or a dtype of more range"
                )


def check_reach(spec: ExperimentSpec, sizes: Sizes) -> None:
    """Check that the model has what is fitted and edited, and that what is edited is fitted.

    Raises:
        CompileError: naming the field that asks for what there is not.
    """
    check_sizes(spec, sizes)
    reaches: dict[str, Reach] = {}
    for recipe in spec.fits:
        how, source = RECIPES[recipe.recipe], recipe.made_from
        made = None if source is None or how.made is None else how.made.reach(recipe, reaches[source])
        reach = how.reach(recipe, sizes) if made is None else made
        reaches |= dict.fromkeys(recipe.keys, reach)
    for i, declared in enumerate(spec.interventions):
        fitted = [ref.key for _, ref in declared.tensor_refs() if ref.file is None]
        for key in fitted if spec.fits else ():
            giver = next(recipe for recipe in spec.fits if recipe.gives(key))
            _check_reached(f"interventions[{i}]", declared, reaches[giver.keys[0]])
        for loc, gate in declared.when.measured() if declared.when is not None and spec.fits else ():
            if gate.ref is not None and gate.ref.file is None:
                giver = next(recipe for recipe in spec.fits if recipe.gives(gate.ref.key))
                path = f"interventions[{i}].when{in_words(loc)}"
                _check_read(path, gate, reaches[giver.keys[0]], declared)


def _check_read(path: str, gate: MeasuredGate, reach: Reach, declared: BaseIntervention) -> None:
    """Check that a fit gives what a gate reads with, and at no layer that comes after what is edited."""
    if reach.kinds is not None and FOR_GATES not in reach.kinds:
        kinds = " or ".join(sorted(reach.kinds))
        raise CompileError(f"{path}.vector: `fit:` gives tensors for {kinds}, and no vector to read with")
    if gate.site != reach.site:
        raise CompileError(f"{path}.site: `fit:` gives {reach.site}, found {gate.site}")
    if gate.layer is not None and reach.layers is not None and gate.layer not in reach.layers:
        fitted = ", ".join(map(str, sorted(reach.layers)))
        raise CompileError(f"{path}.layer: `fit:` gives layers {fitted}, found {gate.layer}")
    site, layer = declared.site, getattr(declared, "layer", None)
    if gate.layer is None and site is not None and layer is not None:
        late = [at for at in sorted(reach.layers or ()) if not comes_before(gate.site, at, site, layer)]
        if late:
            raise CompileError(
                f"{path}.layer: left out, and `fit:` may choose {gate.site}[{late[0]}], which the model "
                f"computes after {site}[{layer}]; name `layers` in `fit:` that come before what is edited"
            )


def _check_reached(path: str, declared: BaseIntervention, reach: Reach) -> None:
    """Check that a fit gives what an intervention edits."""
    site, layer = declared.site or reach.site, getattr(declared, "layer", None)
    if reach.kinds is not None and declared.kind not in reach.kinds:
        kinds = " or ".join(sorted(reach.kinds))
        raise CompileError(f"{path}.kind: `fit:` gives tensors for {kinds}, found {declared.kind}")
    for name, value in reach.fields.items():
        if (said := getattr(declared, name, value)) != value:
            raise CompileError(f"{path}.{name}: `fit:` gives {value}, found {said}")
    if site != reach.site and site not in reach.also:
        sites = " and ".join([reach.site, *sorted(reach.also)])
        raise CompileError(f"{path}.site: `fit:` gives {sites}, found {site}")
    chosen = getattr(declared, "heads", None) or {}
    for name, edited in ((f"{path}.layer", [] if layer is None else [layer]), (f"{path}.heads", chosen)):
        if reach.layers is not None and (other := sorted(set(edited) - reach.layers)):
            fitted = ", ".join(map(str, sorted(reach.layers)))
            raise CompileError(f"{name}: `fit:` gives layers {fitted}, found {other[0]}")
    for at, heads in chosen.items():
        if reach.heads is not None and (other := sorted(set(heads) - reach.heads[at])):
            fitted = ", ".join(map(str, sorted(reach.heads[at])))
            raise CompileError(f"{path}.heads[{at}]: `fit:` gives heads {fitted}, found {other[0]}")
