"""Checkpoints of a training: whole or not there, and read without executing anything."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from subvene.runner.files.leftovers import restore
from subvene.runner.files.storage import atomic_folder
from subvene.runner.training.experiments import ProgressRecord, TrainingError
from subvene.specs.regular_file import read_text

_STATE, _TENSORS = "state.json", "tensors.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands.

    Attributes:
        step: how many steps are done.
        progress: JSON values, one for each experiment.
        tensors: parameters, their best values and the optimizer's state.
    """

    step: int
    progress: list[ProgressRecord]
    tensors: dict[str, torch.Tensor]


def write(folder: Path, identity: str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the one that is there, atomically.

    Args:
        folder: the checkpoint's own.
        identity: a hash of all that the training depends on.
        checkpoint: what is written.
    """
    state = {"identity": identity, "step": checkpoint.step, "progress": checkpoint.progress}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    with atomic_folder(folder) as temporary:
        safetensors.torch.save_file(tensors, temporary / _TENSORS)
        (temporary / _STATE).write_text(json.dumps(state, allow_nan=False), encoding="utf-8")


def read(folder: Path, identity: str) -> Checkpoint | None:
    """The checkpoint that is there; None if there is none.

    Raises:
        TrainingError: it cannot be read, or belongs to another training.
    """
    restore(folder)
    if not (folder / _STATE).is_file():
        return None
    try:
        state = json.loads(read_text(folder / _STATE))
        tensors = safetensors.torch.load_file(folder / _TENSORS)
        found, step, progress = state["identity"], state["step"], state["progress"]
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise TrainingError(
            f"{folder}: not a checkpoint that can be read ({error}); delete the folder to begin anew"
        ) from error
    if found != identity:
        raise TrainingError(
            f"{folder}: the checkpoint of another training (other data, settings, model or versions); choose "
            "another folder, or delete this one"
        )
    return Checkpoint(step, progress, tensors)
