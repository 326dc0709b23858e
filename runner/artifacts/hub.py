"""Sharing through the Hugging Face Hub: a push is one commit, a pull goes through the Hub's own cache.

A push goes through `HfApi.create_commit`. Neither `ModelHubMixin` nor `upload_folder` fits: the mixin reads
a repository's `config.json` for constructor arguments (ours is pyvene's), and `upload_folder` splits a folder
over several commits where it likes to, so that others could pull half a push.

Reading accepts links only into the cache that the library keeps, and only in a snapshot that it has just
given.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants

from subvene.runner.artifacts import artifact
from subvene.runner.artifacts.artifact import CARD, FINGERPRINT, SPEC, Artifact
from subvene.runner.artifacts.card import finished
from subvene.runner.artifacts.hub_errors import HubError, check_repo_id, explained, is_repo_id
from subvene.runner.artifacts.packing import TENSORS
from subvene.runner.files.storage import atomic_folder

BAKED_RECORD = "baked.json"
"""What marks the folder of a baked checkpoint (`exports.checkpoint`, which imports too much to be asked)."""

ARTIFACTS = "artifacts"
"""The folder of what a run kept."""

_PYVENE = ("config.json", "intkey_*.bin")
_ARTIFACT = (SPEC, TENSORS, FINGERPRINT, CARD, *_PYVENE)
_ANYWHERE = (".gitattributes", ".gitignore", CARD, "LICENSE*", "LICENCE*")


# Pushing --------------------------------------------------------------------------------------------------


def push(
    source: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
    licence: str | None = None,
    measured: str | None = None,
) -> CommitInfo:
    """Push an artifact or a baked checkpoint as one commit; what the repository has is not sent again.

    Args:
        source: an artifact's folder (also one of those in a run's `artifacts`), the output of `subvene run`,
            or a folder that `save_baked` wrote.
        repo_id: `user/name`; made if it does not exist.
        private: make the repository private; an existing public one is then refused. None: as it is, or the
            Hub's default for a new one.
        branch: the branch to commit to, made from `main` if it does not exist; None: `main`.
        commit_message: None: says what was pushed.
        token: None: `HF_TOKEN`, or the one that `hf auth login` stored.
        licence: for the card, as the Hub names it; None leaves what the card says.
        measured: tables of what was measured, Markdown, for the card; None leaves what the card says.

    Returns:
        The library's record of the commit: `oid`, `commit_url`.

    Raises:
        ArtifactError: the artifact is incomplete or altered; nothing was sent.
        HubError: anything that the Hub refused.
    """
    check_repo_id(repo_id)
    files = _files(located(Path(source))[0], repo_id, licence, measured)
    marker = SPEC if SPEC in files else BAKED_RECORD
    what = "interventions" if marker == SPEC else "a baked checkpoint"
    with explained(repo_id, "pushed", branch):
        api = HfApi(token=token, library_name="subvene", library_version=version("subvene"))
        api.create_repo(repo_id, private=private, exist_ok=True)
        found = api.model_info(repo_id)
        if private and not found.private:
            raise HubError(
                f"{repo_id} exists and is public, and a push does not change that; make it private in its "
                "settings, or choose another name"
            )
        if branch is not None and branch != constants.DEFAULT_REVISION:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
            found = api.model_info(repo_id, revision=branch)
        there = [sibling.rfilename for sibling in found.siblings or ()]
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, content) for name, content in files.items()
        ]
        changes += [CommitOperationDelete(name) for name in _stale(there, files, marker, repo_id)]
        return api.create_commit(
            repo_id,
            changes,
            commit_message=commit_message or f"Upload {what} with subvene {version('subvene')}",
            revision=branch,
            # What was decided above was decided for this commit: nobody's later one is written over.
            parent_commit=found.sha,
        )


def located(source: Path) -> tuple[Path, Path | None]:
    """The folder to push, and the output folder of the run that it lies in.

    Raises:
        HubError: there is nothing that can be pushed.
    """
    if not source.is_dir():
        raise HubError(f"{source}: no such folder, so there is nothing to push")
    for folder in (source, source / "artifact"):
        if artifact.is_artifact(folder):
            # `.` has no parent of its own name.
            places = Path(os.path.abspath(folder)).parents
            runs = [places[0]] + ([places[1]] if places[0].name == ARTIFACTS else [])
            return folder, next((run for run in runs if (run / "experiment.yaml").is_file()), None)
    if (source / BAKED_RECORD).is_file():
        return source, None
    if kept := [str(path) for path in sorted((source / ARTIFACTS).glob("*")) if artifact.is_artifact(path)]:
        raise HubError(f"{source}: this run kept several artifacts; push one of {', '.join(kept)}")
    raise HubError(
        f"{source}: neither an artifact (it has no {SPEC}) nor a baked checkpoint (no {BAKED_RECORD}); "
        "`subvene fit`, `subvene run` and `subvene export --to checkpoint` write what can be pushed"
    )


def _files(folder: Path, repo_id: str, licence: str | None, measured: str | None) -> dict[str, Path | bytes]:
    """What is to lie in the repository, by path: an artifact's bytes as they were checked, else files."""
    files: dict[str, Path | bytes]
    if artifact.is_artifact(folder):
        artifact.read(folder)
        files = dict(artifact.checked_files(folder))
    else:
        files = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise HubError(f"{path}: a link; a checkpoint is pushed as the files that it holds")
            if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
                files[name] = path
        if "config.json" not in files or not any(name.endswith(".safetensors") for name in files):
            raise HubError(f"{folder}: a baked checkpoint without config.json or weights; export it anew")
    card = files.get(CARD, b"")
    card = card if isinstance(card, bytes) else card.read_bytes()
    try:
        text = card.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HubError(f"{folder / CARD}: not UTF-8 text ({error})") from error
    files[CARD] = finished(text, repo_id=repo_id, licence=licence, measured=measured).encode()
    return files


