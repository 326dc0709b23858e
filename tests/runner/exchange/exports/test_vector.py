"""Plain vectors: read with safetensors alone, and applied as their metadata says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BY_NAME, LAYERS
from safetensors import safe_open
from tiny_exports import EDIT, HEAD, IDS, MASK, ablate, intervened, steer, tensors

from subvene.runner.exchange.exports.base import ExportError
from subvene.runner.exchange.exports.driver import export
from subvene.runner.exchange.exports.vector import about

LAST = LAYERS - 1
CAP = {"kind": "capping", "layer": LAST, "direction": {"key": "v"}, "max": 0.5, "min": -0.5}


def read(folder: Path) -> tuple[dict[str, str], dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(folder / "vectors.safetensors", framework="pt") as file:
        metadata = file.metadata()
        return metadata, json.loads(metadata["vectors"]), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118


def test_the_file_says_what_its_tensors_are(tmp_path: Path) -> None:
    arch = BY_NAME["llama"]
    m = intervened(arch, HEAD, steer(name="s", normalize="unit", positions="response"), CAP | {"name": "c"})
    metadata, told, vectors = read(export(m, "vector", tmp_path / "v"))
    assert (metadata["model"], metadata["n_heads"], metadata["head_dim"]) == ("tiny/llama", "4", "16")
    assert metadata["format"] == "subvene vectors 1"
    assert "block_output[l] is the residual stream after block l" in metadata["convention"]
    assert json.loads(metadata["order"]) == list(told)
    assert told["s.block_output[1]"] == {
        "kind": "steering",
        "site": "block_output",
        "layer": 1,
        "formula": "h + strength * v",
        "strength": 2.0,
        "positions": "response",
    }
    assert told["c.block_output[1]"] | {"floor": -0.5, "ceiling": 0.5} == told["c.block_output[1]"]
    given = tensors(arch)
    unit = given["v.block_output[1]"] / given["v.block_output[1]"].norm()
    torch.testing.assert_close(vectors["s.block_output[1]"], unit)
    torch.testing.assert_close(vectors["c.block_output[1]"], unit)
    # σ is folded in, and the strength is not.
    heads = given["iti.attention_heads[0].sigma"][:, None] * given["iti.attention_heads[0]"]
    torch.testing.assert_close(vectors["head_direction_0.attention_heads[0]"], heads.flatten())
    assert told["head_direction_0.attention_heads[0]"]["strength"] == 3.0
    assert told.keys() == vectors.keys()


def test_a_vector_of_the_file_added_by_hand(tmp_path: Path) -> None:
    """With the file, transformers and nothing of ours: hidden_states[l + 1] has moved by strength · v."""
    m = intervened(BY_NAME["llama"], steer(layer=LAST))
    folder = export(m, "vector", tmp_path / "v")
    _, told, vectors = read(folder)
    one = told["steering_0.block_output[1]"]

    def add(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + one["strength"] * vectors["steering_0.block_output[1]"]

    model = BY_NAME["llama"].fresh()
    handle = model.model.layers[one["layer"]].register_forward_hook(add)
    with torch.no_grad():
        # Of the second row's padding ids the edit leaves alone what stands behind its text.
        found, expected = model(IDS).logits[MASK.bool()], m(IDS).logits[MASK.bool()]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    handle.remove()
    assert about(folder / "vectors.safetensors") == told


CASES = {
    "heads": [HEAD],
    "the order of three at one site": [steer(), ablate("block_output", name="a"), CAP | {"name": "c"}],
    "another order": [CAP | {"name": "c"}, ablate("block_output", name="a", strength=0.4), steer()],
    "positions": [steer(positions="response"), HEAD | {"positions": {"indices": [-1]}}],
    "the end of the response": [steer(positions={"last": 2, "of": "response"})],
    "sites": [steer("attention_output"), steer("mlp_output", name="m"), ablate("attention_heads")],
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("case", CASES)
def test_the_formulas_give_the_logits(case: str, name: str, tmp_path: Path) -> None:
    folder = export(intervened(BY_NAME[name], *CASES[case]), "vector", tmp_path / "v")
    record = json.loads((folder / "equivalence.json").read_text())
    assert record["max_logit_difference"] < 1e-5 < 0.005 < record["max_logit_effect"]
    assert record["exactness"] == "exact"


def test_what_is_no_vector_is_refused_or_a_mean(tmp_path: Path) -> None:
    llama = BY_NAME["llama"]
    with pytest.raises(ExportError, match=r"two factors rather than a vector; instead, `--to peft`"):
        export(intervened(llama, EDIT), "vector", tmp_path / "v", approximate=True)
    m = intervened(llama, HEAD | {"adaptive": "one_minus_p"})
    with pytest.raises(ExportError, match="self-monitored"):
        export(m, "vector", tmp_path / "v")
    folder = export(m, "vector", tmp_path / "v", approximate=True)
    record = json.loads((folder / "equivalence.json").read_text())
    assert 0 < record["mean_kl"] < record["mean_kl_untouched"]
    _, told, vectors = read(folder)
    place = "head_direction_0.attention_heads[0]"
    assert told[place]["strength"] == 1.0
    # Every head's mean shift is its own direction, times a mean of α·(1 − p) between 0 and α.
    given = tensors(llama)
    shift = given["iti.attention_heads[0].sigma"][:, None] * given["iti.attention_heads[0]"]
    ratio = vectors[place].view(4, 16) / shift
    torch.testing.assert_close(ratio, ratio[:, :1].expand(4, 16), rtol=1e-3, atol=1e-4)
    assert (ratio > 0).all()
    assert (ratio < 3).all()
