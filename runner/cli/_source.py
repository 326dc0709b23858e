"""What a command was pointed at: a spec file, an artifact, or the output folder of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from subvene.specs import ExperimentSpec, InterventionSpec, SubveneError, load_spec

if TYPE_CHECKING:
    from subvene.runner.artifacts.artifact import Artifact
    from subvene.runner.intervened.model import IntervenedModel

_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Source:
    """A spec and where it came from.

    Attributes:
        path: the spec's file, or the artifact's folder or repository.
        spec: what it declares.
        artifact: the checked artifact; None for a spec file.
    """

    path: Path
    spec: InterventionSpec
    artifact: Artifact | None = None

    @property
    def folder(self) -> Path:
        """Where relative tensor files are."""
        return self.artifact.folder if self.artifact else self.path.parent

    @property
    def is_unfitted(self) -> bool:
        """Whether tensors are missing because the spec's own `fit:` has not been run."""
        return self.artifact is None and any(ref.file is None for _, ref in self.spec.tensor_refs())

    def load(self, **overrides: Any) -> IntervenedModel:
        """Load the model and compile the interventions.

        Raises:
            SubveneError: the tensors have to be fitted first, or anything that loading raises.
        """
        from subvene.runner.intervened.model import IntervenedModel

        if self.is_unfitted:
            raise SubveneError(
                f"{self.path}: its tensors come from its own `fit:`, which has not been run; run\n"
                f"  subvene fit {self.path} -o FOLDER\n"
                "and use FOLDER in its place"
            )
        if self.artifact:
            return IntervenedModel.from_pretrained(self.path, **overrides)
        return IntervenedModel.from_spec(self.path, **overrides)


def open_source(path: Path) -> Source:
    """Read and check a spec file, an artifact, the artifact in the output of `subvene run`, or on the Hub.

    Raises:
        SubveneError: there is no such thing, or it is not valid.
    """
    if not path.exists():
        from subvene.runner.artifacts import hub

        # A misspelt file is not looked for on the Hub.
        if path.suffix in _SUFFIXES or not hub.is_repo_id(str(path)):
            raise SubveneError(f"{path}: no such file or folder")
        found = hub.open_artifact(path)
        return Source(path, found.spec, found)
    if path.is_dir():
        from subvene.runner.artifacts import artifact

        for folder in (path, path / "artifact"):
            if artifact.is_artifact(folder):
                found = artifact.read(folder)
                return Source(folder, found.spec, found)
        raise SubveneError(
            f"{path}: a folder without {artifact.SPEC}: neither an artifact nor the output of a run"
        )
    return Source(path, load_spec(path))


def open_artifacts(named: Sequence[str]) -> dict[str, Source]:
    """Sources that have artifacts, by name: of each the `NAME` of `NAME=ARTIFACT`, or its folder's.

    Raises:
        typer.BadParameter: one is a spec file, or two have one name.
        SubveneError: there is no such thing, or it is not valid.
    """
    found: dict[str, Source] = {}
    for text in named:
        name, equals, folder = text.partition("=")
        source = open_source(Path(folder if equals else text))
        if source.artifact is None:
            raise typer.BadParameter(
                f"{text}: a spec file; fit it first (subvene fit), and give the artifact"
            )
        name = name if equals else Path(text).name
        if name in found:
            raise typer.BadParameter(f"two artifacts are called {name!r}; give one another NAME=")
        found[name] = source
    return found


def experiment(path: Path, need: str, engine: str | None = None) -> ExperimentSpec:
    """Read a spec file that must be an experiment; `need` says in an error what it lacks."""
    spec = load_spec(path, engine=engine)
    if not isinstance(spec, ExperimentSpec):
        raise SubveneError(f"{path}: {need}")
    return spec


def tokenised(tokenizer: Any, prompt: str, *, system: str | None, raw: bool) -> list[int]:
    """Token ids of a prompt as `generate` makes them.

    Raises:
        SubveneError: there is no chat template, or it refuses this chat (some have no system role).
    """
    from subvene.runner.data.text import TextError, prompt_ids

    try:
        return prompt_ids(tokenizer, prompt, system=system, chat=False if raw else None)
    except TextError as error:
        raise SubveneError(f"prompt {prompt[:60]!r}: {error}") from error
