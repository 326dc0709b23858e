"""The formats, and the way from a foreign file to a model with its edits. A new one is a line in FORMATS."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from subvene.runner.artifacts.sae_releases import fetched_release, release_of
from subvene.runner.edits.compile import check_sizes
from subvene.runner.exchange.imports.base import Importer, Options
from subvene.runner.exchange.imports.control_vector import ControlVector
from subvene.runner.exchange.imports.head_directions import HeadDirections
from subvene.runner.exchange.imports.layer_vectors import LayerVectors
from subvene.runner.exchange.imports.lora import Lora
from subvene.runner.exchange.imports.opened import ImportRefusedError, Opened
from subvene.runner.exchange.imports.persona_vector import PersonaVector
from subvene.runner.exchange.imports.pyvene_folder import PyveneFolder
from subvene.runner.exchange.imports.refusal_direction import RefusalDirection
from subvene.runner.exchange.imports.sae_decoder import SaeDecoder
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, sizes_from_config
from subvene.runner.models.loading import load_config, load_model, with_overrides
from subvene.specs import InterventionSpec, ModelSpec

FORMATS: dict[str, type[Importer]] = {
    one.name: one
    for one in (
        Lora,
        PyveneFolder,
        ControlVector,
        HeadDirections,
        RefusalDirection,
        LayerVectors,
        PersonaVector,
        SaeDecoder,
    )
}
"""By the name that `--from` takes, in the order in which a file is tried."""


def recognise(source: Opened) -> type[Importer]:
    """The format of a file or folder.

    Raises:
        ImportRefusedError: it is none of them.
    """
    for importer in FORMATS.values():
        if importer.recognises(source):
            return importer
    if not source.is_folder and source.path.name.startswith("adapter_model."):
        raise ImportRefusedError(f"{source.path}: give the adapter's folder, with its adapter_config.json")
    formats = ", ".join(f"{importer.says} ({name})" for name, importer in FORMATS.items())
    raise ImportRefusedError(f"{source.path}: none of the formats that can be imported: {formats}")


def import_foreign(
    source: str | os.PathLike[str],
    model: ModelSpec | str,
    *,
    format: str | None = None,
    options: Options | None = None,
    loaded: tuple[torch.nn.Module, Any] | None = None,
    **overrides: Any,
) -> IntervenedModel:
    """Read what another tool made and lay it over a model; `save_pretrained` writes the artifact.

    Nothing of the file is executed: tensors are read as tensors, and a pickle is refused. The file is checked
    by itself, then against the model's config, and only then are weights loaded.

    Args:
        source: the file or folder; of an SAE also `release/id`, as SAELens names it.
        model: the model that it was made for.
        format: one of `FORMATS`; None: recognised from the content.
        options: what to choose from the file, and how strongly it acts.
        loaded: the model and its tokenizer, to use instead of loading them.
        **overrides: fields of the model reference to replace.

    Returns:
        The model with the imported edits; its `provenance` states the conversion and the file's hash.

    Raises:
        ImportRefusedError: the file is not what it should be, was made for another model, or has no exact
            counterpart.
    """
    opened = _opened(source, format, options)
    if format is not None and format not in FORMATS:
        raise ImportRefusedError(f"format {format!r}: expected one of: {', '.join(FORMATS)}")
    importer = (FORMATS[format] if format else recognise(opened))(opened, options or Options())
    reference = ModelSpec(name=model) if isinstance(model, str) else model
    if loaded is None:
        importer.check(sizes_from_config(load_config(reference, **overrides)))
        loaded = load_model(reference, **overrides)
    anatomy = Anatomy.of(loaded[0])
    importer.check(anatomy.sizes)
    imported = importer.onto(anatomy)
    spec = InterventionSpec(subvene=1, model=reference, interventions=imported.interventions)
    spec = with_overrides(spec, overrides)
    check_sizes(spec, anatomy.sizes)
    provenance = {
        "recipe": "import",
        "format": importer.name,
        "source": opened.origin,
        "model": reference.name,
        "conversion": list(imported.statements),
        "sha256_of_files": opened.sha256,
        **imported.facts,
    }
    return IntervenedModel.from_spec(
        spec, model=loaded[0], tokenizer=loaded[1], tensors=imported.tensors, provenance=provenance
    )


def _opened(source: str | os.PathLike[str], format: str | None, options: Options | None) -> Opened:
    """What is on this machine, or an SAE of the Hub."""
    is_sae = format == SaeDecoder.name or (options is not None and options.feature is not None)
    if not is_sae or Path(source).exists():
        return Opened(source)
    path, origin, overrides = fetched_release(release_of(os.fspath(source)))
    return Opened(path, origin=origin, overrides=overrides)
