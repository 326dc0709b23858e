"""The artifact: a folder with a spec and its tensors, which is what is saved, shared and reloaded.

Reading executes nothing: YAML by the spec loader, safetensors, JSON. `config.json` and `intkey_*.bin` are
written for stock pyvene and never read here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import safetensors.torch
import torch
from pydantic import JsonValue

from subvene.interventions import Sizes
from subvene.interventions._pyvene import pyvene
from subvene.interventions.tensors import UNREADABLE, why_unusable
from subvene.runner.artifacts.card import model_card
from subvene.runner.artifacts.packing import TENSORS, self_contained, with_file
from subvene.runner.artifacts.stock import why_not_stock
from subvene.runner.artifacts.vouchers import (
    FORMAT,
    ArtifactError,
    Fingerprint,
    fingerprint_of,
    provenance_of,
)
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.edits.receipt import Receipt
from subvene.runner.edits.whole_tensor import WholeTensorModel
from subvene.runner.files.json_value import Json
from subvene.runner.files.leftovers import restore
from subvene.runner.files.storage import atomic_folder, check_writable
from subvene.runner.models.anatomy import text_config
from subvene.runner.models.fingerprint import (
    BlocksFingerprint,
    ModelFingerprint,
    ModulesFingerprint,
    config_fingerprint,
    model_fingerprint,
    modules_fingerprint,
    own_widths,
)
from subvene.specs import InterventionSpec, dump_spec, parse_spec
from subvene.specs.regular_file import open_regular

SPEC, FINGERPRINT, CARD = "intervention.yaml", "fingerprint.json", "README.md"


class RevisionWarning(UserWarning):
    """The model is of the right make, and of another revision than the artifact was made with."""


class _OfType(TypedDict):
    model_type: str


@dataclass(frozen=True)
class Artifact:
    """A checked artifact.

    Attributes:
        folder: where it was read from.
        spec: its spec; tensor references carry no file, they mean `tensors`.
        tensors: every stored tensor by full name.
        fingerprint: the model it was made for, file hashes, versions.
        provenance: how the tensors came about.
    """

    folder: Path
    spec: InterventionSpec
    tensors: dict[str, torch.Tensor]
    fingerprint: Fingerprint
    provenance: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def sizes(self) -> Sizes | None:
        """The sizes of the model it was made for; None where it names modules by their paths."""
        model = self.fingerprint["model"]
        if "modules" in model:
            return None
        return Sizes(
            n_layers=model["n_layers"],
            width=model["width"],
            n_heads=model["n_heads"],
            head_dim=model["head_dim"],
            widths=model.get("widths", {}),
        )

    def check_config(self, config: Any) -> None:
        """Check a model's config against the fingerprint; nothing of the model need be loaded.

        Raises:
            ArtifactError: another architecture or size, both values named.
        """
        if self._is_by_path:
            self._refuse(_OfType(model_type=text_config(config).model_type), ("model_type",))
            return
        # A config only guesses head_dim where it does not say it; the loaded model decides.
        self._refuse(config_fingerprint(config), ("model_type", "n_layers", "width", "n_heads"))

    def check_model(self, model: torch.nn.Module) -> None:
        """Check a loaded model against the fingerprint, `head_dim` and heads as its modules have them.

        A vocabulary of another size warns only: a padding token may have been added.

        Raises:
            ArtifactError: another architecture or size, both values named.
        """
        made_for: ModelFingerprint = self.fingerprint["model"]
        found: ModelFingerprint
        if self._is_by_path:
            found = modules_fingerprint(self.spec, model)
            self._refuse(found, ("model_type", "architecture", "modules"))
        else:
            found = model_fingerprint(model)
            self._refuse(found, ("model_type", "n_layers", "width", "n_heads", "head_dim"))
        for key in ("revision", "vocab_size"):
            if made_for.get(key) and found[key] and made_for[key] != found[key]:
                warnings.warn(
                    f"{self.folder}: made with {key} {made_for[key]} of the model, and this is {found[key]}",
                    RevisionWarning,
                    stacklevel=3,
                )

    @property
    def _is_by_path(self) -> bool:
        """Whether it was made for a model whose blocks are not known, and names modules by their paths."""
        return "modules" in self.fingerprint["model"]

    def _refuse(self, of_model: _OfType, keys: Sequence[str]) -> None:
        made_for, found = dict(self.fingerprint["model"]), dict(of_model)
        differences = [
            f"{key}: the artifact has {made_for.get(key)!r}, the model {found[key]!r}"
            for key in keys
            if found[key] != made_for.get(key)
        ]
        if differences:
            how = ", and pass it: from_pretrained(folder, model=model)" if self._is_by_path else ""
            raise ArtifactError(
                f"{self.folder} was made for another model ({'; '.join(differences)}); "
                f"load it onto {made_for.get('name')}{how}"
            )


def check_free(folder: Path) -> None:
    """Check that an artifact may be written at `folder`: nothing is there, or an artifact to be replaced.

    Raises:
        ArtifactError: something else is there.
        StorageError: nothing can be written there.
    """
    check_writable(folder)
    restore(folder)
    if (
        folder.exists()
        and not (folder / SPEC).is_file()
        and any(folder.iterdir() if folder.is_dir() else [folder])
    ):
        raise ArtifactError(f"{folder} exists and is no artifact; choose another place, or remove it first")


def write(
    folder: Path,
    spec: InterventionSpec,
    intervenable: IntervenableModel,
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
    provenance: Mapping[str, Json] | None = None,
    receipt: Receipt | None = None,
) -> Path:
    """Write the artifact of a compiled spec, atomically: an interrupted save leaves the old one.

    Args:
        folder: where; a folder that is there and no artifact is left alone.
        spec: what was compiled.
        intervenable: its interventions, whose tensors are stored as they are now.
        tensors: further tensors to keep, such as the layers that were fitted and are not used.
        provenance: how the tensors came about.
        receipt: of a run, for the card.
    """
    check_free(folder)
    stored_spec, used = self_contained(spec, intervenable)
    tensors = {**(tensors or {}), **used}
    _refuse_unusable(tensors, provenance or {})
    tensors = {name: value.contiguous().cpu() for name, value in tensors.items()}
    listed = type(intervenable.model) in pyvene.models.intervenable_modelcard.type_to_dimension_mapping
    # Its load reads the width from the top of the config, where a multimodal model does not have it.
    listed = listed and hasattr(intervenable.model.config, "hidden_size")
    made_for: BlocksFingerprint | ModulesFingerprint
    if isinstance(intervenable, WholeTensorModel):
        made_for = modules_fingerprint(spec, intervenable.model)
    else:
        made_for = model_fingerprint(intervenable.model)
        places = [place for entry in intervenable.entries for place in entry.sites]
        if widths := own_widths(intervenable.model, places):
            made_for["widths"] = widths
    made_for["name"] = spec.model.name
    fingerprint: Fingerprint = {
        "format": FORMAT,
        "model": made_for,
        "stock_pyvene": listed and why_not_stock(spec, is_decoder="modules" not in made_for) is None,
        "versions": {
            name: version(name) for name in ("subvene", "pyvene", "torch", "transformers", "safetensors")
        },
        "sha256": {},
    }
    # One key: safetensors writes several in no fixed order, and the same artifact would hash differently.
    about = {"format": FORMAT, "sites": sorted(tensors), "provenance": dict(provenance or {})}
    metadata = {"subvene": json.dumps(about, sort_keys=True)}
    with atomic_folder(folder) as temporary:
        (temporary / SPEC).write_text(dump_spec(stored_spec), encoding="utf-8")
        safetensors.torch.save_file(tensors, temporary / TENSORS, metadata=metadata)
        with contextlib.redirect_stdout(io.StringIO()):
            intervenable.save(str(temporary))
        card = model_card(stored_spec, fingerprint, provenance or {}, receipt)
        (temporary / CARD).write_text(card, encoding="utf-8")
        files = sorted(p for p in temporary.iterdir() if p.is_file())
        fingerprint["sha256"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        (temporary / FINGERPRINT).write_text(
            json.dumps(fingerprint, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    return folder


def _refuse_unusable(tensors: Mapping[str, torch.Tensor], provenance: Mapping[str, Json]) -> None:
    """Refuse to save what no other program could read as a number, or load as an edit.

    Raises:
        ArtifactError: naming the tensor or the place in the provenance.
    """
    for name, tensor in tensors.items():
        if why := why_unusable(tensor):
            raise ArtifactError(f"tensor {name!r} {why}; nothing was saved: convert it, or leave it out")
    try:
        json.dumps(dict(provenance), allow_nan=False)
    except ValueError as error:
        raise ArtifactError(f"provenance: holds a number that is not finite ({error})") from error


def read(folder: Path, *, links_into: Sequence[Path] = ()) -> Artifact:
    """Read and check an artifact; each file is read once, so that what was checked is what is used.

    Args:
        folder: where it lies.
        links_into: folders that its links may lead into (the Hub's cache keeps a snapshot as links into its
            blobs); else a link may lead nowhere out of the folder.

    Raises:
        ArtifactError: naming the file that is missing, truncated, altered or not what it should be.
        SpecError: the spec is not valid.
    """
    content = checked_files(folder, links_into=links_into)
    fingerprint = fingerprint_of(content[FINGERPRINT], folder / FINGERPRINT)
    try:
        text = content[SPEC].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{folder / SPEC}: not UTF-8 text ({error})") from error
    spec = parse_spec(text, file=str(folder / SPEC), own_tensors=True)
    for loc, ref in spec.tensor_refs():
        if ref.file not in (TENSORS, None):
            raise ArtifactError(
                f"{folder / SPEC}: {_path(loc)}.file: expected {TENSORS!r}, found {ref.file!r}"
            )
    try:
        tensors = safetensors.torch.load(content[TENSORS])
    except UNREADABLE as error:
        raise ArtifactError(f"{folder / TENSORS}: not a readable safetensors file ({error})") from error
    provenance = provenance_of(content[TENSORS], folder / TENSORS)
    return Artifact(folder, with_file(spec, None), tensors, fingerprint, provenance)


def checked_files(folder: Path, *, links_into: Sequence[Path] = ()) -> dict[str, bytes]:
    """The content of an artifact's files by name, as its fingerprint vouches for it; arguments as for `read`.

    Raises:
        ArtifactError: naming the file that is missing, truncated or altered.
    """
    restore(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such artifact folder")
    content = {FINGERPRINT: _bytes(folder, FINGERPRINT, links_into)}
    hashes = fingerprint_of(content[FINGERPRINT], folder / FINGERPRINT)["sha256"]
    for name in sorted({SPEC, TENSORS, *hashes}):
        if Path(name).name != name or not name.isprintable():
            raise ArtifactError(f"{folder / FINGERPRINT}: {name!r} is not a plain file name")
        content[name] = _bytes(folder, name, links_into)
        # People edit a card on the Hub, and nothing here reads it; everything else is as it was saved.
        if name != CARD and hashlib.sha256(content[name]).hexdigest() != hashes.get(name):
            raise ArtifactError(
                f"{folder / name}: its sha256 is not the one in {FINGERPRINT}; truncated or altered"
            )
    return content


def is_artifact(path: Path) -> bool:
    """Whether a path looks like an artifact's folder."""
    restore(path)
    return path.is_dir() and (path / SPEC).is_file()


def _bytes(folder: Path, name: str, links_into: Sequence[Path]) -> bytes:
    path = folder / name
    try:
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; the artifact is incomplete")
        if path.is_symlink():
            # Read where it leads, and not through it: what was judged is what is read.
            path = path.resolve()
            if not any(path.is_relative_to(place.resolve()) for place in (folder, *links_into)):
                raise ArtifactError(f"{folder / name}: a link that leaves the artifact's folder")
        # Nor through a link that has taken the file's place since.
        with open_regular(path, follow=False) as stream:
            return stream.read()
    except OSError as error:
        raise ArtifactError(f"{folder / name}: cannot be read ({error.strerror})") from error


def _path(loc: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
