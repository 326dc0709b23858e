"""What a result depends on and where it came from: digests of models and tensors, versions, git state."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("subvene", "pyvene", "torch", "transformers", "scikit-learn", "datasets")


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, shapes, types and values."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        state.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def model_digest(model: torch.nn.Module) -> str:
    """A checksum over every parameter and buffer that is saved, quick even for a large model.

    The weights' bits are summed as integers, whole and position by position, so that it does not depend on
    the number of threads or the device; it tells models apart, and is no protection against forgery.
    """
    state = hashlib.sha256(type(model).__name__.encode())
    as_integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for name, tensor in model.state_dict().items():
        bits = tensor.detach().reshape(-1)
        if bits.element_size() in as_integers:
            bits = bits.view(as_integers[bits.element_size()])
        total = int(bits.sum(dtype=torch.int64))
        # A second sum over rows of a prime width, so that two values that changed places are noticed.
        width = 997
        folded = bits[: bits.numel() // width * width].view(-1, width).sum(0, dtype=torch.int64)
        state.update(f"{name} {list(tensor.shape)} {tensor.dtype} {total}".encode())
        state.update(folded.cpu().numpy().tobytes())
    return state.hexdigest()


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {name: version(name) for name in PACKAGES}


def environment() -> dict[str, Any]:
    """Versions and machine, to stand beside every measured number."""
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository that holds `folder`, and whether it has changes; None outside of one."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
