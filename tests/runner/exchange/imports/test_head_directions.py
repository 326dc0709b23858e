"""ITI's heads and directions: numpy files in, the published sum at the chosen heads out."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imports_oracle import by_hooks, logits, response_mask

from subvene.runner.exchange.imports import ImportRefusedError
from subvene.runner.intervened.model import IntervenedModel

Importing = Callable[..., IntervenedModel]
HEADS = np.array([[2, 1], [0, 3], [2, 0]])
_random = np.random.default_rng(0)
DIRECTIONS = _random.normal(size=(12, 8))
SIGMA = _random.uniform(0.5, 2.0, size=12)


def written(place: Path, **arrays: Any) -> Path:
    if place.suffix == ".npz":
        np.savez(place, **arrays)
    else:
        place.mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(place / f"{name}.npy", array)
    return place


def by_the_published_code(model: Any, alpha: float, sigma: np.ndarray[Any, Any]) -> torch.Tensor:
    """honest_llama: direction / norm, times σ of that head, times α, added to the head's slice."""
    shifts = torch.zeros(3, 32)
    for layer, head in HEADS:
        direction = DIRECTIONS[layer * 4 + head]
        direction = direction / np.linalg.norm(direction)
        shifts[layer, head * 8 : head * 8 + 8] = torch.tensor(alpha * sigma[layer * 4 + head] * direction)
    mask = response_mask()
    hooks = [
        (f"model.layers.{i}.self_attn.o_proj", "input", lambda o, i=i: o + mask * shifts[i]) for i in (0, 2)
    ]
    return by_hooks(model, *hooks)


@pytest.mark.parametrize("place", ["iti", "iti.npz"])
@pytest.mark.parametrize("form", ["flat", "grid", "by head", "none"])
def test_the_published_sum(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path, place: str, form: str
) -> None:
    arrays: dict[str, Any] = {"top_heads": HEADS, "com_directions": DIRECTIONS}
    sigma = SIGMA if form != "none" else np.ones(12)
    if form == "grid":
        arrays = {"x_top_heads": HEADS, "directions": DIRECTIONS.reshape(3, 4, 8), "std": SIGMA.reshape(3, 4)}
    elif form == "flat":
        arrays["sigma"] = SIGMA.astype(np.float32)
    elif form == "by head":
        arrays["proj_val_std"] = np.array([SIGMA[layer * 4 + head] for layer, head in HEADS])
    m = imported(written(tmp_path / place, **arrays), strength=3.0)
    expected = by_the_published_code(llama(), 3.0, sigma)
    torch.testing.assert_close(logits(m), expected, rtol=0, atol=1e-4)
    (edit,) = m.spec.interventions
    assert edit.heads == {0: (3,), 2: (0, 1)}
    assert ("σ = 1" in " ".join(m.provenance["conversion"])) == (form == "none")


def test_alpha_is_the_published_one(imported: Importing, tmp_path: Path) -> None:
    m = imported(written(tmp_path / "iti", top_heads=HEADS, directions=DIRECTIONS))
    assert m.spec.interventions[0].strength == 15.0
    assert m.spec.interventions[0].positions == "response"


def test_big_endian_and_half_floats(imported: Importing, tmp_path: Path) -> None:
    arrays = {"top_heads": HEADS.astype(">i4"), "directions": DIRECTIONS.astype(">f2")}
    m = imported(written(tmp_path / "iti", **arrays))
    row = DIRECTIONS[3].astype(np.float16).astype(np.float64)
    torch.testing.assert_close(
        m.tensors["iti.attention_heads[0]"][3], torch.tensor(row / np.linalg.norm(row)).float()
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"top_heads": HEADS}, "no array called directions; there is: top_heads"),
        ({"directions": DIRECTIONS}, "no array called top_heads"),
        (
            {"top_heads": HEADS, "directions": DIRECTIONS, "a_directions": DIRECTIONS},
            "several arrays could be",
        ),
        ({"top_heads": HEADS.astype(float), "directions": DIRECTIONS}, "top_heads is float64"),
        ({"top_heads": HEADS.T, "directions": DIRECTIONS}, r"expected integers \[K, 2\]"),
        ({"top_heads": HEADS[[0, 0]], "directions": DIRECTIONS}, "names a head twice"),
        ({"top_heads": HEADS + np.array([1, 0]), "directions": DIRECTIONS}, "layers from 0 to 2 .* found 3"),
        (
            {"top_heads": HEADS + np.array([0, 1]), "directions": DIRECTIONS},
            "heads from 0 to 3 .* found 4 at layer 0",
        ),
        ({"top_heads": -HEADS, "directions": DIRECTIONS}, "layers from 0 to 2"),
        ({"top_heads": HEADS, "directions": DIRECTIONS[:11]}, r"shape \[11, 8\], expected \[12, head_dim\]"),
        ({"top_heads": HEADS, "directions": DIRECTIONS[:, :6]}, "rows of 6, .* have 8"),
        ({"top_heads": HEADS, "directions": DIRECTIONS * np.inf}, "NaN or infinite"),
        ({"top_heads": HEADS, "directions": DIRECTIONS * 0}, "layer 0, head 3 is zero"),
        ({"top_heads": HEADS, "directions": DIRECTIONS.astype(int)}, "directions is int64"),
        ({"top_heads": HEADS, "directions": DIRECTIONS, "std": SIGMA[:5]}, r"sigma has shape \[5\]"),
        ({"top_heads": HEADS, "directions": DIRECTIONS, "std": -SIGMA}, "negative"),
    ],
)
@pytest.mark.parametrize("place", ["iti", "iti.npz"])
def test_arrays_that_do_not_fit(
    imported: Importing, tmp_path: Path, place: str, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImportRefusedError, match=message):
        imported(written(tmp_path / place, **arrays))
    assert not (tmp_path / "artifact").exists()


