"""From an SAE that a spec names, on the Hub or in a folder, to the tensors that are used of it.

It happens once, before a model is loaded: from then on the spec names tensors that it has, as an artifact's
does, and what an artifact keeps needs neither the Hub nor the folder.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import huggingface_hub
import torch
import yaml

from subvene.runner.artifacts.hub_errors import explained, is_repo_id
from subvene.runner.artifacts.saelens import CONFIG, WEIGHTS, SaeConfig, SaeError, SaeLensFolder
from subvene.runner.edits.compile import entry_name
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import InterventionSpec, SaeFeatureSpec, Site, tensor_name
from subvene.specs.gates import Gate, MeasuredGate, SaeFeatureGate
from subvene.specs.regular_file import read_text
from subvene.specs.saes import SaeFolder, SaeRelease, StoredSae

_Declared = TypeVar("_Declared", SaeFeatureSpec, SaeFeatureGate)
_NORMED_AFTER = re.compile(r"post_(feedforward|mlp|self_attn)_layernorm")
"""Norms between what a part of a block gives and the stream, as blocks of transformers call them."""


@dataclass(frozen=True)
class Resolved:
    """A spec all of whose SAEs are tensors.

    Attributes:
        spec: the same, but that every SAE is a `StoredSae`.
        tensors: what these name, by full name.
        places: (what names it, site, layer) of every SAE that was read.
    """

    spec: InterventionSpec
    tensors: Mapping[str, torch.Tensor]
    places: Sequence[tuple[str, Site, int]]

    def check(self, model: torch.nn.Module) -> None:
        """Refuse SAEs of what this model adds to the stream, where a norm stands between.

        Raises:
            SaeError: TransformerLens reads behind that norm, and the site is before it.
        """
        for named, site, layer in self.places:
            if site not in ("attention_output", "mlp_output"):
                continue
            block = Anatomy.of(model).blocks[layer]
            if normed := [name for name, _ in block.named_children() if _NORMED_AFTER.fullmatch(name)]:
                raise SaeError(
                    f"{named}: the SAE reads what {normed[0]} gives, and the site {site} is before that norm"
                )


def with_saes(spec: InterventionSpec, folder: Path | None) -> Resolved:
    """Read the SAEs that a spec names on the Hub or in folders.

    Args:
        spec: the spec.
        folder: its own, to which folders of SAEs are relative.

    Raises:
        SaeError: an SAE is not what it should be, or reads another place than the spec says.
        HubError: the Hub does not give it.
    """
    reader = _Reader(folder or Path())
    interventions = []
    for i, declared in enumerate(spec.interventions):
        where, key = f"interventions[{i}]", f"sae.{entry_name(spec, i)}"
        if isinstance(declared, SaeFeatureSpec):
            declared = reader.kept(declared, f"{where}.sae", key)
        if declared.when is not None:
            when = reader.gate(declared.when, f"{where}.when", key)
            declared = declared.model_copy(update={"when": when})
        interventions.append(declared)
    if not reader.tensors:
        return Resolved(spec, {}, ())
    return Resolved(
        spec.model_copy(update={"interventions": tuple(interventions)}), reader.tensors, reader.places
    )


class _Reader:
    """Reads SAEs, each once, and keeps what is used of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[SaeFolder | SaeRelease, tuple[SaeLensFolder, str]] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.places: list[tuple[str, Site, int]] = []

    def gate(self, when: Gate, where: str, key: str) -> Gate:
        """A gate, the SAEs of its measurements as they were read."""
        number = itertools.count()

        def kept(gate: MeasuredGate) -> MeasuredGate:
            of = f"{key}.gate{next(number)}"
            return self.kept(gate, f"{where}.sae", of) if isinstance(gate, SaeFeatureGate) else gate

        return when.mapped(kept)

    def kept(self, declared: _Declared, where: str, key: str) -> _Declared:
        """The same, its SAE and its place as they were read; as it is, where its tensors are stored."""
        if isinstance(declared.sae, StoredSae):
            return declared
        sae, origin = self._sae(declared.sae)
        config = sae.config
        _check_place(declared, config, f"{where} ({origin})")
        features = declared.features if isinstance(declared, SaeFeatureSpec) else (declared.feature,)
        for part, tensor in sae.tensors(features).items():
            self.tensors[tensor_name(key, config.site, config.layer, part)] = tensor
        self.places.append((f"{where} ({origin})", config.site, config.layer))
        update = {"sae": sae.stored(key, origin), "site": config.site, "layer": config.layer}
        return declared.model_copy(update=update)

    def _sae(self, named: SaeFolder | SaeRelease) -> tuple[SaeLensFolder, str]:
        if named not in self.read:
            self.read[named] = self._opened(named)
        return self.read[named]

    def _opened(self, named: SaeFolder | SaeRelease) -> tuple[SaeLensFolder, str]:
        if isinstance(named, SaeFolder):
            return SaeLensFolder.read(self.folder / Path(named.folder).expanduser()), named.folder
        found = _located(named)
        path, commit = fetched(found.repository, found.path, named.revision)
        origin = f"{named.release}/{named.id} ({found.repository}@{commit})"
        return SaeLensFolder.read(path, found.overrides), origin


