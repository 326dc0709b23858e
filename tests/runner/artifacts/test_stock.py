"""Artifacts with sources: reloaded here, and by stock pyvene 0.1.8 with the sources named in the call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from source_specs import spec_of, swap

from subvene.interventions._pyvene import pyvene
from subvene.runner.artifacts.stock import why_not_stock
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec
from subvene.specs.interventions import PyveneClass

BASE = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
ONE, TWO = torch.tensor([[21, 22, 23], [24, 25, 26]]), torch.tensor([[31, 32, 33], [34, 35, 36]])
FIELDS: dict[str, dict[str, Any]] = {
    "LowRankRotatedSpaceIntervention": {"low_rank_dimension": 6},
    "JumpReLUAutoencoderIntervention": {"low_rank_dimension": 6},
    "AutoencoderIntervention": {"latent_dim": 7},
    "VanillaIntervention": {"subspaces": [0, 2], "subspace_partition": [[0, 2], [1, 3, 4], [5, 9]]},
}
# PCA's components are stored tensors; the others read no source.
CLASSES = [
    name
    for name in get_args(PyveneClass)
    if name
    not in ("ZeroIntervention", "CollectIntervention", "SkipIntervention", "PCARotatedSpaceIntervention")
]


def tiny() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def at(source: str, read: list[int], edited: list[int], **fields: Any) -> dict[str, Any]:
    reading = {"from": source, "positions": {"indices": read}}
    return {"source": reading, "positions": {"indices": edited}, **fields}


@torch.no_grad()
def ours(m: IntervenedModel, **sources: torch.Tensor) -> torch.Tensor:
    inputs = {name: {"input_ids": ids} for name, ids in sources.items()}
    found: torch.Tensor = m(BASE, prompt_lengths=[5, 5], sources=inputs).logits
    return found


def saved(folder: Path, *edits: dict[str, Any], sources: dict[str, Any] | None = None) -> IntervenedModel:
    m = IntervenedModel.from_spec(spec_of(sources or {"one": {"column": "a"}}, *edits), model=tiny())
    m.save_pretrained(folder)
    return m


def fingerprint(folder: Path) -> Any:
    return json.loads((folder / "fingerprint.json").read_text())


@pytest.mark.parametrize("name", CLASSES)
def test_saved_reloaded_and_loaded_by_stock(name: str, tmp_path: Path) -> None:
    # Two tokens: stock's own classes would take them for one long vector, ours are made for one token.
    edit = swap(1, **at("one", [0, 2], [1, 3]), **{"class": name, **FIELDS.get(name, {})})
    m = saved(tmp_path / "artifact", edit)
    expected = ours(m, one=ONE)
    again = IntervenedModel.from_pretrained(tmp_path / "artifact", model=tiny())
    assert torch.equal(ours(again, one=ONE), expected)
    stock = pyvene.IntervenableModel.load(str(tmp_path / "artifact"), tiny())
    locations = {"sources->base": ([[[0, 2]] * 2], [[[1, 3]] * 2])}
    with torch.no_grad():
        untouched, found = stock(
            {"input_ids": BASE}, [{"input_ids": ONE}], locations, output_original_output=True
        )
    torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found.logits, untouched.logits, atol=1e-3)
    assert fingerprint(tmp_path / "artifact")["stock_pyvene"] is True
    card = (tmp_path / "artifact" / "README.md").read_text()
    assert "'sources->base'" in card
    assert "Without `sources`" in card


def test_several_sources_and_heads_in_stock(tmp_path: Path) -> None:
    heads = {"site": "attention_heads", "heads": [2, 0]}
    m = saved(
        tmp_path / "artifact",
        swap(0, "first", **at("one", [0], [1])),
        swap(1, "second", **at("two", [2], [3]), **heads),
        sources={"one": {"column": "a"}, "two": {"column": "b"}},
    )
    stock = pyvene.IntervenableModel.load(str(tmp_path / "artifact"), tiny())
    locations = {"sources->base": ([[[0]] * 2, [[2]] * 2], [[[1]] * 2, [[3]] * 2])}
    with torch.no_grad():
        found = stock({"input_ids": BASE}, [{"input_ids": ONE}, {"input_ids": TWO}], locations)[1].logits
    torch.testing.assert_close(found, ours(m, one=ONE, two=TWO), rtol=1e-5, atol=1e-6)


ZERO = {"class": "ZeroIntervention", "site": "mlp_output", "layer": 0}
SERIAL = {"one": {"column": "a"}, "two": {"column": "b", "interventions": ["first"]}}
REFUSED = {
    "intervened on": (SERIAL, [swap(0, "first", **at("one", [0], [1])), swap(1, **at("two", [2], [3]))]),
    "another layer": (None, [swap(1, source={"from": "one", "layer": 0})]),
    "takes no source": (None, [swap(1, source={"from": "one"}), ZERO]),
    "module's input": (None, [{**ZERO, "class": "SkipIntervention"}]),
    "in each row's text": (None, [{**ZERO, "positions": {"span": "x"}}]),
    "counted from the end": (None, [{**ZERO, "positions": {"last": 1, "of": "response"}}]),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_stock_cannot_do_is_said_of_the_folder(reason: str, tmp_path: Path) -> None:
    sources, edits = REFUSED[reason]
    declared = spec_of(sources or ({"one": {"column": "a"}} if "source" in edits[0] else {}), *edits)
    found = why_not_stock(InterventionSpec.model_validate(declared))
    assert found is not None
    assert reason in found
    IntervenedModel.from_spec(declared, model=tiny()).save_pretrained(tmp_path / "artifact")
    assert fingerprint(tmp_path / "artifact")["stock_pyvene"] is False
    assert reason in (tmp_path / "artifact" / "README.md").read_text()
