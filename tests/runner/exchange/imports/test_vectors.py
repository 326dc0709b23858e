"""Persona vectors and GGUF control vectors: each layer lands where its own tool puts it."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from imports_oracle import by_hooks, logits, response_mask

from subvene.runner.exchange.imports import ImportRefusedError
from subvene.runner.intervened.model import IntervenedModel

Importing = Callable[..., IntervenedModel]
ROWS = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def persona(tmp_path: Path) -> Path:
    path = tmp_path / "sycophantic_response_avg_diff.pt"
    torch.save(ROWS, path)
    return path


# --- persona vectors


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_row_is_the_output_of_the_block_before(
    imported: Importing, llama: Callable[..., Any], persona: Path, layer: int
) -> None:
    m = imported(persona, layers=(layer,), strength=2.0)
    mask = response_mask()
    expected = by_hooks(
        llama(), (f"model.layers.{layer}", "output", lambda h: h + 2.0 * mask * ROWS[layer + 1])
    )
    torch.testing.assert_close(logits(m), expected, rtol=0, atol=1e-5)
    assert m.provenance["conversion"][0] == f"row {layer + 1} of the file is block_output[{layer}]"
    (edit,) = m.spec.interventions
    assert (edit.name, edit.site, edit.layer, edit.positions) == (
        "sycophantic",
        "block_output",
        layer,
        "response",
    )


def test_a_row_is_what_hidden_states_call_so(
    llama: Callable[..., Any], imported: Importing, tmp_path: Path
) -> None:
    # The file is made as the persona-vectors code does, by rows of `hidden_states`.
    model = llama()
    with torch.no_grad():
        hidden = model(torch.arange(1, 9).unsqueeze(0), output_hidden_states=True).hidden_states
    torch.save(torch.stack([h[0].mean(0) for h in hidden]), tmp_path / "v.pt")
    m = imported(tmp_path / "v.pt", layers=(1,))
    outputs: list[torch.Tensor] = []
    by = model.model.layers[1].register_forward_hook(lambda _m, _a, out: outputs.append(out))
    with torch.no_grad():
        model(torch.arange(1, 9).unsqueeze(0))
    by.remove()
    mean = (outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0])[0].mean(0)
    torch.testing.assert_close(m.tensors["v.block_output[1]"], mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_is_read(imported: Importing, tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(ROWS.to(dtype), tmp_path / "v.pt")
    m = imported(tmp_path / "v.pt", layers=(0, 2), key="k")
    assert m.tensors.keys() == {f"k.block_output[{layer}]" for layer in range(3)}
    for layer in range(3):
        assert torch.equal(m.tensors[f"k.block_output[{layer}]"], ROWS[layer + 1].to(dtype).float())
    assert [edit.name for edit in m.spec.interventions] == ["k_0", "k_2"]
    assert m.provenance["stored_as"] == str(dtype).removeprefix("torch.")


def test_what_was_read_is_recorded(imported: Importing, persona: Path) -> None:
    import hashlib

    m = imported(persona, layers=(1,))
    assert m.provenance["sha256_of_files"] == {persona.name: hashlib.sha256(persona.read_bytes()).hexdigest()}
    assert (m.provenance["recipe"], m.provenance["format"]) == ("import", "persona-vector")


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (ROWS, {}, r"say which block with --layer, 0 to 2"),
        (ROWS, {"layers": (3,)}, r"expected layers from 0 to 2 for this model, found 3"),
        (
            ROWS[:3],
            {"layers": (1,)},
            r"shape \[3, 24\], expected \[4, 24\] .* embeddings' row, .* is not there",
        ),
        (torch.zeros(9, 24), {"layers": (1,)}, r"shape \[9, 24\], expected \[4, 24\]"),
        (torch.zeros(4, 23), {"layers": (1,)}, r"shape \[4, 23\]"),
        (torch.zeros(4, 24), {"layers": (1,)}, r"row 2, block_output\[1\], is zero"),
        ({"v": ROWS}, {"layers": (1,)}, r"'v' is no layer"),
        (ROWS * torch.nan, {"layers": (1,)}, r"NaN or infinite"),
        (ROWS.int(), {"layers": (1,)}, r"torch.int32"),
        (ROWS.to_sparse(), {"layers": (1,)}, r"no dense tensor|not a readable"),
        (torch.zeros(1).expand(4, 24), {"layers": (1,)}, r"is zero|claims"),
        (torch.empty(4, 24, device="meta"), {"layers": (1,)}, r"no dense tensor|not a readable"),
        (torch.zeros(1).expand(2**20, 2**20), {"layers": (1,)}, r"claims the shape"),
        (ROWS, {"layers": (1,), "accept_residual": True}, r"--accept-residual has no meaning"),
        (ROWS, {"layers": (1,), "key": "a b"}, r"--key 'a b'"),
    ],
)
def test_tensors_that_are_no_persona_vector(
    imported: Importing, tmp_path: Path, value: Any, options: dict[str, Any], message: str
) -> None:
    torch.save(value, tmp_path / "v.pt")
    with pytest.raises(ImportRefusedError, match=message):
        imported(tmp_path / "v.pt", **options)
    assert not (tmp_path / "artifact").exists()


# --- control vectors


def write_gguf(path: Path, directions: dict[str, np.ndarray[Any, Any]], arch: str = "controlvector") -> Path:
    """As repeng's `export_gguf` does."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_string(f"{arch}.model_hint", "mistral")
    writer.add_uint32(f"{arch}.layer_count", len(directions))
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


