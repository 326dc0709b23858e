"""`subvene set`: the promise of an import, that another layer can be chosen later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from artifact_to_spoil import rehash

from subvene.runner.artifacts import artifact
from subvene.runner.artifacts.amendment import AmendmentError, amend
from subvene.runner.artifacts.artifact import ArtifactError
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import SubveneError

Run = Callable[..., Any]
ROWS = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture
def imported(subvene: Run, model_folder: Path, tmp_path: Path) -> Path:
    torch.save(ROWS, tmp_path / "kind.pt")
    command = ("import", tmp_path / "kind.pt", "-o", tmp_path / "artifact", "--model", model_folder)
    assert subvene(*command, "--layer", 1).exit_code == 0
    return tmp_path / "artifact"


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return IntervenedModel.from_pretrained(folder)(IDS, prompt_lengths=[2]).logits


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_layer_is_what_importing_it_there_gives(
    subvene: Run, imported: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    source = ("import", tmp_path / "kind.pt", "-o", other, "--model", model_folder)
    assert subvene(*source, "--layer", 0, "--strength", -2, "--positions", "all").exit_code == 0
    with monkeypatch.context() as patch:  # weights are not needed
        patch.setattr("subvene.runner.models.loading.load_model", lambda *a, **k: pytest.fail("loaded"))
        done = subvene("set", imported, "layer=0", "strength=-2", "positions=all")
    assert done.exit_code == 0, done.stderr
    assert "set      kind.layer: 1 -> 0" in done.stdout
    assert torch.equal(logits(imported), logits(other))
    read = artifact.read(imported)
    assert read.provenance["amended"] == [
        "kind.layer: 1 -> 0",
        "kind.coefficient: 1.0 -> -2",
        'kind.positions: "response" -> "all"',
    ]
    assert read.provenance["format"] == "persona-vector"
    # Every layer is still there, and so is the way back.
    assert read.tensors.keys() == {f"kind.block_output[{layer}]" for layer in range(3)}
    assert json.loads(subvene("set", imported, "layer=1", "--json").stdout)["amended"] == [
        "kind.layer: 0 -> 1"
    ]
    assert len(artifact.read(imported).provenance["amended"]) == 4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_elsewhere_leaves_the_old_one(subvene: Run, imported: Path, tmp_path: Path) -> None:
    before = content(imported)
    done = subvene("set", imported, "kind.positions={last: 1}", "-o", tmp_path / "new")
    assert done.exit_code == 0, done.stderr
    assert content(imported) == before
    assert artifact.read(tmp_path / "new").spec.interventions[0].positions.last == 1
    assert subvene("generate", tmp_path / "new", "-p", "hello", "--max-new-tokens", 2).exit_code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert "is no artifact" in subvene("set", imported, "layer=0", "-o", tmp_path / "mine").stderr


REFUSED: list[tuple[tuple[str, ...], str, int]] = [
    (("layer=3",), "expected a layer from 0 to 2", 1),
    (("site=mlp_output",), "no tensor 'kind.mlp_output[1]'; there is: kind.block_output[0]", 1),
    (("vector={key: other}",), "no tensor 'other.block_output[1]'", 1),
    (("vector={key: kind, file: x.safetensors}",), "is another file", 1),
    (("vector={key: kind, file: ../x.safetensors}",), "within the artifact's folder", 1),
    (("layer=one",), "interventions[0].layer", 1),
    (("layer=-1",), "interventions[0].layer", 1),
    (("strength=.inf",), "strength: expected finite numbers", 1),
    (("unit=residual_norm",), "residual_norm", 1),
    (("colour=3",), "steering has no field 'colour' to set; it has: coefficient, during, layer", 1),
    (("kind=ablation",), "has no field 'kind'", 1),
    (("other.layer=0",), "no intervention is called 'other'; there are: kind", 1),
    (("layer",), "expected FIELD=VALUE", 2),
    (("layer=",), "expected FIELD=VALUE", 2),
    (("layer={",), "is no YAML value", 2),
    (("layer=0", "layer=1"), "given twice", 2),
]


def test_what_does_not_exist_is_refused_and_nothing_is_written(subvene: Run, imported: Path) -> None:
    before = content(imported)
    for changes, message, code in REFUSED:
        done = subvene("set", imported, *changes)
        assert done.exit_code == code, changes
        assert message in " ".join(done.stderr.replace("│", " ").split())
        assert content(imported) == before


def test_files_of_somebody_else_are_not_lost(subvene: Run, imported: Path) -> None:
    (imported / ".git").mkdir()
    done = subvene("set", imported, "layer=0")
    assert done.exit_code == 1
    assert "holds more than the artifact (.git)" in done.stderr
    assert artifact.read(imported).spec.interventions[0].layer == 1


def test_an_altered_artifact_and_no_change_are_refused(imported: Path) -> None:
    with pytest.raises(AmendmentError, match="nothing to change"):
        amend(imported, {})
    spec = imported / "intervention.yaml"
    spec.write_text(spec.read_text().replace("layer: 1", "layer: 0"))
    with pytest.raises(SubveneError, match="sha256"):
        amend(imported, {"layer": 2})


def test_one_of_several_by_its_name(subvene: Run, model_folder: Path, tmp_path: Path) -> None:
    torch.save(ROWS, tmp_path / "kind.pt")
    command = ("import", tmp_path / "kind.pt", "-o", tmp_path / "a", "--model", model_folder)
    assert subvene(*command, "--layer", 0, "--layer", 1).exit_code == 0
    assert "say NAME.layer with one of: kind_0, kind_1" in subvene("set", tmp_path / "a", "layer=2").stderr
    assert subvene("set", tmp_path / "a", "kind_1.layer=2", "kind_0.coefficient=3").exit_code == 0
    edits = artifact.read(tmp_path / "a").spec.interventions
    assert [(edit.layer, edit.coefficient) for edit in edits] == [(0, 3.0), (2, 1.0)]


ODD: list[tuple[str, torch.Tensor, str]] = [
    ("kind.block_output[0]", torch.ones(32).to(torch.float8_e4m3fn), "is torch.float8_e4m3fn, expected"),
    ("kind.block_output[0]", torch.ones(32, dtype=torch.int32), "is torch.int32, expected"),
    ("kind.block_output[0]", torch.ones(31), "has shape [31], expected 32 numbers"),
    ("other.attention_heads[0]", torch.ones(4, 7), "has shape [4, 7], expected 32 numbers"),
    ("other.attention_heads[0].a", torch.ones(31), "has shape [31], expected [rank, 32]"),
    ("kind.block_output[9]", torch.ones(32), "is of a layer beyond 2"),
    ("kind.block_output[0]", torch.full((32,), float("nan")), "holds NaN or infinite values"),
]


@pytest.mark.parametrize(("name", "tensor", "told"), ODD)
def test_a_tensor_of_no_use_elsewhere_is_refused_and_nothing_is_written(
    imported: Path, tmp_path: Path, name: str, tensor: torch.Tensor, told: str
) -> None:
    file = imported / "tensors.safetensors"
    safetensors.torch.save_file(safetensors.torch.load_file(file) | {name: tensor}, file)
    rehash(imported)
    before = content(imported)
    for output in (None, tmp_path / "new"):
        with pytest.raises(ArtifactError) as caught:
            amend(imported, {"coefficient": 3}, output)
        assert f"tensor {name!r} {told}" in str(caught.value)
    assert content(imported) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda model: model.pop("width"), "fingerprint.json: not a fingerprint: model.width: missing"),
        (lambda model: model.update(head_dim="8"), "model.head_dim: expected a valid integer"),
    ],
)
@pytest.mark.parametrize("command", [("show",), ("set", "layer=0")])
def test_a_fingerprint_without_a_size_is_one_line(
    subvene: Run, imported: Path, command: tuple[str, ...], spoil: Callable[[Any], object], told: str
) -> None:
    file = imported / "fingerprint.json"
    fingerprint = json.loads(file.read_text())
    spoil(fingerprint["model"])
    file.write_text(json.dumps(fingerprint))
    before = content(imported)
    done = subvene(command[0], imported, *command[1:], env={"COLUMNS": "400"})
    assert (done.exit_code, content(imported)) == (1, before)
    assert told in done.stderr


def test_show_tells_a_digest_that_is_a_number(subvene: Run, imported: Path) -> None:
    file = imported / "tensors.safetensors"
    about = {"subvene": json.dumps({"provenance": {"a_sha256": 5}})}
    safetensors.torch.save_file(safetensors.torch.load_file(file), file, about)
    rehash(imported)
    assert "a_sha256 5" in subvene("show", imported).stdout
