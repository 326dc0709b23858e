"""A row of an SAE's decoder as steering: what it is, where it acts, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import Hub, connect, serve_hub
from sae_by_hand import config, drawn, write

from subvene.runner.exchange.imports import ImportRefusedError, Options, import_foreign
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec, SubveneError

WIDTH = 24
IDS = torch.tensor([[11, 12, 13, 14, 15]])


def saved(folder: Path, hook: str = "blocks.1.hook_resid_pre", width: int = WIDTH, **fields: Any) -> Path:
    architecture = fields.pop("architecture", "jumprelu")
    weights = drawn(architecture, width)
    return write(folder, config(architecture, weights, hook, **fields), weights)


@torch.no_grad()
def test_the_row_is_added_where_the_sae_reads(
    imported: Callable[..., IntervenedModel], llama: Callable[..., Any], tmp_path: Path
) -> None:
    model = llama()
    m = imported(saved(tmp_path / "sae"), model, feature=5, strength=3.0, positions="all")
    (edit,) = m.spec.interventions
    assert (edit.kind, edit.site, edit.layer) == ("steering", "block_input", 1)
    row = drawn("jumprelu", WIDTH)["W_dec"][5]
    assert torch.equal(m.tensors["feature_5.block_input[1]"], row)
    handle = model.model.layers[1].register_forward_pre_hook(lambda _m, args: (args[0] + 3 * row, *args[1:]))
    with m.disabled():
        expected = m(IDS).logits
    handle.remove()
    torch.testing.assert_close(m(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert m.provenance["feature"] == 5
    assert len(m.provenance["sae_sha256"]) == 64


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_it_is_what_the_kind_adds_for_as_many_units(
    imported: Callable[..., IntervenedModel], llama: Callable[..., Any], tmp_path: Path, architecture: str
) -> None:
    more = {"rescale_acts_by_decoder_norm": True} if architecture == "topk" else {}
    folder = saved(tmp_path / "sae", "blocks.1.hook_resid_post", architecture=architecture, **more)
    model = llama()
    m = imported(folder, model, feature=3, strength=2.5)
    added = {"kind": "sae_feature", "sae": {"folder": "sae"}, "features": [3], "do": "add", "value": 2.5}
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "x/y"}, "interventions": [added | {"positions": "response"}]}
    )
    by_kind = IntervenedModel.from_spec(spec, model=model, folder=tmp_path)
    options = {"prompt_lengths": [2]}
    torch.testing.assert_close(m(IDS, **options).logits, by_kind(IDS, **options).logits, rtol=1e-5, atol=1e-5)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(tmp_path / "server") as server:
        connect(monkeypatch, server, tmp_path / "home")
        yield server


def test_a_release_is_read_from_the_hub(llama: Callable[..., Any], tmp_path: Path, hub: Hub) -> None:
    folder = saved(tmp_path / "sae")
    files = {f"layer_1/width_12/{path.name}": path.read_bytes() for path in folder.iterdir()}
    commit = hub.put("ann/saes", files)
    named, options = "ann/saes/layer_1/width_12", Options(feature=5)
    m = import_foreign(named, "user/tiny", options=options, loaded=(llama(), None))
    assert torch.equal(m.tensors["feature_5.block_input[1]"], drawn("jumprelu", WIDTH)["W_dec"][5])
    assert m.provenance["source"] == f"{named} (ann/saes@{commit})"


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no feature": ({}, {}, "say which latent with --feature"),
    "no such latent": ({}, {"feature": 12}, "expected latents from 0 to 11, found 12"),
    "latent below 0": ({}, {"feature": -1}, "expected latents from 0 to 11, found -1"),
    "layer": ({"hook": "blocks.7.hook_resid_post"}, {"feature": 1}, "expected layers from 0 to 2"),
    "width": ({"width": 20}, {"feature": 1}, "reads 20 columns, and the model has 24"),
    "config": ({"hook": "blocks.1.hook_q"}, {"feature": 1}, "hook_name: expected one of"),
    "another option": ({}, {"feature": 1, "layers": (1,)}, "--layer has no meaning"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_direction_is_refused(
    imported: Callable[..., IntervenedModel], tmp_path: Path, case: str
) -> None:
    fields, options, words = REFUSED[case]
    with pytest.raises(ImportRefusedError, match=words):
        imported(saved(tmp_path / "sae", **fields), **options)


def test_a_name_that_is_nothing_is_refused(imported: Callable[..., IntervenedModel], tmp_path: Path) -> None:
    with pytest.raises(SubveneError, match="no such file or folder, and no SAE's `release/id`"):
        imported(Path("gone"), feature=1)
    (tmp_path / "vector.pt").write_bytes(b"")
    with pytest.raises(ImportRefusedError, match="--feature has no meaning"):
        imported(tmp_path / "vector.pt", feature=1, format="layer-vectors")
