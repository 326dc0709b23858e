"""What an artifact's JSON says is checked when it is read: the file and the field are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from artifact_to_spoil import WIDTH, rehash, steered, tiny_llama

from subvene.runner.artifacts import artifact
from subvene.runner.artifacts.artifact import ArtifactError
from subvene.runner.intervened.model import IntervenedModel


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return steered().save_pretrained(tmp_path / "artifact")


def alter(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "fingerprint.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


REQUIRED = ["sha256", "stock_pyvene", "model", "format"]
SIZES = ["n_layers", "width", "n_heads", "head_dim", "model_type"]


@pytest.mark.parametrize("field", [*REQUIRED, *(f"model.{name}" for name in SIZES)])
def test_a_field_that_is_missing_is_named(saved: Path, field: str) -> None:
    def remove(found: dict[str, Any]) -> None:
        *within, last = field.split(".")
        for name in within:
            found = found[name]
        del found[last]

    alter(saved, remove)
    with pytest.raises(
        ArtifactError, match=rf"artifact/fingerprint\.json: not a fingerprint: {field}: missing"
    ):
        artifact.read(saved)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"n_layers": "2"}, 'model.n_layers: expected a valid integer, found "2"'),
    ({"width": 16.0}, "model.width: expected a valid integer, found 16.0"),
    ({"n_heads": True}, "model.n_heads: expected a valid integer, found true"),
    ({"head_dim": 0}, "model.head_dim: expected greater than or equal to 1, found 0"),
    ({"head_dim": None}, "model.head_dim: expected a valid integer, found null"),
    ({"model_type": ["llama"]}, 'model.model_type: expected a valid string, found ["llama"]'),
    ({"architecture": 3}, "model.architecture: expected a valid string, found 3"),
    ({"vocab_size": "many"}, "model.vocab_size: expected a valid integer"),
    ({"revision": {}}, "model.revision: expected a valid string"),
    (
        dict.fromkeys(("n_layers", "width", "n_heads", "head_dim")) | {"modules": {"a": 3}},
        "model.modules.a: expected a valid string, found 3",
    ),
    ({"modules": {}}, "model.n_layers: expected None, found 2"),
]


@pytest.mark.parametrize(("model", "told"), WRONG)
def test_a_field_of_another_type_is_named(saved: Path, model: dict[str, Any], told: str) -> None:
    alter(saved, lambda found: found["model"].update(model))
    with pytest.raises(ArtifactError) as caught:
        artifact.read(saved)
    assert f"{saved / 'fingerprint.json'}: not a fingerprint: " in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"stock_pyvene": "yes"}, 'stock_pyvene: expected a valid boolean, found "yes"'),
        ({"sha256": {"intervention.yaml": 3}}, "sha256.intervention.yaml: expected a valid string, found 3"),
        ({"sha256": ["intervention.yaml"]}, "sha256: expected a valid dictionary"),
    ],
)
def test_a_field_beside_the_model_of_another_type_is_named(
    saved: Path, fields: dict[str, Any], told: str
) -> None:
    alter(saved, lambda found: found.update(fields))
    with pytest.raises(ArtifactError) as caught:
        artifact.read(saved)
    assert f"fingerprint.json: not a fingerprint: {told}" in str(caught.value)


def test_what_a_later_subvene_adds_is_left_alone(saved: Path) -> None:
    alter(saved, lambda found: found.update(more=[1]) or found["model"].update(more={"a": None}))
    assert IntervenedModel.from_pretrained(saved, model=tiny_llama()).spec.interventions[0].layer == 1


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ('{"provenance": null}', "metadata.provenance: expected"),
        ('{"provenance": [["a", 1]]}', "metadata.provenance: expected"),
        ('{"provenance": {"amended": 5}}', "metadata.provenance.amended: expected a valid list, found 5"),
        (
            '{"provenance": {"amended": [5]}}',
            "metadata.provenance.amended.0: expected a valid string, found 5",
        ),
        ("[]", "metadata: expected"),
        ("{", "not a readable safetensors file of an artifact"),
    ],
)
def test_metadata_that_is_not_what_it_should_be_is_named(saved: Path, metadata: str, told: str) -> None:
    path = saved / "tensors.safetensors"
    safetensors.torch.save_file({"v.block_output[1]": torch.ones(WIDTH)}, path, {"subvene": metadata})
    rehash(saved)
    with pytest.raises(ArtifactError) as caught:
        artifact.read(saved)
    assert f"{path}: not a readable safetensors file of an artifact" in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4"])
def test_a_type_of_number_that_torch_has_not_is_an_artifact_s_error(saved: Path, dtype: str) -> None:
    entry = {"dtype": dtype, "shape": [16], "data_offsets": [0, 16 if dtype == "F8_E8M0" else 8]}
    header = json.dumps({"v.block_output[1]": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(entry["data_offsets"][1])  # type: ignore[index]
    (saved / "tensors.safetensors").write_bytes(content)
    rehash(saved)
    with pytest.raises(ArtifactError, match=rf"tensors\.safetensors: not a readable .*{dtype}"):
        artifact.read(saved)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.ones(WIDTH).to(torch.float8_e4m3fn), "is torch.float8_e4m3fn, expected torch.float16"),
        (torch.ones(WIDTH, dtype=torch.complex64), "is torch.complex64"),
        (torch.ones(WIDTH).to_sparse(), "is no dense tensor"),
        (torch.ones(WIDTH, device="meta"), "is no dense tensor"),
        (torch.full((WIDTH,), float("inf")), "holds NaN or infinite values"),
    ],
)
def test_a_tensor_that_nobody_could_use_is_not_saved(tmp_path: Path, tensor: torch.Tensor, told: str) -> None:
    m = steered({"w.block_output[0]": tensor})
    with pytest.raises(ArtifactError) as caught:
        m.save_pretrained(tmp_path / "artifact")
    assert f"tensor 'w.block_output[0]' {told}" in str(caught.value)
    assert not list(tmp_path.iterdir())
