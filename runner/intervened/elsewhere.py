"""A model that an engine runs: what recipes generate and read with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from subvene.runner.intervened.generate import Generate
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.elsewhere import Read, ReadElsewhere


@dataclass(frozen=True)
class RunElsewhere(ReadElsewhere):
    """The anatomy of a model that something else than this process runs.

    Attributes:
        generate: what generates with it.
    """

    generate: Generate

    @classmethod
    def by(cls, anatomy: Anatomy, read: Read, generate: Generate) -> Self:
        """The same model, run by others."""
        return cls(anatomy.model, anatomy.blocks_path, anatomy.sizes, read, generate)
