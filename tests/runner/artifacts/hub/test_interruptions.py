"""Uploads and downloads that break, and processes that die, leave what was there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_artifacts import NAME, TENSOR, beside, logits
from hub_server import Hub, connect, environment

from subvene.runner.artifacts import artifact, hub
from subvene.runner.artifacts.hub import HubError
from subvene.runner.intervened.model import IntervenedModel


@pytest.mark.parametrize("part", [None, 1000])
def test_a_broken_upload_is_taken_up_again(folder: Path, server: Hub, part: int | None) -> None:
    server.part = part
    server.breaks["upload"] = 2
    hub.push(folder, NAME)
    assert server.breaks["upload"] == 0
    assert len(server.repositories[NAME].history()) == 2
    assert server.content(NAME, "tensors.safetensors") == (folder / "tensors.safetensors").read_bytes()


def test_an_upload_that_stays_broken_commits_nothing(folder: Path, server: Hub) -> None:
    server.breaks["upload"] = 1000
    with pytest.raises(HubError, match=r"ann/glad: the connection broke before all was pushed .*push again"):
        hub.push(folder, NAME)
    assert len(server.repositories[NAME].history()) == 1
    server.breaks.clear()
    hub.push(folder, NAME)
    assert hub.open_artifact(NAME).tensors


@pytest.mark.parametrize(("when", "commits"), [("commit", 1), ("committed", 2)])
def test_a_connection_that_breaks_at_the_commit(folder: Path, server: Hub, when: str, commits: int) -> None:
    server.breaks[when] = 1
    with pytest.raises(HubError, match=r"ann/glad: the connection broke.*; push again"):
        hub.push(folder, NAME)
    assert len(server.repositories[NAME].history()) == commits
    uploads = [line for line in server.seen if "objects/verify" in line]
    hub.push(folder, NAME)
    assert len(server.repositories[NAME].history()) == 2
    # What had arrived was not sent again.
    assert [line for line in server.seen if "objects/verify" in line] == uploads


def test_a_commit_of_somebody_else_is_not_written_over(
    folder: Path, server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(folder, NAME)
    (folder / "README.md").write_text("changed")
    prepared = hub._stale

    def meanwhile(*args: Any) -> Any:
        server.put(NAME, {"notes.txt": b"mine"})
        return prepared(*args)

    monkeypatch.setattr(hub, "_stale", meanwhile)
    with pytest.raises(HubError, match="changed by somebody else during the push"):
        hub.push(folder, NAME)
    assert server.repositories[NAME].history()[0].message == "put"


def test_a_broken_download_goes_on_where_it_broke(
    m: IntervenedModel, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m.push_to_hub(NAME)
    # The library keeps whole chunks of what had come, and they are of 10 MB.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64)
    server.breaks["download"] = 2
    hub.pull(NAME, tmp_path / "pulled")
    assert server.breaks["download"] == 0
    assert server.ranges
    assert all(int(wanted.removeprefix("bytes=").rstrip("-")) > 0 for wanted in server.ranges)
    assert torch.equal(logits(IntervenedModel.from_pretrained(tmp_path / "pulled")), logits(m))


def test_a_download_that_stays_broken_leaves_nothing(folder: Path, server: Hub, tmp_path: Path) -> None:
    hub.push(folder, NAME)
    server.breaks["download"] = 1000
    before = beside(folder) | {"home"}  # the cache
    with pytest.raises(HubError, match=r"ann/glad: the connection broke before all was read.*; try again"):
        hub.pull(NAME, tmp_path / "pulled")
    assert beside(folder) == before
    server.breaks.clear()
    hub.pull(NAME, tmp_path / "pulled")


def test_a_killed_pull_leaves_no_folder(
    folder: Path, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(folder, NAME)
    place, server.hang = tmp_path / "place", True
    place.mkdir()
    code = f"from subvene.runner.artifacts import hub; hub.pull({NAME!r}, {str(place / 'out')!r})"
    home = tmp_path / "killed"
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | environment(server, home)
    process = subprocess.Popen([sys.executable, "-c", code], env=env)
    try:
        assert server.hanging.wait(300)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert list(place.iterdir()) == []
    server.hang = False
    server.resume.set()
    connect(monkeypatch, server, home)  # what the killed one left in its cache is in nobody's way
    hub.pull(NAME, place / "out")
    assert torch.equal(artifact.read(place / "out").tensors[TENSOR], artifact.read(folder).tensors[TENSOR])