def _stale(there: Sequence[str], files: Collection[str], marker: str, repo_id: str) -> list[str]:
    """What an earlier push of this kind left and this one does not have.

    Raises:
        HubError: the repository holds something else.
    """
    others = [name for name in there if not any(fnmatchcase(name, known) for known in _ANYWHERE)]
    if others and marker not in there:
        shown = ", ".join(sorted(others)[:3])
        raise HubError(
            f"{repo_id} holds something else ({shown}{', …' if len(others) > 3 else ''}), which a push would "
            "mix with this; choose another name or another branch"
        )
    old = _ARTIFACT if marker == SPEC else ("*.safetensors", "*.safetensors.index.json")
    return [name for name in others if name not in files and any(fnmatchcase(name, known) for known in old)]


# Reading --------------------------------------------------------------------------------------------------


def open_artifact(
    source: str | os.PathLike[str], *, revision: str | None = None, token: str | bool | None = None
) -> Artifact:
    """The checked artifact in a folder or, where there is no such folder, in a repository of the Hub.

    Args:
        source: a folder, or `user/name`.
        revision: branch, tag or commit of the repository.
        token: as for `push`.

    Raises:
        ArtifactError: the artifact is incomplete or altered.
        HubError: there is no such repository, it is no artifact, or the Hub cannot be reached.
    """
    folder = Path(source)
    if folder.exists() or not is_repo_id(str(source)):
        if revision is not None:
            raise HubError(
                f"{folder}: revision={revision!r} is one of a repository on the Hub, and this is a folder; "
                "leave it out (for another revision of the base model, load that and pass `model=`)"
            )
        return artifact.read(folder)
    try:
        snapshot = fetch(str(source), revision=revision, token=token)
    except HubError as error:
        raise HubError(f"{source} is no folder here, and on the Hub: {error}") from error
    return artifact.read(snapshot, links_into=blobs(snapshot))


def pull(
    repo_id: str,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Copy a repository's artifact into a folder, whole and checked or not at all.

    Args:
        repo_id: `user/name`.
        folder: where it goes: nothing, or an artifact to be replaced, is there.
        revision: branch, tag or commit; None: `main`.
        token: as for `push`.

    Returns:
        The commit that was pulled.

    Raises:
        ArtifactError: what was pulled is incomplete or altered, or something else is at `folder`.
        HubError: as for `open_artifact`.
    """
    folder = Path(folder)
    artifact.check_free(folder)
    snapshot = fetch(repo_id, revision=revision, token=token)
    artifact.read(snapshot, links_into=blobs(snapshot))
    content = artifact.checked_files(snapshot, links_into=blobs(snapshot))
    with atomic_folder(folder) as temporary:
        for name, data in content.items():
            (temporary / name).write_bytes(data)
    return snapshot.name


def fetch(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> Path:
    """The snapshot of a repository's artifact in the Hub's cache, downloaded where it is not there yet.

    Offline (`HF_HUB_OFFLINE`), or where the Hub cannot be reached, what the cache holds is used.

    Raises:
        HubError: it cannot be had, or the repository holds no artifact.
    """
    check_repo_id(repo_id)
    with explained(repo_id, "read", revision):
        snapshot = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(_ARTIFACT),
            ignore_patterns=["*/*"],  # a pattern's star reaches into folders, and an artifact has none
            token=token,
            library_name="subvene",
            library_version=version("subvene"),
        )
    folder = Path(snapshot)
    if not (folder / SPEC).is_file():
        at = f" at {revision}" if revision else ""
        raise HubError(
            f"{repo_id} holds no artifact of subvene{at}: it has no {SPEC}. An ordinary model, a baked one "
            "too, is loaded with transformers"
        )
    return folder


def blobs(snapshot: Path) -> tuple[Path, Path]:
    """Where a snapshot's links in the Hub's cache may lead: its repository's blobs, and the shared ones.

    The library keeps `models--user--name/snapshots/COMMIT/file` as a link into `models--user--name/blobs`,
    and that, for large files, as a link into `blobs` beside all repositories.
    """
    repository = snapshot.parent.parent
    return repository / "blobs", repository.parent / "blobs"