def _check_place(declared: SaeFeatureSpec | SaeFeatureGate, config: SaeConfig, where: str) -> None:
    given = declared.model_fields_set
    site = declared.site if "site" in given else config.site
    layer = config.layer if declared.layer is None else declared.layer
    if (site, layer) != (config.site, config.layer):
        raise SaeError(
            f"{where}: it was trained on {config.site}[{config.layer}], and the spec puts it at "
            f"{site}[{layer}]; leave site and layer out, or name these"
        )


@dataclass(frozen=True)
class _Located:
    """Where on the Hub an SAE is, and what SAELens' directory says of its config beside."""

    repository: str
    path: str
    overrides: Mapping[str, Json]


def _located(named: SaeRelease) -> _Located:
    """Where the SAE of a release is, as SAELens' `get_repo_id_and_folder_name` finds it.

    Raises:
        SaeError: the release is no repository, and SAELens' directory is not there or does not have it.
    """
    release = _directory().get(named.release)
    if release is None:
        if is_repo_id(named.release):
            return _Located(named.release, named.id, {})
        raise SaeError(
            f"sae.release: {named.release!r} is no repository of the Hub, `user/name`, and "
            + (
                "SAELens' directory does not have it"
                if _directory()
                else "names of SAELens' directory are known where sae-lens is installed beside subvene "
                "(pip install --no-deps sae-lens); or name the repository and its folder"
            )
        )
    if release.get("conversion_func") is not None:
        raise SaeError(
            f"sae.release: {named.release!r} is not in SAELens' own format (SAELens converts it with "
            f"{release['conversion_func']}); load it with SAELens, `save_model` it, and name that folder"
        )
    paths = {str(sae["id"]): str(sae["path"]) for sae in release["saes"]}
    if named.id not in paths:
        raise SaeError(
            f"sae.id: expected one of {named.release}: {', '.join(list(paths)[:5])}, …; found {named.id!r}"
        )
    return _Located(str(release["repo_id"]), paths[named.id], dict(release.get("config_overrides") or {}))


def _directory() -> dict[str, dict[str, object]]:
    """SAELens' list of releases, from an installed sae-lens, of which nothing is executed."""
    try:
        found = importlib.util.find_spec("sae_lens")
    except ValueError:
        found = None
    places = [] if found is None else [Path(p) for p in found.submodule_search_locations or []]
    path = next((p / "pretrained_saes.yaml" for p in places if (p / "pretrained_saes.yaml").is_file()), None)
    if path is None:
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    directory: dict[str, dict[str, object]] = yaml.load(read_text(path), Loader=loader)
    return directory


def fetched(repository: str, path: str, revision: str | None) -> tuple[Path, str]:
    """The folder of an SAE in the Hub's cache, downloaded where it is not there yet, and the commit.

    Raises:
        HubError: the Hub does not give it.
        SaeError: the repository has no SAE there.
    """
    with explained(repository, "read", revision):
        snapshot = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[f"{path}/{CONFIG}", f"{path}/{WEIGHTS}"],
            library_name="subvene",
            library_version=version("subvene"),
        )
    folder = Path(snapshot) / path
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise SaeError(f"{repository}: no {missing[0]} in {path}/: no SAE in SAELens' format is there")
    return folder, Path(snapshot).name