# --- where they were collected


def test_directions_of_the_output_of_o_proj(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path
) -> None:
    directions = _random.normal(size=(12, 6))  # 24 wide, in 4 parts
    arrays = {"top_heads": HEADS, "directions": directions, "std": SIGMA}
    place = written(tmp_path / "iti", **arrays)
    with pytest.raises(ImportRefusedError, match="rows of 6, and this model's heads have 8"):
        imported(place)
    m = imported(place, strength=3.0, collected="after_o_proj")
    shifts = torch.zeros(3, 24)
    for layer, head in HEADS:
        row = layer * 4 + head
        unit = directions[row] / np.linalg.norm(directions[row])
        shifts[layer, head * 6 : head * 6 + 6] = torch.tensor(3.0 * SIGMA[row] * unit)
    mask = response_mask()
    hooks = [
        (f"model.layers.{i}.self_attn.o_proj", "output", lambda o, i=i: o + mask * shifts[i]) for i in (0, 2)
    ]
    torch.testing.assert_close(logits(m), by_hooks(llama(), *hooks), rtol=0, atol=1e-4)
    assert {edit.site for edit in m.spec.interventions} == {"attention_output"}
    assert any("after o_proj, as --collected says" in said for said in m.provenance["conversion"])
    with pytest.raises(ImportRefusedError, match="parts of 6"):
        imported(written(tmp_path / "x", top_heads=HEADS, directions=DIRECTIONS), collected="after_o_proj")


@pytest.mark.parametrize(
    ("head_dim", "collected", "said"),
    [
        (8, None, "their width says so, too"),
        (6, None, "nothing in the file tells: if they were not, say --collected after_o_proj"),
        (6, "before_o_proj", "and --collected says"),
    ],
)
def test_what_is_assumed_is_said(
    imported: Importing,
    llama: Callable[..., Any],
    tmp_path: Path,
    head_dim: int,
    collected: str | None,
    said: str,
) -> None:
    place = written(tmp_path / "iti", top_heads=HEADS, directions=DIRECTIONS[:, :head_dim])
    m = imported(place, model=llama(head_dim=head_dim), collected=collected)
    (statement,) = [line for line in m.provenance["conversion"] if "before o_proj" in line]
    assert said in statement
    assert m.spec.interventions[0].kind == "head_direction"


# --- pickles and lies


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["folder", "npz", "npy that is a pickle", "pkl beside", "pkl alone"])
def test_pickles_are_refused_and_not_executed(imported: Importing, tmp_path: Path, how: str) -> None:
    marker, place = tmp_path / "executed", tmp_path / ("iti.npz" if how == "npz" else "iti")
    objects = np.array([Bomb(marker)], dtype=object)
    written(place, top_heads=HEADS if "pkl" in how else objects, directions=DIRECTIONS)
    if how == "npy that is a pickle":
        (place / "top_heads.npy").write_bytes(pickle.dumps(Bomb(marker)))
    if "pkl" in how:
        (place / "top_heads.pkl").write_bytes(pickle.dumps(Bomb(marker)))
    source = place / "top_heads.pkl" if how == "pkl alone" else place
    with pytest.raises(ImportRefusedError, match=r"pickle.*numpy\.save") as caught:
        imported(source)
    assert "top_heads" in str(caught.value)
    assert not marker.exists()


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        header("(1099511627776, 8)"),
        header("(12, 8)") + bytes(100),
        header("(-12, 8)") + bytes(768),
        header("(12, 8)", "'|O'") + bytes(768),
        header("__import__('os').mkdir('executed')"),
        header("(" * 40 + ")" * 40),
        b"\x93NUMPY\x09\x00" + bytes(100),
        b"\x93NUMPY",
        b"",
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_headers_that_lie(imported: Importing, tmp_path: Path, data: bytes, archive: bool) -> None:
    place = written(tmp_path / "iti", top_heads=HEADS, directions=DIRECTIONS)
    if archive:
        heads, place = (place / "top_heads.npy").read_bytes(), tmp_path / "iti.npz"
        with zipfile.ZipFile(place, "w") as file:
            file.writestr("top_heads.npy", heads)
            file.writestr("directions.npy", data)
    else:
        (place / "directions.npy").write_bytes(data)
    with pytest.raises(ImportRefusedError, match="directions") as caught:
        imported(place)
    # Refused for the size it claims, before numpy sets memory aside for it.
    if data.startswith((header("(12, 8)"), header("(1099511627776, 8)"))):
        assert "its header claims" in str(caught.value)


def test_a_zip_bomb_is_not_unpacked(
    imported: Importing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from subvene.runner.exchange.imports import opened

    monkeypatch.setattr(opened, "MAX_BYTES", 2**20)
    with zipfile.ZipFile(tmp_path / "iti.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("top_heads.npy", bytes(2**21))
    with pytest.raises(ImportRefusedError, match="unpacks to more than"):
        imported(tmp_path / "iti.npz")


def test_names_of_an_archive_write_nothing(imported: Importing, tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, HEADS)
    with zipfile.ZipFile(tmp_path / "iti.npz", "w") as file:
        file.writestr("../../escaped_top_heads.npy", stream.getvalue())
        file.writestr("/abs/directions.npy", stream.getvalue())
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(ImportRefusedError, match="directions is int64"):
        imported(tmp_path / "iti.npz")
    assert sorted(tmp_path.parent.rglob("*")) == before
