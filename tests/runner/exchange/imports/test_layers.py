"""Vectors by layer: whatever a file counts, each lands at the output of the block that it was read at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from imports_oracle import by_hooks, logits, response_mask

from subvene.runner.exchange.imports import ImportRefusedError
from subvene.runner.intervened.model import IntervenedModel

Importing = Callable[..., IntervenedModel]
# [positions, n_layers, width], as the published code saves it: float64, row l the input of block l.
MEANS = torch.randn(2, 3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
VECTOR = MEANS[0, 1].float()


def saved(path: Path, value: Any) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    torch.save(value, path)
    return path


def run_folder(folder: Path, pos: int = -2, layer: int = 2) -> Path:
    """What the published pipeline leaves."""
    saved(folder / "direction.pt", MEANS[pos, layer])
    saved(folder / "generate_directions" / "mean_diffs.pt", MEANS)
    (folder / "direction_metadata.json").write_text(json.dumps({"pos": pos, "layer": layer}, indent=4))
    return folder


def added_to_input(model: Any, block: int, vector: torch.Tensor) -> torch.Tensor:
    """As the published code adds a direction: at every token of a block's input."""
    return by_hooks(model, (f"model.layers.{block}", "input", lambda h: h + vector.float()))


# --- one vector


def test_a_vector_with_its_layer(imported: Importing, llama: Callable[..., Any], tmp_path: Path) -> None:
    m = imported(saved(tmp_path / "kind.pt", VECTOR), layers=(1,), strength=2.0)
    mask = response_mask()
    expected = by_hooks(llama(), ("model.layers.1", "output", lambda h: h + 2.0 * mask * VECTOR))
    torch.testing.assert_close(logits(m), expected, rtol=0, atol=1e-5)
    assert m.provenance["format"] == "layer-vectors"
    assert "block_output[1], as --layer says" in m.provenance["conversion"][0]


# --- dictionaries


@pytest.mark.parametrize(
    ("keys", "rows", "blocks"),
    [
        ([0, 1, 2], None, [0, 1, 2]),
        (["0", "2"], "outputs", [0, 2]),
        (["layer_1", "layer_2"], None, [1, 2]),
        (["model.layers.1"], "outputs", [1]),
        ([1, 2], "inputs", [0, 1]),
        ([0, 1, 2, 3], "hidden_states", [0, 1, 2]),
        (["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"], None, [0, 1]),
        (["blocks.1.hook_resid_post"], None, [1]),
        (["v.block_output[2]"], None, [2]),
    ],
)
def test_a_dictionary_by_layer(
    imported: Importing, tmp_path: Path, keys: list[Any], rows: Any, blocks: list[int]
) -> None:
    vectors = {key: torch.full((24,), float(i + 1)) for i, key in enumerate(keys)}
    m = imported(saved(tmp_path / "v.pt", vectors), layers=(blocks[-1],), rows=rows)
    values = list(vectors.values())[len(keys) - len(blocks) :]  # the embeddings, where they come first
    expected = {f"v.block_output[{block}]": value for block, value in zip(blocks, values, strict=True)}
    assert m.tensors.keys() == expected.keys()
    assert all(torch.equal(m.tensors[name], value) for name, value in expected.items())
    assert m.spec.interventions[0].layer == blocks[-1]
    assert ("as --rows says" in m.provenance["conversion"][0]) == (rows is not None)


@pytest.mark.parametrize("rows", ["inputs", "outputs"])
def test_a_row_a_block(imported: Importing, tmp_path: Path, rows: str) -> None:
    path = saved(tmp_path / "v.pt", MEANS[0].float())
    with pytest.raises(ImportRefusedError, match="--rows outputs or --rows inputs"):
        imported(path, layers=(1,))
    m = imported(path, layers=(1,), rows=rows)
    assert torch.equal(m.tensors["v.block_output[1]"], MEANS[0, 2 if rows == "inputs" else 1].float())
    if rows == "inputs":
        with pytest.raises(ImportRefusedError, match="is the input of no block"):
            imported(path, layers=(2,), rows=rows)


# --- the refusal direction


