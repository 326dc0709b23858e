"""What a running server says that it holds: a model and artifacts, by hashes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai

from subvene.runner.engines.errors import EngineError
from subvene.runner.models.identity import EngineManifest
from subvene.specs import EngineSpec

_SECONDS = 600.0


@dataclass(frozen=True)
class Held:
    """An artifact of the server: its name there, and those of its interventions, in their order."""

    name: str
    interventions: tuple[str, ...]


@dataclass(frozen=True)
class Holdings:
    """What a server holds.

    Attributes:
        base: the name of its model there.
        about: what it says of the model: engine, versions, and the hashes that units hold (`model`, `text`).
        artifacts: by the hash of what they do (`fingerprints.does`).
    """

    base: str
    about: Mapping[str, Any]
    artifacts: Mapping[str, Held]

    def manifest(self, url: str) -> EngineManifest:
        """What a run's manifest says of it."""
        return {
            "url": url,
            "engine": self.about["engine"],
            "versions": self.about["versions"],
            "model": self.about["model"],
            "text": self.about["text"],
            "artifacts": {held.name: sha256 for sha256, held in self.artifacts.items()},
        }


def client_of(spec: EngineSpec) -> openai.OpenAI:
    """A client of the server, with the key that the environment has for it."""
    key = os.environ.get(spec.api_key_env, "none")
    return openai.OpenAI(base_url=spec.url, api_key=key, timeout=_SECONDS, max_retries=2)


def holdings(spec: EngineSpec) -> Holdings:
    """Ask a server what it holds.

    Raises:
        EngineError: it does not answer, or does not say it by hashes.
    """
    try:
        models = client_of(spec).models.list().data
    except openai.OpenAIError as error:
        raise EngineError(f"engine: {spec.url}: {error}; is `subvene serve` running there?") from error
    listed = {model.id: (model.model_extra or {}).get("subvene") or {} for model in models}
    bases = {name: about for name, about in listed.items() if "engine" in about}
    if len(bases) != 1:
        raise EngineError(
            f"engine: {spec.url} does not say by hashes which model it holds: expected `subvene serve "
            "--engine transformers`; by another engine, experiments are not generated"
        )
    ((base, about),) = bases.items()
    artifacts = {
        about["sha256"]: Held(name, tuple(about["interventions"]))
        for name, about in listed.items()
        if name != base
    }
    return Holdings(base, about, artifacts)
