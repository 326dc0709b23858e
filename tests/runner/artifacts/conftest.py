"""What tests of artifacts share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
from tiny_artifacts import STEERING, TENSORS, llama, spec_of

from subvene.runner.intervened.model import IntervenedModel


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    folder = tmp_path / "tensors"
    folder.mkdir()
    safetensors.torch.save_file(TENSORS, folder / "all.safetensors")
    return folder


@pytest.fixture
def made(tensors: Path) -> Callable[..., IntervenedModel]:
    def make(*interventions: dict[str, Any], **kwargs: Any) -> IntervenedModel:
        spec = spec_of(*(interventions or (STEERING,)), **kwargs)
        return IntervenedModel.from_spec(spec, model=llama(), folder=tensors)

    return make


@pytest.fixture
def saved(made: Callable[..., IntervenedModel], tmp_path: Path) -> Path:
    return made().save_pretrained(tmp_path / "artifact")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refusals come before any model is touched."""

    def touched(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("a model was asked for")

    monkeypatch.setattr("subvene.runner.intervened.loaded.load_config", touched)
    monkeypatch.setattr("subvene.runner.intervened.loaded.load_model", touched)
    return
