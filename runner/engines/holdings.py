"""What a running server says that it holds: a model and artifacts, by hashes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai

from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.wording import Held
from subvene.runner.models.identity import EngineManifest
from subvene.specs import EngineSpec

_SECONDS = 600.0
_HASHES = ("model", "text", "files", "dtype")


@dataclass(frozen=True)
class Holdings:
    """What a server holds.

    Attributes:
        base: the name of its model there.
        about: what it says of the model: engine, versions, and hashes: those that units hold (`model`,
            `text`), or of what it was read from (`files`, `dtype`).
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
            "holds": {key: str(value) for key, value in self.about.items() if key in _HASHES},
            "artifacts": {held.name: sha256 for sha256, held in self.artifacts.items()},
        }


def client_of(spec: EngineSpec) -> openai.OpenAI:
    """A client of the server, with the key that the environment has for it."""
    key = os.environ.get(spec.api_key_env, "none")
    return openai.OpenAI(base_url=spec.words, api_key=key, timeout=_SECONDS, max_retries=2)


def holdings(spec: EngineSpec) -> Holdings:
    """Ask a server what it holds.

    Raises:
        EngineError: it does not answer, or does not say it by hashes.
    """
    try:
        models = client_of(spec).models.list().data
    except openai.OpenAIError as error:
        raise EngineError(f"engine: {spec.words}: {error}; is `subvene serve` running there?") from error
    listed = {model.id: (model.model_extra or {}).get("subvene") or {} for model in models}
    bases = {name: about for name, about in listed.items() if "engine" in about}
    if len(bases) != 1:
        raise EngineError(
            f"engine: {spec.words} does not say by hashes which model it holds: expected `subvene serve`"
        )
    ((base, about),) = bases.items()
    artifacts = {
        about["sha256"]: Held(name, tuple(about["interventions"]))
        for name, about in listed.items()
        if name != base
    }
    return Holdings(base, about, artifacts)
