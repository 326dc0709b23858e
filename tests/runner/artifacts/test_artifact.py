"""Artifacts: saved and reloaded to the same model, and what is written of them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from tiny_artifacts import EVERY_KIND, IDS, LENGTHS, MASK, draw, llama, load, logits

from subvene.interventions._pyvene import pyvene
from subvene.runner.artifacts import artifact
from subvene.runner.intervened.model import IntervenedModel


def test_every_kind_in_one_spec_reloads_to_the_same_logits(
    made: Callable[..., IntervenedModel], tmp_path: Path
) -> None:
    m = made(*EVERY_KIND)
    fresh = m.intervenable.entries[3]
    assert fresh.name == "low_rank_edit_3"
    with torch.no_grad():  # as training leaves it
        m.intervenable.interventions[fresh.keys[0]].b += draw(3, 32, seed=11)
    before = logits(m)
    folder = m.save_pretrained(tmp_path / "artifact")
    again = load(folder)
    assert torch.equal(logits(again), before)
    with m.disabled():
        assert not torch.allclose(before, logits(m))
    assert [e.name for e in again.intervenable.entries] == [e.name for e in m.intervenable.entries]
    for one, other in zip(again.spec.interventions, m.spec.interventions, strict=True):
        drop = {"directions", "vector", "factors", "direction", "source", "state"}
        assert one.model_dump(exclude=drop) == other.model_dump(exclude=drop)
    # And each of them alone is what it was, so that no two have traded places or cancelled.
    for key in m.intervenable.interventions:
        mine, theirs = (x.intervenable.interventions[key] for x in (m, again))
        assert (mine.positions, mine.strength.tolist()) == (theirs.positions, theirs.strength.tolist())
        mine, theirs = (edit.stored("k", "block_output", 0) for edit in (mine, theirs))
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("declared", EVERY_KIND, ids=lambda d: f"{d['kind']}-{d.get('class', '')}")
def test_saving_twice_changes_nothing(
    made: Callable[..., IntervenedModel], tmp_path: Path, declared: dict[str, Any]
) -> None:
    first = made(declared).save_pretrained(tmp_path / "first")
    second = load(first).save_pretrained(tmp_path / "second")
    one, two = (safetensors.torch.load_file(f / "tensors.safetensors") for f in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-7)
    assert (first / "intervention.yaml").read_text() == (second / "intervention.yaml").read_text()
    # A folder can also be saved over.
    third = load(second).save_pretrained(second)
    assert (third / "intervention.yaml").read_text() == (first / "intervention.yaml").read_text()


def test_trained_values_are_the_ones_that_are_saved(
    made: Callable[..., IntervenedModel], tmp_path: Path
) -> None:
    m = made({"kind": "low_rank_edit", "layer": 1, "write_heads": [2], "rank": 2})
    (edit,) = m.intervenable.interventions.values()
    optimizer = torch.optim.AdamW(edit.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        m(IDS, MASK, prompt_lengths=LENGTHS).logits.square().sum().backward()
        optimizer.step()
    trained = logits(m)
    again = load(m.save_pretrained(tmp_path / "artifact"))
    with m.disabled():
        assert not torch.allclose(trained, logits(m), atol=1e-3)
    torch.testing.assert_close(logits(again), trained, rtol=0, atol=1e-6)
    stored = safetensors.torch.load_file(tmp_path / "artifact" / "tensors.safetensors")
    assert torch.equal(stored["low_rank_edit_0.attention_heads[1].a"], edit.a.detach())
    assert torch.equal(stored["low_rank_edit_0.attention_heads[1].b"], edit.b.detach() * edit.write_mask)


def test_stock_pyvene_reloads_it(made: Callable[..., IntervenedModel], saved: Path) -> None:
    stock = pyvene.IntervenableModel.load(str(saved), llama())
    with torch.no_grad():
        _, output = stock({"input_ids": IDS, "attention_mask": MASK}, unit_locations=None)
        expected = made()(IDS, MASK, prompt_lengths=LENGTHS, position_ids=None).logits
    torch.testing.assert_close(output.logits[0], expected[0])


def test_provenance_is_kept(made: Callable[..., IntervenedModel], tmp_path: Path) -> None:
    m = made()
    m.provenance = {"recipe": "mean_difference", "pairs": 8}
    folder = m.save_pretrained(tmp_path / "artifact")
    assert load(folder).provenance == m.provenance
    assert '"recipe": "mean_difference"' in (folder / "README.md").read_text()


@pytest.mark.parametrize("model", ["user/tiny", "package:m/f.gguf", "./here", "/abs/olute"])
def test_model_reference_is_kept(made: Callable[..., IntervenedModel], tmp_path: Path, model: str) -> None:
    folder = made(name=model).save_pretrained(tmp_path / "artifact")
    assert artifact.read(folder).spec.model.name == model


def test_fingerprint(saved: Path) -> None:
    fingerprint = json.loads((saved / "fingerprint.json").read_text())
    assert fingerprint["format"] == "1"
    model = fingerprint["model"]
    assert model["architecture"] == "LlamaForCausalLM"
    assert model["model_type"] == "llama"
    assert (model["n_layers"], model["width"], model["n_heads"], model["head_dim"]) == (3, 24, 4, 8)
    assert model["name"] == "user/tiny"
    assert fingerprint["versions"]["torch"] == version("torch")
    assert set(fingerprint["versions"]) >= {"subvene", "pyvene", "transformers"}
    hashes = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in saved.iterdir()
        if p.name != "fingerprint.json"
    }
    assert fingerprint["sha256"] == hashes
    assert {"README.md", "intervention.yaml", "tensors.safetensors", "config.json"} < hashes.keys()
    assert len([name for name in hashes if name.startswith("intkey_")]) == 1


def test_tensor_metadata(made: Callable[..., IntervenedModel], tmp_path: Path) -> None:
    folder = made(*EVERY_KIND).save_pretrained(tmp_path / "artifact")
    with safetensors.safe_open(folder / "tensors.safetensors", "pt") as file:
        metadata, names = file.metadata(), sorted(file.keys())
    about = json.loads(metadata["subvene"])
    assert about == {"format": "1", "sites": names, "provenance": {}}
    assert not [n for n in names if n.endswith(("embed_dim", "interchange_dim"))]


def test_the_same_artifact_has_the_same_bytes(made: Callable[..., IntervenedModel], tmp_path: Path) -> None:
    m = made(*EVERY_KIND)
    m.provenance = {"recipe": "mean_difference", "pairs": 8}
    first, *others = (m.save_pretrained(tmp_path / f"artifact-{i}") for i in range(4))
    for folder in others:
        for name in ("tensors.safetensors", "intervention.yaml"):
            assert (folder / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("user/tiny", "user/tiny"),
        ("gpt2", "gpt2"),
        ("package:m/f.gguf", None),
        ("./x", None),
        ("a/b/c", None),
    ],
)
def test_model_card(
    made: Callable[..., IntervenedModel], tmp_path: Path, model: str, base: str | None
) -> None:
    m = made(*EVERY_KIND, name=model)
    logits(m)
    folder = m.save_pretrained(tmp_path / "artifact")
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "subvene"
    assert card.data.base_model == base
    assert getattr(card.data, "base_model_relation", None) == ("adapter" if base else None)
    assert card.data.pipeline_tag == "text-generation"
    kinds = {"head_direction", "steering", "low_rank_edit", "ablation", "capping", "pyvene"}
    assert set(card.data.tags) == {"activation-steering"} | kinds
    assert "None" not in card.data.to_yaml()
    assert (folder / "intervention.yaml").read_text() in card.text
    assert 'IntervenedModel.from_pretrained("this-folder")' in card.text
    assert "| persona | block_output[1] |" in card.text


def test_card_does_not_take_a_local_folder_for_a_repository(
    made: Callable[..., IntervenedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = made(name="models/tiny").save_pretrained("artifact")
    assert ModelCard.load(folder / "README.md").data.base_model is None


@pytest.mark.parametrize(("mask", "file", "directory"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(
    made: Callable[..., IntervenedModel], tmp_path: Path, mask: int, file: int, directory: int
) -> None:
    old = os.umask(mask)
    try:
        folder = made().save_pretrained(tmp_path / "artifact")
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == directory
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {file}