VECTORS = {layer: np.random.default_rng(layer).normal(size=24).astype(np.float32) for layer in (0, 1, 2)}


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "happy.gguf", {f"direction.{i}": VECTORS[i] for i in (1, 2)})


def test_a_direction_acts_on_the_output_of_its_block(
    imported: Importing, llama: Callable[..., Any], control: Path
) -> None:
    m = imported(control, strength=-1.5)
    hooks = [
        (f"model.layers.{i}", "output", lambda h, i=i: h - 1.5 * torch.from_numpy(VECTORS[i])) for i in (1, 2)
    ]
    torch.testing.assert_close(logits(m), by_hooks(llama(), *hooks), rtol=0, atol=1e-5)
    assert [(e.name, e.layer, e.positions) for e in m.spec.interventions] == [
        ("happy_1", 1, "all"),
        ("happy_2", 2, "all"),
    ]
    assert any("'mistral', and this is 'llama'" in said for said in m.provenance["conversion"])


def test_chosen_directions(imported: Importing, control: Path) -> None:
    m = imported(control, layers=(2,), positions="response", key="k")
    assert [(e.layer, e.positions) for e in m.spec.interventions] == [(2, "response")]
    assert m.tensors.keys() == {"k.block_output[1]", "k.block_output[2]"}


def test_zero_directions_are_left_out_and_named(imported: Importing, tmp_path: Path) -> None:
    zero = np.zeros(24, np.float32)
    path = write_gguf(tmp_path / "v.gguf", {"direction.1": zero, "direction.2": VECTORS[2]})
    m = imported(path)
    assert [edit.layer for edit in m.spec.interventions] == [2]
    assert list(m.tensors) == ["v.block_output[2]"]
    assert "direction.1 of the file is zero, and left out" in m.provenance["conversion"]
    assert m.provenance["left_out"] == [1]


@pytest.mark.parametrize(
    ("directions", "layers", "message"),
    [((0.0, 1.0), (1,), r"direction.1 is zero, so it has no direction"), ((0.0, 0.0), (), "every direction")],
)
def test_a_zero_direction_that_is_asked_for_is_refused(
    imported: Importing, tmp_path: Path, directions: Any, layers: Any, message: str
) -> None:
    some = {f"direction.{i}": np.full(24, value, np.float32) for i, value in enumerate(directions, 1)}
    with pytest.raises(ImportRefusedError, match=message):
        imported(write_gguf(tmp_path / "v.gguf", some), layers=layers)


