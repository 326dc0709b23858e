"""What an engine holds, as its configuration says it (`additional_config={"subvene": {...}}`).

It belongs there and nowhere else: vLLM's compilation cache is keyed by it, and a graph that was compiled for
other sites would run unsteered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from subvene.runner.artifacts import artifact, hub
from subvene.runner.engines.catalogue import Catalogue, Reserve
from subvene.runner.engines.collecting import check_places
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.served import ServedArtifact, serve
from subvene.runner.models.anatomy import sizes_from_config

KEY = "subvene"


@dataclass(frozen=True)
class Settings:
    """What an engine holds.

    Attributes:
        artifacts: name → folder.
        reserve: room for others.
        collect: `site[layer]`, where activations can be collected.
        digest: of what was read from the folders; set when the engine's configuration is made.
    """

    artifacts: Mapping[str, str] = field(default_factory=dict)
    reserve: Reserve = field(default_factory=Reserve)
    collect: tuple[str, ...] = ()
    digest: str | None = None

    @classmethod
    def of(cls, config: Any) -> Self | None:
        """From a vLLM configuration, or its `additional_config`; None where nothing is said.

        Raises:
            EngineError: it says something else than what is known.
        """
        extra = getattr(config, "additional_config", config)
        given = extra.get(KEY) if isinstance(extra, Mapping) else None
        if given is None:
            return None
        if unknown := sorted(set(given) - set(cls.__dataclass_fields__)):
            known = ", ".join(cls.__dataclass_fields__)
            raise EngineError(f"additional_config.{KEY}: expected {known}, found {', '.join(unknown)}")
        return cls(
            artifacts={str(name): str(folder) for name, folder in given.get("artifacts", {}).items()},
            reserve=Reserve.of(given.get("reserve", {})),
            collect=tuple(given.get("collect", ())),
            digest=given.get("digest"),
        )

    def to_config(self) -> dict[str, Any]:
        """As JSON values."""
        reserve = asdict(self.reserve) | {"sites": list(self.reserve.sites)}
        return {
            "artifacts": dict(self.artifacts),
            "reserve": reserve,
            "collect": list(self.collect),
            "digest": self.digest,
        }

    def load(self, config: Any) -> Catalogue:
        """Read every artifact for a model.

        Args:
            config: the model's transformers config.

        Raises:
            SubveneError: one cannot be read, is of another model, or cannot be run by an engine; or a site
                to collect at is none.
            EngineError: what is read is not what was read when the engine was configured.
        """
        check_places(self.collect, sizes_from_config(config))
        held = Catalogue(
            [read(name, folder, config) for name, folder in self.artifacts.items()], self.reserve
        )
        if self.digest not in (None, digest(held)):
            raise EngineError("an artifact has changed while the engine was starting; start it again")
        return held


def read(name: str, folder: str, config: Any) -> ServedArtifact:
    """One artifact, for a model of this transformers config."""
    found = opened(folder)
    found.check_config(config)
    return serve(name, found, sizes_from_config(config))


def opened(folder: str) -> artifact.Artifact:
    """What is in an artifact's folder, or in a repository on the Hub."""
    path = Path(folder)
    return artifact.read(path) if path.exists() else hub.open_artifact(path)


def digest(catalogue: Catalogue) -> str:
    """What tells a catalogue, and what is compiled for it, from another."""
    rooms = [
        (site, room.depth, room.reads, tuple(room.columns)) for site, room in sorted(catalogue.rooms.items())
    ]
    artifacts = [(name, held.artifact.digest, held.groups) for name, held in catalogue.held.items()]
    return hashlib.sha256(repr((rooms, artifacts, len(catalogue.groups))).encode()).hexdigest()[:16]
