"""From a spec to an IntervenableModel: checked against the model, laid over its anatomy, made of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from subvene.interventions import REGISTRY, Sizes, TensorError, TensorTable
from subvene.runner.anatomy import Anatomy, component_module
from subvene.runner.intervenable import IntervenableModel
from subvene.specs import SITES, AnyIntervention, InterventionSpec, SubveneError


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

    Args:
        spec: a valid spec.
        model: a loaded transformers causal language model.
        folder: where relative tensor files are looked for (the spec's folder).
        own_tensors: tensors for references without a file (those of a fit), by full name.

    Raises:
        CompileError: layers, heads or sites that this model does not have; every one is listed.
        TensorError: a tensor is missing, of another shape, or not finite.
    """
    anatomy = Anatomy.of(model)
    check_sizes(spec, anatomy.sizes)
    representations: list[dict[str, Any]] = []
    entries: list[tuple[str, list[str]]] = []
    problems: list[str] = []
    for i, declared in enumerate(spec.interventions):
        try:
            table = _table(declared, folder or Path(), own_tensors)
            built = REGISTRY[declared.kind].build(declared, table, anatomy.sizes)
            components = [_component(anatomy, site, layer) for site, layer, _ in built]
        except SubveneError as error:
            problems.append(f"interventions[{i}] ({declared.kind}): {error}")
            continue
        for component, (_, _, edit) in zip(components, built, strict=True):
            representations.append({"component": component, "intervention": edit})
        entries.append((entry_name(spec, i), [place(site, layer) for site, layer, _ in built]))
    if problems:
        raise CompileError("\n".join(problems))
    return IntervenableModel(representations, model, entries)


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
        for layer, heads in (getattr(declared, "heads", None) or {}).items():
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
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise TensorError(f"{path}: not a readable safetensors file ({error})") from error


def _table(
    declared: AnyIntervention, folder: Path, own_tensors: Mapping[str, torch.Tensor] | None
) -> TensorTable:
    refs = [ref for _, ref in declared.tensor_refs()]
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
        if name in tensors and not torch.equal(tensors[name], tensor):
            raise TensorError(
                f"{origin}: tensor {name!r} is another one in the other file of this intervention"
            )
        tensors[name] = tensor


def _component(anatomy: Anatomy, site: str, layer: int | None) -> str:
    if layer is not None and site in SITES:
        return anatomy.component(site, layer)
    try:
        component_module(anatomy.model, site)
    except AttributeError as error:
        raise CompileError(f"component {site!r}: this model has no such module ({error})") from error
    return site
