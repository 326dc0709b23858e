"""Sharing through a Hub on loopback that speaks the real one's protocol, with the library's own client."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from hub_server import Hub, connect, environment, serve_hub
from huggingface_hub import ModelCard
from loopback import free_port

from subvene.runner.artifacts import artifact, hub
from subvene.runner.artifacts.artifact import ArtifactError
from subvene.runner.artifacts.card import CardError, finished
from subvene.runner.artifacts.hub import HubError
from subvene.runner.experiments.results import Results, ResultsError
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.reports.publish import card_table
from subvene.runner.reports.pushed import measured_of

NAME = "ann/glad"
TENSOR = "v.block_output[1]"
IDS = torch.tensor([[10, 11, 12, 13, 14]])
STEER = """\
interventions:
- kind: steering
  name: glad
  layer: 1
  vector: {file: t.safetensors, key: v}
  coefficient: 3
  positions: response
"""
TWO = """\
interventions:
- {kind: steering, name: one, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3}
- {kind: steering, name: two, layer: 2, vector: {file: t.safetensors, key: w}, coefficient: 1}
"""


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


@torch.no_grad()
def logits(m: IntervenedModel) -> torch.Tensor:
    return m(IDS, prompt_lengths=[2]).logits


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def beside(folder: Path) -> set[str]:
    return {path.name for path in folder.parent.iterdir()}


# --- there and back


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


# --- the cache


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


# --- links


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


# --- interruptions


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


# --- refusals


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


# --- the card


def of_format_1(coefficient: float) -> dict[str, Any]:
    """The `results.json` of a plain run of an older version."""
    record = {
        "coefficient": coefficient,
        "mean_difference": 0.123456,
        "standard_error": None,
        "positive_preferred": 1.0,
    }
    contrast = {"kind": "contrast", "records": [record], "pairs": [[0.123456]], "tokens_edited": 32}
    return {"evaluations": [contrast, {"kind": "samples", "records": [], "receipt": []}], "provenance": {}}


def card_of(server: Hub) -> ModelCard:
    return ModelCard(server.content(NAME, "README.md").decode())


def test_the_card_is_complete(m: IntervenedModel, server: Hub) -> None:
    m.spec = m.spec.model_copy(update={"model": m.spec.model.model_copy(update={"name": "meta/llama"})})
    m.provenance = {"recipe": "mean_difference"}
    logits(m)
    results = Results.of(of_format_1(1.5) | {"reload_max_logit_difference": 0.0})
    m.push_to_hub(NAME, licence="apache-2.0", measured=card_table(results, None))
    card = card_of(server)
    assert card.data.to_dict() == {
        "base_model": "meta/llama",
        "base_model_relation": "adapter",
        "library_name": "subvene",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["pyvene", "activation-steering", "steering"],
    }
    for said in (
        "## Intended use",
        'm = IntervenedModel.from_pretrained("ann/glad")',
        'model = transformers.AutoModelForCausalLM.from_pretrained("meta/llama")\n'
        'm = pyvene.IntervenableModel.load("ann/glad", model)',
        server.content(NAME, "intervention.yaml").decode(),
        "## Measured\n\n**contrast**\n\n"
        "| coefficient | mean difference | standard error | positive preferred |\n"
        "| --- | --- | --- | --- |\n| 1.5 | 0.1235 | – | 1 |\n",
        "32 tokens edited\n\n## Receipt",
        "| glad | block_output[1] | response |",
        '"recipe": "mean_difference"',
        "## Licence\n\napache-2.0, of this folder.",
    ):
        assert said in card.text


def test_a_card_invents_nothing(folder: Path, server: Hub) -> None:
    hub.push(folder, NAME)
    card = card_of(server)
    assert card.data.license is None
    assert card.data.base_model is None  # a local folder
    assert "## Licence\n\nNone is stated" in card.text
    assert "## Measured\n\nNothing that was measured" in card.text
    assert 'load_model("' in card.text


def test_an_edited_card_stays_edited(folder: Path, server: Hub) -> None:
    card = ModelCard.load(folder / "README.md")
    card.data.language, card.text = "en", card.text + "\n## Thanks\n\nTo you.\n"
    card.save(folder / "README.md")
    hub.push(folder, NAME, licence="mit")
    pushed = card_of(server)
    assert (pushed.data.language, pushed.data.license) == ("en", "mit")
    ending = "## Licence\n\nmit, of this folder. The base model keeps its own.\n\n## Thanks\n\nTo you."
    assert pushed.text.rstrip().endswith(ending)


@pytest.mark.parametrize("licence", ["Apache 2.0", "", "mit\nx: y", "MIT"])
def test_a_licence_that_is_no_name_for_one(folder: Path, server: Hub, licence: str) -> None:
    with pytest.raises(CardError, match="expected one of the Hub's names for licences"):
        hub.push(folder, NAME, licence=licence)
    assert server.seen == []


def test_front_matter_that_is_none(folder: Path, server: Hub) -> None:
    (folder / "README.md").write_text("---\n- a\n- list\n---\n")
    with pytest.raises(CardError, match="front matter is not valid"):
        hub.push(folder, NAME)
    assert server.seen == []


def test_sections_are_replaced_where_they_stand() -> None:
    text = "# T\n\n## Measured\n\nold\n\n## Licence\n\nold\n"
    table = "| a |\n| --- |\n| 1 |"
    once = finished(text, repo_id=NAME, licence="mit", measured=table)
    assert once == finished(once, repo_id=NAME, licence="mit", measured=table)
    assert "\nold" not in once
    assert once.index("# T") < once.index("| a |") < once.index("## Licence")


@pytest.mark.parametrize("results", [{}, {"evaluations": 3}, {"rows": [1]}, [], {"format": 3}])
def test_what_are_no_results(results: Any) -> None:
    with pytest.raises(ResultsError, match="no results of `subvene run`"):
        Results.of(results)


def test_a_pushed_run_brings_its_results(m: IntervenedModel, server: Hub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    m.save_pretrained(run / "artifact")
    (run / "experiment.yaml").write_text("")
    (run / "results.json").write_text(json.dumps(of_format_1(7)))
    for source in (run, run / "artifact"):
        with contextlib.suppress(KeyError):
            del server.repositories[NAME]
        hub.push(source, NAME, measured=measured_of(source))
        assert "| 7 | 0.1235 |" in card_of(server).text
    (run / "results.json").write_text("{")
    with pytest.raises(ResultsError, match=r"results.json: cannot be read as the results of a run"):
        measured_of(run)


def test_one_of_a_runs_artifacts_brings_the_runs_results(
    m: IntervenedModel, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for name in ("weak", "strong"):
        m.save_pretrained(run / "artifacts" / name)
    (run / "experiment.yaml").write_text("")
    (run / "results.json").write_text(json.dumps(of_format_1(7)))
    weak = run / "artifacts" / "weak"
    hub.push(weak, NAME, measured=measured_of(weak))
    assert "| 7 | 0.1235 |" in card_of(server).text
    monkeypatch.chdir(run / "artifacts" / "strong")
    hub.push(".", "ann/strong", measured=measured_of(Path(".")))
    assert b"| 7 | 0.1235 |" in server.content("ann/strong", "README.md")
    with pytest.raises(
        HubError, match=r"several artifacts; push one of .*artifacts/strong, .*artifacts/weak"
    ):
        measured_of(run)
    # A folder called `artifacts` that is no run's has no numbers.
    (run / "experiment.yaml").unlink()
    hub.push(weak, "ann/alone", measured=measured_of(weak))
    assert b"Nothing that was measured" in server.content("ann/alone", "README.md")
