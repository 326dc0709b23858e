"""Where on the Hub an SAE is that a spec names as SAELens does, and its folder in the Hub's cache."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import huggingface_hub
import yaml

from subvene.runner.artifacts.hub_errors import explained, is_repo_id
from subvene.runner.artifacts.saelens import CONFIG, WEIGHTS, SaeError
from subvene.runner.files.json_value import Json
from subvene.specs.regular_file import read_text
from subvene.specs.saes import SaeRelease


def release_of(text: str) -> SaeRelease:
    """What `release/id` names: a name of SAELens' directory and an id, or a repository and the folder in it.

    Raises:
        SaeError: it has no id.
    """
    parts = text.split("/")
    n = 1 if parts[0] in _directory() else 2
    if len(parts) <= n or not all(parts):
        raise SaeError(
            f"{text}: no such file or folder, and no SAE's `release/id`: `user/name/FOLDER` on the Hub, or a "
            "name of SAELens' directory and an id where sae-lens is installed"
        )
    return SaeRelease(release="/".join(parts[:n]), id="/".join(parts[n:]))


def fetched_release(named: SaeRelease) -> tuple[Path, str, Mapping[str, Json]]:
    """The folder of a named SAE, where it is from with the commit, and fields of its config said elsewhere.

    Raises:
        SaeError: there is no such release, or no SAE in it.
        HubError: the Hub does not give it.
    """
    found = located(named)
    path, commit = fetched(found.repository, found.path, named.revision)
    return path, f"{named.release}/{named.id} ({found.repository}@{commit})", found.overrides


@dataclass(frozen=True)
class Located:
    """Where on the Hub an SAE is, and what SAELens' directory says of its config beside."""

    repository: str
    path: str
    overrides: Mapping[str, Json]


def located(named: SaeRelease) -> Located:
    """Where the SAE of a release is, as SAELens' `get_repo_id_and_folder_name` finds it.

    Raises:
        SaeError: the release is no repository, and SAELens' directory is not there or does not have it.
    """
    release = _directory().get(named.release)
    if release is None:
        if is_repo_id(named.release):
            return Located(named.release, named.id, {})
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
    return Located(str(release["repo_id"]), paths[named.id], dict(release.get("config_overrides") or {}))


class _Sae(TypedDict):
    """An SAE of a release."""

    id: str | int
    path: str | int


class _Release(TypedDict, total=False):
    """What SAELens' directory says of a release; it says more."""

    repo_id: str
    conversion_func: str | None
    config_overrides: dict[str, Json] | None
    saes: list[_Sae]


def _directory() -> dict[str, _Release]:
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
    directory: dict[str, _Release] = yaml.load(read_text(path), Loader=loader)
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
