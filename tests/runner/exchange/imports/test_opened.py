"""A foreign file whose tensors are no plain real numbers is refused in one place, whatever reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from subvene.runner.exchange.imports.opened import ImportRefusedError, Opened

Importing = Callable[..., Any]
ROWS = torch.ones(4, 24)
CODES = torch.zeros(4, 24, dtype=torch.uint8)


def nested(layout: torch.layout) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=layout)


# Made when they are asked for: making some of them warns.
ODD: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "nested": (lambda: nested(torch.strided), r"is no dense tensor \(nested\)"),
    "jagged": (lambda: nested(torch.jagged), r"is no dense tensor \(nested\)"),
    "sparse": (ROWS.to_sparse, r"is no dense tensor \(of layout torch.sparse_coo\)"),
    "sparse rows": (ROWS.to_sparse_csr, r"is no dense tensor \(of layout torch.sparse_csr\)"),
    "quantised": (
        lambda: torch.quantize_per_tensor(ROWS, 0.1, 0, torch.qint8),
        r"is no dense tensor \(quantised\)",
    ),
    "meta": (lambda: ROWS.to("meta"), r"is no dense tensor \(without values, on meta\)"),
    "complex": (lambda: ROWS.to(torch.complex64), "is torch.complex64"),
    "float4": (lambda: CODES.view(torch.float4_e2m1fn_x2), "is torch.float4_e2m1fn_x2"),
}


@pytest.mark.filterwarnings(
    "ignore"
)  # of torch, that nested and quantised tensors are on their way in or out
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("file", ["v.pt", "direction.pt", "of layers.pt", "tuple.pt"])
def test_an_odd_tensor_is_refused_whatever_reads_it(
    imported: Importing, tmp_path: Path, name: str, file: str
) -> None:
    make, told = ODD[name]
    value: Any = {"of layers.pt": {1: make()}, "tuple.pt": (ROWS, [make()])}.get(file, make())
    torch.save(value, tmp_path / file)
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -1, "layer": 2}))
    for read in (lambda: Opened(tmp_path / file).torch(), lambda: imported(tmp_path / file)):
        with pytest.raises(
            ImportRefusedError, match=rf"{file}: a tensor {told}; expected plain real numbers"
        ):
            read()
    assert not (tmp_path / "artifact").exists()


def test_an_odd_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((4, 24), complex))
    with pytest.raises(ImportRefusedError, match=r"v.npy: holds complex128, expected plain real numbers"):
        Opened(tmp_path / "v.npy").numpy()
    np.savez(tmp_path / "v.npz", a=np.array(["text"]))
    with pytest.raises(ImportRefusedError, match=r"v.npz\[a.npy\]: holds <U4, expected plain real numbers"):
        Opened(tmp_path / "v.npz").numpy_archive()


def test_an_odd_tensor_of_safetensors_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": ROWS.to(torch.complex64)}, tmp_path / "a.safetensors")
    with pytest.raises(ImportRefusedError, match=r"a tensor is torch.complex64; expected plain real"):
        Opened(tmp_path / "a.safetensors").safetensors()
