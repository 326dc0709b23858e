"""Artifacts that are refused: damaged, for another model, or made to be executed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_artifacts import (
    STEERING,
    WIDTH,
    alter_fingerprint,
    alter_tensors,
    llama,
    load,
    ref,
    rehash,
    spec_of,
)

from subvene.interventions import TensorError
from subvene.runner.artifacts.artifact import ArtifactError, RevisionWarning
from subvene.runner.edits.compile import CompileError
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.loading import ModelError
from subvene.specs import SpecError, dump_spec

FILES = ["intervention.yaml", "tensors.safetensors", "config.json", "intkey_*.bin"]


@pytest.mark.parametrize("pattern", [*FILES, "README.md", "fingerprint.json"])
@pytest.mark.usefixtures("no_model")
def test_missing_file_is_named(saved: Path, pattern: str) -> None:
    (path,) = saved.glob(pattern)
    path.unlink()
    with pytest.raises(ArtifactError) as caught:
        IntervenedModel.from_pretrained(saved)
    assert str(caught.value) == f"{path}: missing; the artifact is incomplete"


@pytest.mark.parametrize("how", ["truncated", "altered", "emptied"])
@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.usefixtures("no_model")
def test_truncated_and_altered_files_are_named(saved: Path, pattern: str, how: str) -> None:
    (path,) = saved.glob(pattern)
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    path.write_bytes({"truncated": data[: len(data) // 2], "altered": flipped, "emptied": b""}[how])
    with pytest.raises(ArtifactError, match="truncated or altered") as caught:
        IntervenedModel.from_pretrained(saved)
    assert str(path) in str(caught.value)


def test_card_may_be_edited(saved: Path) -> None:
    with (saved / "README.md").open("a") as card:
        card.write("\nMy notes.\n")
    load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        '{"sha256": {}, "model": 3}',
        '{"sha256": 3, "model": {"n_layers": 1}}',
        "[" * 100_000,
        "\xff",
    ],
)
@pytest.mark.usefixtures("no_model")
def test_fingerprint_that_is_none(saved: Path, text: str) -> None:
    (saved / "fingerprint.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"fingerprint.json: not a fingerprint"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.usefixtures("no_model")
def test_format_of_the_future(saved: Path) -> None:
    path = saved / "fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "2"}))
    with pytest.raises(ArtifactError, match="format '2', this subvene reads '1'"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.parametrize("place", ["missing", "file"])
def test_no_such_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=f"{place}: no such artifact folder"):
        IntervenedModel.from_pretrained(tmp_path / place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "width: the artifact has 24, the model 32"),
        ({"num_hidden_layers": 4}, "n_layers: the artifact has 3, the model 4"),
        ({"num_attention_heads": 2}, "n_heads: the artifact has 4, the model 2"),
        ({"head_dim": 16}, "head_dim: the artifact has 8, the model 16"),
    ],
)
def test_model_of_other_sizes_is_refused(saved: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ArtifactError, match="was made for another model") as caught:
        load(saved, **changes)
    assert message in str(caught.value)
    assert "load it onto user/tiny" in str(caught.value)


def test_another_architecture_is_refused(saved: Path) -> None:
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    with pytest.raises(ArtifactError, match="model_type: the artifact has 'llama', the model 'qwen2'"):
        IntervenedModel.from_pretrained(saved, model=transformers.Qwen2ForCausalLM(config))


def test_every_difference_is_named(saved: Path) -> None:
    with pytest.raises(ArtifactError, match=r"n_layers.*; width.*; n_heads"):
        load(saved, hidden_size=32, num_hidden_layers=4, num_attention_heads=2)


def test_config_alone_refuses_before_weights_are_loaded(
    made: Callable[..., IntervenedModel], tmp_path: Path
) -> None:
    only_config = tmp_path / "model"
    llama(num_hidden_layers=5).config.save_pretrained(only_config)
    folder = made(name=str(only_config)).save_pretrained(tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="n_layers: the artifact has 3, the model 5"):
        IntervenedModel.from_pretrained(folder)


@pytest.mark.parametrize(("made_with", "found", "warns"), [("a1", "b2", 1), ("a1", "a1", 0), (None, "b2", 0)])
def test_another_revision_warns_once(
    saved: Path, recwarn: pytest.WarningsRecorder, made_with: str | None, found: str, warns: int
) -> None:
    alter_fingerprint(saved, revision=made_with)
    model = llama()
    model.config._commit_hash = found
    IntervenedModel.from_pretrained(saved, model=model)
    messages = [str(w.message) for w in recwarn if w.category is RevisionWarning]
    assert len(messages) == warns
    if warns:
        assert "made with revision a1 of the model, and this is b2" in messages[0]


def test_a_vocabulary_of_another_size_warns_only(saved: Path) -> None:
    model = llama()
    model.resize_token_embeddings(65)
    with pytest.warns(RevisionWarning, match="vocab_size 64 .* 65"):
        IntervenedModel.from_pretrained(saved, model=model)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/tmp/x.safetensors", "C:\\x.safetensors", "a/../../x.safetensors"]
)
@pytest.mark.usefixtures("no_model")
def test_reference_that_leaves_the_folder(saved: Path, file: str) -> None:
    shutil.copy(saved / "tensors.safetensors", saved.parent / "x.safetensors")
    path = saved / "intervention.yaml"
    path.write_text(path.read_text().replace("tensors.safetensors", json.dumps(file)))
    rehash(saved)
    with pytest.raises(SpecError, match="a path within the artifact's folder"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.usefixtures("no_model")
def test_reference_to_another_file_of_the_folder(saved: Path) -> None:
    shutil.copy(saved / "tensors.safetensors", saved / "second.safetensors")
    path = saved / "intervention.yaml"
    path.write_text(path.read_text().replace("tensors.safetensors", "second.safetensors"))
    rehash(saved)
    with pytest.raises(
        ArtifactError, match=r"interventions\[0\].vector.file: expected 'tensors.safetensors'"
    ):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/file", "..", "a\0b"])
@pytest.mark.usefixtures("no_model")
def test_fingerprint_that_names_a_file_elsewhere(saved: Path, name: str) -> None:
    (saved.parent / "secret").write_text("x")
    path = saved / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    fingerprint["sha256"][name] = hashlib.sha256(b"x").hexdigest()
    path.write_text(json.dumps(fingerprint))
    with pytest.raises(ArtifactError, match=r"not a plain file name|missing"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["tensors.safetensors", "intervention.yaml", "fingerprint.json"])
@pytest.mark.usefixtures("no_model")
def test_link_that_leaves_the_folder(saved: Path, name: str) -> None:
    outside = saved.parent / "outside"
    (saved / name).rename(outside)
    (saved / name).symlink_to(outside)
    with pytest.raises(ArtifactError, match=f"{name}: a link that leaves the artifact's folder"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["intervention.yaml", "tensors.safetensors"])
def test_files_that_are_not_what_they_should_be(saved: Path, name: str) -> None:
    (saved / name).write_bytes(b"\xff\xfe not this")
    rehash(saved)
    with pytest.raises(ArtifactError, match=f"{name}: not "):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.usefixtures("no_model")
def test_yaml_tags_are_not_followed(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (saved / "intervention.yaml").write_text(f"subvene: !!python/object/apply:os.mkdir ['{marker}']\n")
    rehash(saved)
    with pytest.raises(SpecError):
        IntervenedModel.from_pretrained(saved)
    assert not marker.exists()


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_pickles_are_never_read(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (path,) = saved.glob("intkey_*.bin")
    path.write_bytes(pickle.dumps(Bomb(marker)))
    rehash(saved)
    assert load(saved).spec.interventions[0].kind == "steering"
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the bomb is one
    assert marker.exists()


def test_class_path_of_the_config_is_never_imported(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = saved / "config.json"
    config = json.loads(path.read_text())
    assert config["intervention_types"] == ["<class 'subvene.interventions.steering.SteeringIntervention'>"]
    path.write_text(json.dumps(config | {"intervention_types": ["<class 'evil_module.Evil'>"]}))
    rehash(saved)
    load(saved)
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v * torch.nan for n, v in t.items()}, "holds NaN"),
        (lambda t: {n: v.int() for n, v in t.items()}, "floating point"),
        (lambda t: {n: v[:5] for n, v in t.items()}, r"shape \[5\], expected \[24\]"),
        (
            lambda t: {"v.block_output[2]": t["v.block_output[1]"]},
            r"no tensor 'v.block_output\[1\]'; there is: v.b",
        ),
        (lambda t: {}, "it holds no tensors"),
    ],
    ids=["nan", "integer", "shape", "renamed", "missing"],
)
def test_tensors_that_do_not_fit(saved: Path, change: Any, message: str) -> None:
    alter_tensors(saved, change)
    with pytest.raises((TensorError, CompileError), match=message) as caught:
        load(saved)
    assert "interventions[0] (steering)" in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer": 3}, r"interventions\[0\].layer: expected a layer from 0 to 2 for this model, found 3"),
        (
            {"kind": "low_rank_edit", "layer": 0, "write_heads": [4], "read_heads": [1, 9]},
            r"write_heads: expected a head from 0 to 3 .* found 4\n.*read_heads: .* found 9",
        ),
        (
            {"kind": "head_direction", "directions": ref("iti"), "strength": 1.0, "heads": {5: [0], 1: [7]}},
            r"heads: expected a layer from 0 to 2 .* found 5\n.*heads\[1\]: expected a head .* found 7",
        ),
    ],
)
def test_spec_out_of_range_fails_with_only_a_config(
    tmp_path: Path, tensors: Path, fields: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "model"
    llama().config.save_pretrained(folder)
    assert [p.name for p in folder.iterdir()] == ["config.json"]
    good = spec_of(STEERING, name=str(folder))
    with pytest.raises(ModelError, match="cannot be loaded"):  # the weights are looked for only now
        IntervenedModel.from_spec(good, folder=tensors)
    bad = fields if "kind" in fields else STEERING | fields
    path = tensors / "bad.yaml"
    path.write_text(dump_spec(spec_of(bad, name=str(folder))))
    with pytest.raises(CompileError, match=message):
        IntervenedModel.from_spec(path)


def test_problems_of_all_interventions_are_listed(made: Callable[..., IntervenedModel]) -> None:
    with pytest.raises(CompileError) as caught:
        made(
            STEERING | {"vector": {"file": "none.safetensors", "key": "v"}},
            STEERING,
            STEERING | {"vector": ref("w")},
        )
    first, second = str(caught.value).splitlines()
    assert first.startswith("interventions[0] (steering): ")
    assert first.endswith("none.safetensors: no such tensor file")
    assert second.startswith("interventions[2] (steering): ")
    assert "no tensor 'w.block_output[1]'" in second