def test_direction_0_is_repengs_alone(imported: Importing, tmp_path: Path) -> None:
    m = imported(write_gguf(tmp_path / "v.gguf", {"direction.0": VECTORS[0]}))
    assert m.spec.interventions[0].layer == 0
    assert any("llama.cpp would refuse direction.0" in said for said in m.provenance["conversion"])


@pytest.mark.parametrize(
    ("directions", "arch", "options", "message"),
    [
        ({"direction.1": VECTORS[1]}, "llama", {}, "architecture 'llama', expected 'controlvector'"),
        (
            {"direction.-1": VECTORS[1]},
            "controlvector",
            {},
            r"tensor 'direction.-1': expected only direction.N",
        ),
        ({"other": VECTORS[1]}, "controlvector", {}, "expected only direction.N"),
        ({"direction.1": VECTORS[1][:8]}, "controlvector", {}, "width 8, and this model has 24"),
        ({"direction.1": VECTORS[1].reshape(2, 12)}, "controlvector", {}, r"F32 \[2, 12\], expected F32"),
        ({"direction.7": VECTORS[1]}, "controlvector", {}, "layers from 0 to 2 .* found 7"),
        ({"direction.1": VECTORS[1] * np.nan}, "controlvector", {}, "direction.1 holds NaN"),
        ({"direction.1": VECTORS[1].astype(np.int32)}, "controlvector", {}, "is I32"),
        ({"direction.1": VECTORS[1]}, "controlvector", {"layers": (2,)}, "no direction.2; it has .* 1"),
        ({}, "controlvector", {}, "holds no direction"),
    ],
)
def test_files_that_are_no_control_vector(
    imported: Importing, tmp_path: Path, directions: Any, arch: str, options: dict[str, Any], message: str
) -> None:
    path = write_gguf(tmp_path / "v.gguf", directions, arch)
    with pytest.raises(ImportRefusedError, match=message):
        imported(path, **options)


@pytest.mark.parametrize("where", ["tensor_count", "kv_count", "key_length", "array"])
def test_a_header_that_promises_more_than_there_is_costs_nothing(
    imported: Importing, control: Path, where: str
) -> None:
    # The library reads nothing beyond the end, and would go on counting to 2**60.
    data = bytearray(control.read_bytes())
    huge = (2**60).to_bytes(8, "little")
    if where == "array":
        array = (9).to_bytes(4, "little") + (4).to_bytes(4, "little") + huge
        key = b"controlvector.layer_count"
        at = data.index(key) + len(key)
        data[at:] = array
    else:
        at = {"tensor_count": 8, "kv_count": 16, "key_length": 24}[where]
        data[at : at + 8] = huge
    control.write_bytes(bytes(data))
    with pytest.raises(ImportRefusedError, match="not a readable GGUF file"):
        imported(control)


def test_every_truncation_is_refused(imported: Importing, control: Path) -> None:
    data = control.read_bytes()
    for length in range(0, len(data), 37):
        control.write_bytes(data[:length])
        with pytest.raises(ImportRefusedError):
            imported(control)


# --- what is recognised


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["v.pt", "v.pth", "v.pkl", "v.pickle", "v.joblib", "v.bin", "v"])
@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_pickles_are_refused_and_not_executed(
    imported: Importing, tmp_path: Path, name: str, how: str
) -> None:
    marker, path = tmp_path / "executed", tmp_path / name
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        torch.save({"v": Bomb(marker)}, path, _use_new_zipfile_serialization=how == "torch")
    for format in (None, "persona-vector", "iti"):
        with pytest.raises(ImportRefusedError, match=re.escape(str(path))):
            imported(path, format=format, layers=() if format == "iti" else (1,))
    assert not marker.exists()
    torch.load(path, weights_only=False) if how != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()  # the bomb is one


@pytest.mark.parametrize("name", ["notes.txt", "adapter_model.safetensors"])
def test_what_is_not_known(imported: Importing, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("hello")
    with pytest.raises(ImportRefusedError, match=r"none of the formats|give the adapter's folder"):
        imported(tmp_path / name)
    with pytest.raises(ImportRefusedError, match="no such file or folder"):
        imported(tmp_path / "nothing")
