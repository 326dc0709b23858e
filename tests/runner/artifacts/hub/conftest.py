"""A Hub on loopback, an artifact to share, and a colleague who has neither."""

from __future__ import annotations

import shutil
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hub_artifacts import STEER
from hub_server import Hub, connect, serve_hub

from subvene.runner.intervened.model import IntervenedModel


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(tmp_path / "server") as server:
        connect(monkeypatch, server, tmp_path / "home")
        # The library waits seconds before it tries again.
        patient = types.SimpleNamespace(sleep=lambda _seconds: None, time=time.time)
        for module in ("utils._http", "file_download"):
            monkeypatch.setattr(f"huggingface_hub.{module}.time", patient)
        yield server


@pytest.fixture
def m(saved: Path) -> IntervenedModel:
    return IntervenedModel.from_pretrained(saved)


@pytest.fixture(scope="module")
def saved(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of `m`, made once."""
    place = tmp_path_factory.mktemp("saved")
    safetensors.torch.save_file({"v.block_output[1]": torch.eye(32)[3] * 4}, place / "t.safetensors")
    spec = place / "spec.yaml"
    spec.write_text(f"subvene: 1\nmodel: {{name: {model_folder}, dtype: float32}}\n{STEER}")
    return IntervenedModel.from_spec(spec).save_pretrained(place / "artifact")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "artifact"))


@pytest.fixture
def colleague(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Hub) -> Callable[..., None]:
    """What comes next has an empty cache, another token, other settings."""
    count = iter(range(100))

    def colleague(token: str | None = None, **settings: Any) -> None:
        connect(monkeypatch, server, tmp_path / f"home-{next(count)}", token, **settings)

    return colleague
