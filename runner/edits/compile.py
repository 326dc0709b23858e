"""From a spec to an IntervenableModel: checked against the model, laid over its anatomy, made of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import safetensors.torch
import torch

from subvene.interventions import REGISTRY, ActivationIntervention, Sizes, TensorError, TensorTable
from subvene.interventions.tensors import UNREADABLE, Part
from subvene.runner.edits.gate_compile import gating_of, in_words
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.edits.sources import Declared, Reading
from subvene.runner.edits.whole_sources import is_by_index
from subvene.runner.edits.whole_tensor import WholeTensorModel
from subvene.runner.models.anatomy import (
    Anatomy,
    AnatomyError,
    component_module,
    nearest_component,
    reads_one_text,
    sizes_from_config,
)
from subvene.runner.models.parts import ModuleSizes, PartSizes
from subvene.specs import (
    SITES,
    AnyIntervention,
    InterventionSpec,
    PyveneSpec,
    SourceRef,
    SubveneError,
    TensorRef,
)
from subvene.specs._pyvene_names import LAYERED
from subvene.specs.sources import reads

# For entries that name a module by its path, whose tensors no size of the model decides.
NO_SIZES = Sizes(n_layers=0, width=0, n_heads=0, head_dim=0)


class CompileError(SubveneError, ValueError):
    """The spec does not fit the model; the message lists every place where it does not."""


def compile_spec(
    spec: InterventionSpec,
    model: torch.nn.Module,
    *,
    folder: Path | None = None,
    own_tensors: Mapping[str, torch.Tensor] | None = None,
) -> IntervenableModel:
    """Compile the interventions of `spec` onto `model`, which is left as it is.

    Interventions at sites need a decoder language model. Those that name modules by their paths (`kind:
    pyvene` with `component:`) work on any transformers model; on one that is no decoder language model they
    edit whole tensors, and the result is a `WholeTensorModel`.

    Args:
        spec: a valid spec.
        model: a loaded transformers model.
        folder: where relative tensor files are looked for (the spec's folder).
        own_tensors: tensors for references without a file (those of a fit), by full name.

    Raises:
        CompileError: layers, heads or sites that this model does not have; every one is listed.
        TensorError: a tensor is missing, of another shape, or not finite.
    """
    anatomy = _anatomy(spec, model)
    if anatomy is not None:
        check_sizes(spec, anatomy.sizes)
    sizes = PartSizes.of(anatomy) if anatomy is not None else ModuleSizes.of(model)
    representations: list[Representation] = []
    readings: dict[int, Reading] = {}
    entries: list[tuple[str, list[str]]] = []
    problems: list[str] = []
    for i, declared in enumerate(spec.interventions):
        try:
            table = _table(declared, folder or Path(), own_tensors)
            if anatomy is None:
                _check_by_index(declared, model)
            built = REGISTRY[declared.kind].build(declared, table, sizes)
            components = [_component(model, anatomy, site, layer) for site, layer, _ in built]
            if anatomy is not None:
                _place_columns(anatomy, declared, built)
            if reads(declared) is not None:
                readings[len(representations)] = _reading(model, anatomy, declared, built[0][2])
            if declared.is_gated:
                _gate(declared, built, _gate_table(declared, folder or Path(), own_tensors), sizes, anatomy)
        except SubveneError as error:
            problems.append(f"interventions[{i}] ({declared.kind}): {error}")
            continue
        for component, (_, _, edit) in zip(components, built, strict=True):
            representations.append({"component": component, "intervention": edit})
        entries.append((entry_name(spec, i), [place(site, layer) for site, layer, _ in built]))
    if problems:
        raise CompileError("\n".join(problems))
    share_parameters(spec, representations, entries)
    acts_on: dict[str, tuple[str, ...]] = {}
    for name, source in spec.sources.items():
        if source.interventions and anatomy is None:
            raise CompileError(
                f"sources.{name}.interventions: expected none: {type(model).__name__} is no decoder language "
                "model whose blocks are known, and its sources are run as they are"
            )
        for acting in source.interventions:
            acts_on[acting] = (*acts_on.get(acting, ()), name)
    compiled = IntervenableModel if anatomy is not None else WholeTensorModel
    return compiled(representations, model, entries, Declared(spec.sources, readings, acts_on))


def _gate(
    declared: AnyIntervention, built: Sequence[Any], table: TensorTable, sizes: Sizes, anatomy: Anatomy | None
) -> None:
    """Let the edits of one declared intervention act when it says.

    Raises:
        CompileError: where tokens stand in a prompt and a response cannot be told in this model.
    """
    if anatomy is None:
        raise CompileError(
            f"{'when' if declared.when is not None else 'during'}: this is no decoder language model whose "
            "blocks are known, and neither sites nor prompts and responses can be told in it"
        )
    gating = gating_of(declared, table, sizes, [(site, layer) for site, layer, _ in built], anatomy)
    for _, _, edit in built:
        edit.gating = gating


def _place_columns(anatomy: Anatomy, declared: AnyIntervention, built: Sequence[Any]) -> None:
    """Let edits of a query, key or value that one module computes together edit their own columns.

    Raises:
        CompileError: pyvene's classes have their own way to columns.
    """
    for site, layer, edit in built:
        columns = anatomy.columns(site, layer) if layer is not None else None
        if columns is None:
            continue
        if isinstance(declared, PyveneSpec):
            raise CompileError(
                f"site: this model computes its {site} together with others in one module; name it as "
                f"`component: {site}_output` (or head_{site}_output)"
            )
        edit.act_on(columns)


def _reading(model: torch.nn.Module, anatomy: Anatomy | None, declared: Any, edit: Any) -> Reading:
    """What an intervention reads of a source, at a place of this model."""
    ref = declared.source
    if anatomy is None:
        return _raw_reading(model, declared, ref)
    sizes = PartSizes.of(anatomy)
    site, component = ref.site or declared.site, ref.component
    if ref.site is None and component is None:
        component = declared.component
    site = None if ref.component is not None or component is not None else site
    layer = declared.layer if ref.layer is None else ref.layer
    heads = ref.heads or declared.heads
    if site is not None and anatomy.columns(site, layer) is not None:
        raise CompileError(
            f"source: this model computes its {site} together with others in one module; name it as "
            f"`component: {site}_output`"
        )
    if site is not None:
        part = Part(site, None) if heads is None else Part.of_heads(site, heads, sizes.head_dim)
    elif component in LAYERED:
        part = sizes.part(component, layer, heads)
    else:
        part = Part(component, None)
    layer = layer if site is not None else None
    path = _component(model, anatomy, part.site, layer)
    rule = declared.positions if ref.positions is None else ref.positions
    return Reading.of(ref, path, place(part.site, layer), positions=rule, columns=part.columns)


def _raw_reading(model: torch.nn.Module, declared: Any, ref: SourceRef) -> Reading:
    """What is read of a source where the model's blocks are not known: vectors by number, module by path."""
    name = type(model).__name__
    rule = declared.positions if ref.positions is None else ref.positions
    if ref.site is not None or ref.layer is not None or ref.heads is not None or not is_by_index(rule):
        raise CompileError(
            f"source: {name} is no decoder language model whose blocks are known: expected a module's path "
            "(`component:`) or nothing, and positions `all` or `{indices: […]}` from the start"
        )
    if ref.pair not in ("equal", "broadcast"):
        raise CompileError(
            f"source.pair: expected equal or broadcast, found {ref.pair}: how many vectors {name} has there "
            "is known when it has run"
        )
    path = _component(model, None, str(ref.component or declared.component), None)
    return Reading.of(ref, path, path, positions=rule)


class Representation(TypedDict):
    """What pyvene is told of one edit: the module's path with `.input` or `.output`, and what acts there."""

    component: str
    intervention: ActivationIntervention


def share_parameters(
    spec: InterventionSpec, representations: Sequence[Representation], entries: Sequence[Any]
) -> None:
    """Give the interventions that share parameters the same ones: those of the first.

    Raises:
        CompileError: what one of them stores is not what the first stores, or is for another width.
    """
    first: dict[str, tuple[int, Any]] = {}
    place_of = 0
    for i, (declared, (_, sites)) in enumerate(zip(spec.interventions, entries, strict=True)):
        edit = representations[place_of]["intervention"]
        place_of += len(sites)
        if not isinstance(declared, PyveneSpec) or (name := declared.share) is None:
            continue
        j, kept = first.setdefault(name, (i, edit))
        if kept is edit:
            continue
        own, wanted = edit.inner.state_dict(), kept.inner.state_dict()
        shapes = [{name: list(t.shape) for name, t in state.items()} for state in (own, wanted)]
        if shapes[0] != shapes[1]:
            raise CompileError(
                f"interventions[{i}].share: it cannot share the parameters of interventions[{j}], which have "
                f"other shapes: {shapes[1]}, not {shapes[0]}"
            )
        if declared.state is not None and any(not torch.equal(own[name], wanted[name]) for name in own):
            raise CompileError(
                f"interventions[{i}].share: it stores other parameters than interventions[{j}], which it "
                "shares them with; store the same, or leave `share` out"
            )
        edit.inner = kept.inner


def needs_anatomy(spec: InterventionSpec) -> bool:
    """Whether an intervention is at a site, and not at a module that is named by its path."""
    return not all(declared.module_path is not None for declared in spec.interventions)


def check_config(spec: InterventionSpec, config: Any) -> None:
    """Check a spec against a model's config, as far as its interventions are at sites.

    Raises:
        CompileError: naming every field that is out of range.
        AnatomyError: the config is not that of a model of attention blocks, and a site needs one.
    """
    if needs_anatomy(spec):
        check_sizes(spec, sizes_from_config(config))


def _anatomy(spec: InterventionSpec, model: torch.nn.Module) -> Anatomy | None:
    """The model's anatomy; None for a model that is no decoder language model, if the spec needs none."""
    if needs_anatomy(spec):
        try:
            return Anatomy.of(model)
        except AnatomyError as error:
            raise AnatomyError(
                f"{error}. Any module of any model can be named by its path: `kind: pyvene` with `component:`"
            ) from error
    if getattr(model, "config", None) is None:
        raise CompileError(
            f"{type(model).__name__} has no `config`, which pyvene needs; wrap it in a "
            "transformers.PreTrainedModel, or give it a transformers.PretrainedConfig as `config`"
        )
    if not reads_one_text(model):
        return None
    try:
        return Anatomy.of(model)
    except AnatomyError:
        return None


def _check_by_index(declared: AnyIntervention, model: torch.nn.Module) -> None:
    if not is_by_index(declared.positions):
        raise CompileError(
            f"positions: expected all or indices from the start, found {declared.positions!r}: "
            f"{type(model).__name__} is no decoder language model whose blocks are known, so prompt and "
            "response cannot be told apart in it"
        )


def entry_name(spec: InterventionSpec, i: int) -> str:
    """What receipts call the i-th intervention: its name, or its kind and place in the file."""
    declared = spec.interventions[i]
    return declared.name or f"{declared.kind}_{i}"


def place(site: str, layer: int | None) -> str:
    """`site[layer]`, or the module path of a raw component."""
    return site if layer is None else f"{site}[{layer}]"


def check_sizes(spec: InterventionSpec, sizes: Sizes) -> None:
    """Check layer and head indices against a model's sizes, which its config alone tells.

    Raises:
        CompileError: naming every field that is out of range.
    """
    problems = []

    def check(path: str, what: str, index: int, count: int) -> None:
        if index >= count:
            problems.append(f"{path}: expected a {what} from 0 to {count - 1} for this model, found {index}")

    for i, declared in enumerate(spec.interventions):
        path = f"interventions[{i}]"
        if (layer := getattr(declared, "layer", None)) is not None:
            check(f"{path}.layer", "layer", layer, sizes.n_layers)
        for field in ("write_heads", "read_heads"):
            heads = getattr(declared, field, "all")
            for head in () if isinstance(heads, str) else heads:
                check(f"{path}.{field}", "head", head, sizes.n_heads)
        for loc, gate in declared.when.measured() if declared.when is not None else ():
            if gate.layer is not None:
                check(f"{path}.when{in_words(loc)}.layer", "layer", gate.layer, sizes.n_layers)
        by_layer = getattr(declared, "heads", None) or {}
        if not isinstance(by_layer, Mapping):
            # Of pyvene's components some have as many heads as keys and values have: found out later.
            for head in by_layer if declared.site is not None else ():
                check(f"{path}.heads", "head", head, sizes.n_heads)
            by_layer = {}
        if (ref := reads(declared)) is not None:
            if ref.layer is not None:
                check(f"{path}.source.layer", "layer", ref.layer, sizes.n_layers)
            for head in (ref.heads or ()) if (ref.site or declared.site) is not None else ():
                check(f"{path}.source.heads", "head", head, sizes.n_heads)
        for layer, heads in by_layer.items():
            check(f"{path}.heads", "layer", layer, sizes.n_layers)
            for head in heads:
                check(f"{path}.heads[{layer}]", "head", head, sizes.n_heads)
    if problems:
        raise CompileError("\n".join(problems))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        TensorError: no such file, or it is truncated or no safetensors file.
    """
    if not path.is_file():
        raise TensorError(f"{path}: no such tensor file")
    try:
        return safetensors.torch.load_file(path)
    except UNREADABLE as error:
        raise TensorError(f"{path}: not a readable safetensors file ({error})") from error


def _table(
    declared: AnyIntervention, folder: Path, own_tensors: Mapping[str, torch.Tensor] | None
) -> TensorTable:
    return _table_of([ref for _, ref in declared.tensor_refs()], folder, own_tensors)


def _gate_table(
    declared: AnyIntervention, folder: Path, own_tensors: Mapping[str, torch.Tensor] | None
) -> TensorTable:
    return _table_of([ref for _, ref in declared.gate_refs()], folder, own_tensors)


def _table_of(
    refs: Sequence[TensorRef], folder: Path, own_tensors: Mapping[str, torch.Tensor] | None
) -> TensorTable:
    tensors: dict[str, torch.Tensor] = {}
    for file in dict.fromkeys(ref.file for ref in refs):
        if file is not None:
            _add(tensors, load_tensors(folder / file), folder / file)
        elif own_tensors is not None:
            _add(tensors, own_tensors, "the fit")
        else:
            raise CompileError(
                f"tensor {refs[0].key!r} has no file: it comes from this spec's `fit:`, which has not been "
                "run; run `subvene fit SPEC -o FOLDER` and use the folder"
            )
    origin = ", ".join(dict.fromkeys(str(folder / ref.file) if ref.file else "the fit" for ref in refs))
    return TensorTable(tensors, origin)


def _add(tensors: dict[str, torch.Tensor], more: Mapping[str, torch.Tensor], origin: Path | str) -> None:
    """Put a second file's tensors beside those of the first; a name that both have must mean the same."""
    for name, tensor in more.items():
        if name in tensors and not torch.equal(tensors[name].double(), tensor.double()):
            raise TensorError(
                f"{origin}: tensor {name!r} is another one in the other file of this intervention"
            )
        tensors[name] = tensor


def _component(model: torch.nn.Module, anatomy: Anatomy | None, site: str, layer: int | None) -> str:
    if anatomy is not None and layer is not None and site in SITES:
        return anatomy.component(site, layer)
    try:
        component_module(model, site)
    except AttributeError as error:
        near = nearest_component(model, site)
        hint = f"; did you mean {near}?" if near else ""
        raise CompileError(f"component {site!r}: this model has no such module ({error}){hint}") from error
    return site
