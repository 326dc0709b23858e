"""Amending an artifact: other values in its spec, with the tensors that it holds, and its hashes renewed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue

from subvene.interventions import REGISTRY, Sizes, TensorTable
from subvene.interventions.tensors import OWN_WIDTHS
from subvene.runner.artifacts import artifact
from subvene.runner.artifacts.packing import TENSORS
from subvene.runner.artifacts.vouchers import ArtifactError
from subvene.runner.edits.compile import NO_SIZES, check_sizes, compile_spec, entry_name
from subvene.runner.models.loading import load_skeleton
from subvene.specs import (
    AnyIntervention,
    InterventionSpec,
    SubveneError,
    dump_spec,
    parse_spec,
    parse_tensor_name,
)
from subvene.specs._flaws import nearest
from subvene.specs._nodes import Data


class AmendmentError(SubveneError, ValueError):
    """A change does not fit the artifact; nothing was written."""


def amend(source: Path | str, changes: Mapping[str, Data], output: Path | str | None = None) -> Path:
    """Write an artifact with other values of its interventions' fields; atomically.

    The weights of its model are not loaded: its config tells what it is made of.

    Args:
        source: the artifact's folder.
        changes: field, or `NAME.field` of the intervention of that name, with its new value: `layer`, 3. By
            which other names the kinds know a field (`strength` for steering's coefficient) is understood.
        output: where the new artifact goes; None: in place of the old one.

    Returns:
        The folder that was written.

    Raises:
        AmendmentError: there is no such intervention or field, or `source` holds files that would be lost.
        SpecError: a value is not what its field takes.
        CompileError: the model has no such layer or head.
        TensorError: the artifact holds no tensor for what is declared now.
        ArtifactError: the artifact is not what it should be, or holds a tensor that is of no use.
    """
    source = Path(source)
    output = source if output is None else Path(output)
    found = artifact.read(source)
    if output.resolve() == source.resolve():
        _refuse_more(source, found)
    else:
        artifact.check_free(output)
    spec, told = _changed(found, changes)
    check_tensors(spec, found)
    model = load_skeleton(spec.model)
    found.check_model(model)
    return artifact.write(
        output,
        spec,
        compile_spec(spec, model, own_tensors=found.tensors),
        tensors=found.tensors,
        provenance={**found.provenance, "amended": [*_amended(found), *told]},
    )


def _amended(found: artifact.Artifact) -> list[JsonValue]:
    """What was changed before."""
    before = found.provenance.get("amended")
    return before if isinstance(before, list) else []


def check_tensors(spec: InterventionSpec, found: artifact.Artifact) -> None:
    """Check that an artifact's model and tensors have what a spec declares.

    Raises:
        CompileError: the model has no such layer or head.
        TensorError: no such tensor is stored, or it has another shape.
        ArtifactError: a tensor that is stored for another layer or key could not be used there.
    """
    sizes = found.sizes or NO_SIZES
    if found.sizes is not None:
        check_sizes(spec, sizes)
    table = TensorTable(found.tensors, str(found.folder / TENSORS))
    for declared in spec.interventions:
        REGISTRY[declared.kind].build(declared, table, sizes)
    for name, tensor in found.tensors.items():
        if sizes is not NO_SIZES and (why := _why_of_no_use(name, tensor, sizes)):
            raise ArtifactError(
                f"{table.origin}: tensor {name!r} {why}, so it could not be used for this model; nothing was "
                "written: take the artifact anew from where it came from"
            )


def _why_of_no_use(name: str, tensor: torch.Tensor, sizes: Sizes) -> str | None:
    """Why nothing could be made of a tensor that another choice of layer or key would use."""
    parsed = parse_tensor_name(name)
    if parsed is None:
        return None
    if parsed.layer >= sizes.n_layers:
        return f"is of a layer beyond {sizes.n_layers - 1}, the model's last"
    if not tensor.is_floating_point():
        return f"is {tensor.dtype}, expected floating point"
    if parsed.site in OWN_WIDTHS and f"{parsed.site}[{parsed.layer}]" not in sizes.widths:
        return None  # only the loaded model tells
    width, shape = sizes.site_width(parsed.site, parsed.layer), list(tensor.shape)
    if parsed.part is None and tensor.numel() != width:
        return f"has shape {shape}, expected {width} numbers"
    if parsed.part in ("a", "b") and shape[1:] != [width]:
        return f"has shape {shape}, expected [rank, {width}]"
    return None


def _refuse_more(folder: Path, found: artifact.Artifact) -> None:
    known = {*found.fingerprint["sha256"], artifact.FINGERPRINT}
    if others := sorted(path.name for path in folder.iterdir() if path.name not in known):
        raise AmendmentError(
            f"{folder} holds more than the artifact ({', '.join(others[:3])}"
            f"{', …' if len(others) > 3 else ''}), which would be lost; write the new one "
            "elsewhere (`-o FOLDER`)"
        )


def _changed(found: artifact.Artifact, changes: Mapping[str, Data]) -> tuple[InterventionSpec, list[str]]:
    """The spec with the changes, checked, and each of them in words."""
    if not changes:
        raise AmendmentError("nothing to change: expected FIELD=VALUE or NAME.FIELD=VALUE")
    data = json.loads(dump_spec(found.spec, "json"))
    told = []
    for path, value in changes.items():
        i, field = _place(found.spec, path)
        declared = found.spec.interventions[i]
        before = declared.model_dump(mode="json", by_alias=True).get(field)
        data["interventions"][i][field] = value
        name = entry_name(found.spec, i)
        told.append(f"{name}.{field}: {json.dumps(before)} -> {_as_json(path, value)}")
    where = f"{found.folder / artifact.SPEC} as amended"
    spec = parse_spec(json.dumps(data, indent=2), where, "json", own_tensors=True)
    for i, declared in enumerate(spec.interventions):
        if outside := [ref.file for _, ref in declared.tensor_refs() if ref.file not in (None, TENSORS)]:
            raise AmendmentError(
                f"{entry_name(spec, i)}: an artifact has its own tensors, and {outside[0]!r} is another file"
            )
    return spec, told


def _as_json(path: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AmendmentError(
            f"{path}: expected finite numbers, text, lists and mappings, found {value!r}"
        ) from error


def _place(spec: InterventionSpec, path: str) -> tuple[int, str]:
    """Which intervention's which field a path names."""
    names = [entry_name(spec, i) for i in range(len(spec.interventions))]
    name, dot, field = path.rpartition(".")
    if not dot and len(names) > 1:
        raise AmendmentError(
            f"{path}: there are several interventions; say NAME.{path} with one of: {', '.join(names)}"
        )
    if dot and name not in names:
        raise AmendmentError(f"{path}: no intervention is called {name!r}; there are: {', '.join(names)}")
    i = names.index(name) if dot else 0
    return i, _field(spec.interventions[i], field, path)


def _field(declared: AnyIntervention, field: str, path: str) -> str:
    fields = {info.serialization_alias or name for name, info in type(declared).model_fields.items()} - {
        "kind"
    }
    field = field if field in fields else type(declared).also_called.get(field, field)
    if field not in fields:
        close = nearest(field, fields)
        hint = f"; did you mean {close!r}?" if close else ""
        raise AmendmentError(
            f"{path}: {declared.kind} has no field {field!r} to set; it has: "
            f"{', '.join(sorted(fields))}{hint}"
        )
    return field
