"""What the Hub refuses, and what is refused before it is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hub_artifacts import NAME
from hub_server import Hub
from loopback import free_port

from subvene.runner.artifacts import hub
from subvene.runner.artifacts.artifact import ArtifactError
from subvene.runner.artifacts.hub import HubError


def expect(words: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(HubError) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert words in text
    assert "ann/" in text
    assert "\n" not in text


def test_who_may_not_write(folder: Path, server: Hub, colleague: Callable[..., None]) -> None:
    for token in (None, "hf_bob", "hf_ann_read", "hf_wrong"):
        colleague(token)
        expect("does not let you write to ann/glad", hub.push, folder, NAME)
        expect("HF_TOKEN", hub.push, folder, NAME)
    assert NAME not in server.repositories
    hub.push(folder, NAME, token="hf_ann")
    history = server.repositories[NAME].history()
    for token in (None, "hf_bob", "hf_ann_read"):
        colleague(token)
        expect("does not let you write to ann/glad", hub.push, folder, NAME, commit_message="mine")
    assert server.repositories[NAME].history() == history


def test_what_cannot_be_read(
    folder: Path, server: Hub, colleague: Callable[..., None], tmp_path: Path
) -> None:
    hub.push(folder, NAME)
    server.put("ann/model", {"config.json": b"{}", "README.md": b"a model"})
    for token in (None, "hf_ann"):
        colleague(token)
        expect("there is no repository ann/nothing, or it is private", hub.open_artifact, "ann/nothing")
    expect("is no folder here, and on the Hub:", hub.open_artifact, "ann/nothing")
    expect("ann/model holds no artifact of subvene", hub.open_artifact, "ann/model")
    expect("ann/glad has no branch, tag or commit 'v9'", hub.open_artifact, NAME, revision="v9")
    colleague("hf_wrong")
    expect("does not let you read ann/glad", hub.open_artifact, NAME)
    colleague(HF_HUB_OFFLINE=True)
    expect("ann/glad is not in the Hub's cache", hub.open_artifact, NAME)
    expect("ann/glad at v2 is not in the Hub's cache", hub.open_artifact, NAME, revision="v2")
    nowhere = f"http://127.0.0.1:{free_port()}"
    template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    colleague(ENDPOINT=nowhere, HUGGINGFACE_CO_URL_TEMPLATE=template)
    expect(f"no connection to {nowhere}", hub.open_artifact, NAME)
    expect(f"no connection to {nowhere}", hub.push, folder, NAME)
    colleague()
    server.status = 503
    expect("the Hub answers 503 (this Hub is having a bad day); try again", hub.pull, NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["glad", "ann/glad/x", "ann/gl ad", "ann/../glad", "ann--x/-y", "/ann/x", ""]
)
def test_names_that_the_hub_could_not_have(folder: Path, server: Hub, tmp_path: Path, name: str) -> None:
    for call in (lambda: hub.push(folder, name), lambda: hub.pull(name, tmp_path / "out")):
        with pytest.raises(HubError, match="is no repository of the Hub: expected user/name"):
            call()
    assert server.seen == []


def test_a_public_repository_is_not_taken_for_a_private_one(folder: Path, server: Hub) -> None:
    server.create(NAME)
    expect("exists and is public", hub.push, folder, NAME, private=True)
    assert len(server.repositories[NAME].history()) == 1
    assert not [line for line in server.seen if "preupload" in line]


@pytest.mark.parametrize("there", [{"config.json": b"{}", "model.safetensors": b"w"}, {"data.csv": b"1"}])
def test_what_is_no_artifact_is_not_pushed_over(folder: Path, server: Hub, there: dict[str, bytes]) -> None:
    server.put(NAME, there)
    expect("ann/glad holds something else", hub.push, folder, NAME)
    assert server.repositories[NAME].history()[0].message == "put"


def test_an_empty_repository_with_a_card_is_filled(folder: Path, server: Hub) -> None:
    server.put(NAME, {"README.md": b"soon", "LICENSE": b"mine"})
    hub.push(folder, NAME)
    assert server.content(NAME, "LICENSE") == b"mine"


def test_a_broken_artifact_is_not_pushed(folder: Path, server: Hub) -> None:
    (folder / "tensors.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="truncated or altered"):
        hub.push(folder, NAME)
    with pytest.raises(HubError, match="neither an artifact"):
        hub.push(folder.parent / "server", NAME)
    assert server.seen == []


def test_an_artifact_that_was_altered_on_the_hub_is_not_pulled(
    folder: Path, server: Hub, tmp_path: Path
) -> None:
    hub.push(folder, NAME)
    tensors = {"v.block_output[1]": torch.zeros(32)}
    server.put(NAME, {"tensors.safetensors": safetensors.torch.save(tensors)})
    with pytest.raises(ArtifactError, match=r"tensors.safetensors: its sha256 is not the one"):
        hub.pull(NAME, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()