@pytest.mark.parametrize("as_file", [True, False])
def test_the_published_direction_acts_where_it_was_published(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path, as_file: bool
) -> None:
    folder = run_folder(tmp_path / "run")
    m = imported(folder / "direction.pt" if as_file else folder, strength=-1.0)
    expected = added_to_input(llama(), 2, -MEANS[-2, 2])
    torch.testing.assert_close(logits(m), expected, rtol=0, atol=1e-5)
    (edit,) = m.spec.interventions
    assert (edit.site, edit.layer, edit.positions) == ("block_output", 1, "all")
    assert m.provenance["format"] == "refusal-direction"
    assert (
        "layer 2 of the file is the input of block 2, which is block_output[1]" in m.provenance["conversion"]
    )
    assert set(m.provenance["sha256_of_files"]) == {"direction.pt", "direction_metadata.json"}


def test_mean_differences_of_every_layer(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path
) -> None:
    path = run_folder(tmp_path / "run") / "generate_directions" / "mean_diffs.pt"
    m = imported(path, layers=(0,), position=-1)
    expected = added_to_input(llama(), 1, MEANS[-1, 1])
    torch.testing.assert_close(logits(m), expected, rtol=0, atol=1e-5)
    # Row 0 is the embeddings', and the last block's output is no block's input.
    assert m.tensors.keys() == {"mean_diffs.block_output[0]", "mean_diffs.block_output[1]"}


@pytest.mark.parametrize(
    ("value", "metadata", "options", "message"),
    [
        (VECTOR, None, {}, "of which layer: give one --layer"),
        (VECTOR, None, {"layers": (0, 1)}, "give one --layer"),
        (VECTOR, None, {"layers": (3,)}, "layers from 0 to 2 .* found 3"),
        (VECTOR, None, {"layers": (1,), "rows": "inputs"}, "--layer says all of one vector"),
        (VECTOR[:8], None, {"layers": (1,)}, r"shape \[8\], expected \[24\]"),
        (VECTOR * 0, None, {"layers": (1,)}, r"block_output\[1\] is zero"),
        (VECTOR, {"pos": -1, "layer": 2}, {"layers": (2,)}, r"input of block 2, .* block_output\[1\]"),
        (VECTOR, {"pos": -1, "layer": 0}, {}, "the embeddings are the output of no block"),
        (VECTOR, {"pos": -1, "layer": 4}, {}, "layers from 0 to 2 .* found 3"),
        (VECTOR, {"pos": 1, "layer": "2"}, {}, "says pos 1 and layer '2'"),
        (VECTOR, {"pos": -1}, {}, "layer None"),
        (MEANS, None, {"layers": (1,)}, "2 token positions.*--position from -2 to -1, found nothing"),
        (MEANS, None, {"layers": (1,), "position": 0}, "found 0"),
        (MEANS, None, {"position": -1}, "which counts inputs, less 1"),
        (MEANS, None, {"layers": (2,), "position": -1}, "input of no block"),
        (MEANS[:, :2], None, {"layers": (0,), "position": -1}, r"shape \[2, 2, 24\], expected \[3, 24\]"),
        (MEANS * torch.nan, None, {"layers": (1,), "position": -1}, "NaN or infinite"),
        ({0: VECTOR, 1: VECTOR}, None, {}, "say which with --layer"),
        ({0: VECTOR, 1: VECTOR}, None, {"layers": (2,)}, r"no vector of block_output\[2\]; there is: 0, 1"),
        (dict.fromkeys(range(4), VECTOR), None, {"layers": (1,)}, "say --rows hidden_states"),
        ({"blocks.1.hook_mlp_out": VECTOR}, None, {}, "'blocks.1.hook_mlp_out' is no layer"),
        ({"blocks.1.hook_resid_pre": VECTOR}, None, {"rows": "outputs"}, "count inputs and outputs at once"),
        ({"1": VECTOR, 1: VECTOR}, None, {}, "two keys of its dictionary name layer 1"),
        ({1: MEANS[0]}, None, {}, r"1 is \[3, 24\], expected a tensor \[width\]"),
        ({}, None, {}, "expected a tensor"),
    ],
)
def test_what_does_not_say_its_layer_is_refused(
    imported: Importing, tmp_path: Path, value: Any, metadata: Any, options: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path / "in" / "direction.pt", value)
    if metadata is not None:
        (path.parent / "direction_metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ImportRefusedError, match=message):
        imported(path, **options)
    assert not (tmp_path / "artifact").exists()
