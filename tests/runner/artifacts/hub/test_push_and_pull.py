"""A Hub on loopback that speaks the real one's protocol, with the library's own client: there and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hub_artifacts import IDS, NAME, TWO, content, logits
from hub_server import Hub
from huggingface_hub import ModelCard

from subvene.runner.artifacts import artifact, hub
from subvene.runner.artifacts.artifact import ArtifactError
from subvene.runner.artifacts.hub import HubError
from subvene.runner.intervened.model import IntervenedModel


def test_what_is_pushed_is_what_others_load(
    m: IntervenedModel, server: Hub, colleague: Callable[..., None]
) -> None:
    done = m.push_to_hub(NAME)
    first, second = server.repositories[NAME].history()
    assert (done.oid, second.message) == (first.oid, "initial commit")
    assert "Upload interventions with subvene" in first.message
    assert not server.repositories[NAME].private
    large = {name for name, entry in first.files.items() if entry.sha256}
    assert "tensors.safetensors" in large
    assert {name for name in large if not name.startswith("intkey_")} == {"tensors.safetensors"}
    small = {"README.md", "intervention.yaml", "fingerprint.json", "config.json", ".gitattributes"}
    assert first.files.keys() - large == small
    colleague(token=None)
    again = IntervenedModel.from_pretrained(NAME)
    assert torch.equal(logits(again), logits(m))
    assert again.spec.interventions[0].name == "glad"
    assert server.leaked == []


def test_a_push_is_one_commit_and_nothing_twice(
    m: IntervenedModel, folder: Path, write: Callable[..., Path], server: Hub
) -> None:
    hub.push(folder, NAME)
    sent = len(server.seen)
    hub.push(folder, NAME)  # nothing has changed
    assert len(server.repositories[NAME].history()) == 2
    assert not [line for line in server.seen[sent:] if "/commit/" in line]
    IntervenedModel.from_spec(write(TWO)).push_to_hub(NAME)
    assert len(server.files(NAME)) == 5 + 3  # two of pyvene's files in place of one
    hub.push(folder, NAME, commit_message="back to one")
    newest, *older = server.repositories[NAME].history()
    assert (newest.message, len(older)) == ("back to one", 3)
    # Nothing of the two is left behind.
    assert newest.files.keys() == {".gitattributes", *content(folder)}
    assert torch.equal(logits(IntervenedModel.from_pretrained(NAME)), logits(m))


def test_private_branch_and_revision(
    m: IntervenedModel, folder: Path, server: Hub, colleague: Callable[..., None]
) -> None:
    main = hub.push(folder, NAME, private=True, commit_message="first")
    stronger = m.spec.interventions[0].model_copy(update={"coefficient": 5.0})
    m.spec = m.spec.model_copy(update={"interventions": (stronger,)})
    done = m.push_to_hub(NAME, private=True, branch="strong/v2", commit_message="stronger")
    repository = server.repositories[NAME]
    assert repository.private
    assert [c.message for c in repository.history("strong/v2")] == ["stronger", "first", "initial commit"]
    assert repository.branches["main"] == main.oid
    for revision, coefficient in ((None, 3.0), ("strong/v2", 5.0), (done.oid, 5.0), (main.oid, 3.0)):
        found = hub.open_artifact(NAME, revision=revision)
        assert found.spec.interventions[0].strength == coefficient
    colleague("hf_bob")
    with pytest.raises(HubError, match=f"no repository {NAME}, or it is private"):
        hub.open_artifact(NAME)
    assert hub.open_artifact(NAME, token="hf_ann_read").spec == hub.open_artifact(folder).spec


def test_large_files_in_parts(folder: Path, server: Hub) -> None:
    server.part = 1000
    hub.push(folder, NAME)
    assert server.content(NAME, "tensors.safetensors") == (folder / "tensors.safetensors").read_bytes()
    assert [line for line in server.seen if "/complete/" in line]


def test_a_pull_is_the_artifact(m: IntervenedModel, folder: Path, server: Hub, tmp_path: Path) -> None:
    done = hub.push(folder, NAME)
    assert hub.pull(NAME, tmp_path / "pulled") == done.oid
    pulled, here = content(tmp_path / "pulled"), content(folder)
    assert {name: data for name, data in pulled.items() if name != "README.md"} == {
        name: data for name, data in here.items() if name != "README.md"
    }
    assert not any(path.is_symlink() for path in (tmp_path / "pulled").iterdir())
    assert torch.equal(logits(IntervenedModel.from_pretrained(tmp_path / "pulled")), logits(m))
    # And on to another name: the card follows.
    hub.push(tmp_path / "pulled", "ann/other")
    card = server.content("ann/other", "README.md").decode()
    assert 'IntervenedModel.from_pretrained("ann/other")' in card
    assert NAME not in card


def test_what_is_there_is_replaced_only_if_it_is_an_artifact(
    folder: Path, server: Hub, tmp_path: Path
) -> None:
    hub.push(folder, NAME)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.tex").write_text("years")
    with pytest.raises(ArtifactError, match="exists and is no artifact"):
        hub.pull(NAME, thesis)
    assert content(thesis) == {"chapter.tex": b"years"}
    hub.pull(NAME, folder)
    assert b"ann/glad" in (folder / "README.md").read_bytes()


def test_a_folder_wins_over_a_repository(
    m: IntervenedModel, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    m.save_pretrained(NAME)
    assert hub.open_artifact(NAME).folder == Path(NAME)
    assert server.seen == []
    with pytest.raises(HubError, match=r"revision='v2' is one of a repository on the Hub, and this is a fol"):
        IntervenedModel.from_pretrained(NAME, revision="v2")


def test_stock_pyvene_loads_it_from_the_hub(m: IntervenedModel, loaded: tuple[Any, Any], server: Hub) -> None:
    from subvene.interventions._pyvene import pyvene

    m.push_to_hub(NAME)
    stock = pyvene.IntervenableModel.load(NAME, loaded[0])
    with torch.no_grad():
        _, output = stock({"input_ids": IDS}, unit_locations=None)
    with m.disabled():
        assert not torch.allclose(output.logits, logits(m))


def test_a_baked_checkpoint_is_an_ordinary_model(
    write: Callable[..., Path], server: Hub, tmp_path: Path, colleague: Callable[..., None]
) -> None:
    from subvene.runner.exchange.exports.checkpoint import RECORD, bake, save_baked

    assert hub.BAKED_RECORD == RECORD
    m = IntervenedModel.from_spec(write(TWO))
    baked = save_baked(m, tmp_path / "baked")
    hub.push(baked, NAME, licence="mit")
    assert len(server.repositories[NAME].history()) == 2
    card = ModelCard(server.content(NAME, "README.md").decode())
    assert (card.data.license, card.data.library_name) == ("mit", "transformers")
    assert f'AutoModelForCausalLM.from_pretrained("{NAME}")' in card.text
    colleague()
    model = transformers.AutoModelForCausalLM.from_pretrained(NAME, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, bake(m)(IDS).logits)
    with pytest.raises(HubError, match=f"{NAME} holds no artifact of subvene.* loaded with transformers"):
        hub.fetch(NAME)


def test_offline_the_cache_is_used_and_nobody_asked(
    m: IntervenedModel, folder: Path, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(folder, NAME)
    hub.fetch(NAME)
    asked = len(server.seen)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(logits(IntervenedModel.from_pretrained(NAME)), logits(m))
    hub.pull(NAME, tmp_path / "pulled")
    assert len(server.seen) == asked
    with pytest.raises(HubError, match=r"ann/glad cannot be pushed offline; unset HF_HUB_OFFLINE"):
        hub.push(folder, NAME)


def test_a_second_reading_downloads_nothing(folder: Path, server: Hub) -> None:
    hub.push(folder, NAME)
    hub.fetch(NAME)
    asked = len(server.seen)
    hub.open_artifact(NAME)
    assert [line for line in server.seen[asked:] if "/resolve/" in line] == []


def test_only_the_artifacts_own_files_are_downloaded(folder: Path, server: Hub) -> None:
    server.put(NAME, {"pytorch_model.bin": b"large", "intkey_x/y.bin": b"deep", "notes.txt": b"n"})
    server.put(NAME, content(folder))
    snapshot = hub.fetch(NAME)
    assert {path.name for path in snapshot.iterdir()} == set(content(folder))


def test_a_snapshot_is_links_which_a_folder_may_not_hold(folder: Path, server: Hub) -> None:
    hub.push(folder, NAME)
    snapshot = hub.fetch(NAME)
    assert all(path.is_symlink() for path in snapshot.iterdir())
    with pytest.raises(ArtifactError, match="a link that leaves the artifact's folder"):
        artifact.read(snapshot)
    assert hub.open_artifact(NAME).folder == snapshot


@pytest.mark.parametrize("name", ["tensors.safetensors", "intervention.yaml", "fingerprint.json"])
@pytest.mark.parametrize("how", ["outside", "another repository", "through a blob"])
def test_a_link_of_the_cache_may_lead_into_its_blobs_only(
    folder: Path, server: Hub, tmp_path: Path, name: str, how: str
) -> None:
    hub.push(folder, NAME)
    snapshot = hub.fetch(NAME)
    link, blob = snapshot / name, (snapshot / name).resolve()
    other = {
        "outside": tmp_path / "outside",
        "another repository": snapshot.parents[2] / "models--bob--x" / "blobs" / "b",
        "through a blob": tmp_path / "outside",
    }[how]
    other.parent.mkdir(parents=True, exist_ok=True)
    blob.rename(other)
    if how == "through a blob":
        blob.symlink_to(other)
    else:
        link.unlink()
        link.symlink_to(other)
    with pytest.raises(ArtifactError, match=f"{name}: a link that leaves the artifact's folder"):
        hub.open_artifact(NAME)
    with pytest.raises(ArtifactError, match="a link that leaves"):
        hub.pull(NAME, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_a_blob_that_repositories_share_is_accepted(folder: Path, server: Hub) -> None:
    # As the library lays out files that came through xet.
    hub.push(folder, NAME)
    snapshot = hub.fetch(NAME)
    blob = (snapshot / "tensors.safetensors").resolve()
    shared = snapshot.parents[2] / "blobs" / "ab" / "abcd"
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    assert hub.open_artifact(NAME).tensors
