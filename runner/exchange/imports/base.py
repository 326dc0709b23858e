"""What every importer is: it reads a foreign file, checks it against sizes, and lays it over a model."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from subvene.interventions import Sizes
from subvene.runner.exchange.imports.opened import ImportRefusedError, Opened
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import AnyIntervention, Positions

Rows = Literal["outputs", "inputs", "hidden_states"]
"""What the layers of a file count: the blocks' outputs, their inputs, or the entries of `hidden_states`."""
Collected = Literal["before_o_proj", "after_o_proj"]
"""Where directions of heads were collected: at the input of the output projection, or at its output."""


@dataclass(frozen=True)
class Options:
    """What the user says beside the file.

    Attributes:
        layers: which layers of a file that holds several (0-based decoder blocks); empty: the format decides.
        strength: the coefficient or α; None: the format's own default.
        positions: which tokens are edited; None: as the format's own tool does.
        key: what the tensors are called; None: after the file.
        accept_residual: take a LoRA adapter that does not factor exactly through the output projection.
        rows: what the layers of the file count; None: the format decides.
        position: which token position of a file that holds several, counted from the prompt's end: -1, -2, ….
        collected: where directions of heads were collected, which no shape tells; None: before o_proj.
        feature: which latent of an SAE.
    """

    layers: tuple[int, ...] = ()
    strength: float | None = None
    positions: Positions | None = None
    key: str | None = None
    accept_residual: bool = False
    rows: Rows | None = None
    position: int | None = None
    collected: Collected | None = None
    feature: int | None = None


@dataclass(frozen=True)
class Imported:
    """What becomes of a foreign file on one model.

    Attributes:
        interventions: the declared edits; their references have no file, they mean `tensors`.
        tensors: by full name, the ones that are used and others that the file holds for this model.
        statements: how the file's conventions were converted, a sentence each.
        facts: further numbers for the provenance.
    """

    interventions: tuple[AnyIntervention, ...]
    tensors: Mapping[str, torch.Tensor]
    statements: Sequence[str]
    facts: Mapping[str, Json] = field(default_factory=dict)


class Importer(ABC):
    """Reads one foreign file or folder; making one reads and checks it, and touches no model.

    Args:
        source: the file or folder.
        options: what the user says beside it.

    Raises:
        ImportRefusedError: it is not of this format, or holds what is refused.
    """

    #: The name for `--from`, and what it is in words.
    name: ClassVar[str]
    says: ClassVar[str]
    #: The options beyond the common ones that mean something here.
    takes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, source: Opened, options: Options) -> None:
        self.source = source
        self.options = options
        unused = {
            "layers": "--layer" if options.layers else None,
            "strength": None if options.strength is None else "--strength",
            "positions": None if options.positions is None else "--positions",
            "accept_residual": "--accept-residual" if options.accept_residual else None,
            "rows": None if options.rows is None else "--rows",
            "position": None if options.position is None else "--position",
            "collected": None if options.collected is None else "--collected",
            "feature": None if options.feature is None else "--feature",
        }
        if given := [option for name, option in unused.items() if option and name not in self.takes]:
            raise ImportRefusedError(f"{source.path}: {', '.join(given)} has no meaning for {self.says}")
        self.key = _key(options.key, source)
        self.read()

    @classmethod
    @abstractmethod
    def recognises(cls, source: Opened) -> bool:
        """Whether the file looks like one of this format, judged by its content first."""

    @abstractmethod
    def read(self) -> None:
        """Read and check the file, without a model."""

    @abstractmethod
    def check(self, sizes: Sizes) -> None:
        """Check against a model's sizes as its config tells them (its `head_dim` is a guess).

        Raises:
            ImportRefusedError: the file was made for another model.
        """

    @abstractmethod
    def onto(self, anatomy: Anatomy) -> Imported:
        """The interventions on a loaded model, whose sizes `check` has accepted."""

    def refuse(self, why: str, file: str | None = None) -> ImportRefusedError:
        """The error to raise."""
        return ImportRefusedError(f"{self.source.path / file if file else self.source.path}: {why}")

    def check_layers(self, layers: Sequence[int], sizes: Sizes) -> None:
        """Refuse layers that the model does not have."""
        if outside := [layer for layer in layers if not 0 <= layer < sizes.n_layers]:
            raise self.refuse(
                f"expected layers from 0 to {sizes.n_layers - 1} for this model, found {outside[0]}; "
                "it was made for another model"
            )

    def finite(self, tensor: torch.Tensor, what: str, file: str | None = None) -> torch.Tensor:
        """`tensor`, dense as `Opened` gives it, in float32; refused if it is not floating or not finite."""
        if not tensor.is_floating_point():
            raise self.refuse(f"{what} is {tensor.dtype}, expected floating point", file)
        tensor = tensor.detach().to(torch.float32, copy=True).contiguous()
        if not torch.isfinite(tensor).all():
            raise self.refuse(f"{what} holds NaN or infinite values", file)
        return tensor


def _key(given: str | None, source: Opened) -> str:
    if given is not None:
        if not re.fullmatch(r"[A-Za-z0-9_\-]+", given):
            raise ImportRefusedError(f"--key {given!r}: expected letters, digits, _ and -")
        return given
    stem = source.path.name.removesuffix(source.path.suffix) if source.path.is_file() else source.path.name
    # The suffixes that the persona-vectors code gives its files.
    stem = re.sub(r"_(prompt_avg|response_avg|prompt_last)_diff$", "", stem)
    return re.sub(r"[^A-Za-z0-9_\-]+", "_", stem).strip("_") or "imported"


def identifier(text: str) -> str:
    """`text` as the name of an intervention."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", text)
    return f"_{name}" if name[:1].isdigit() else name
