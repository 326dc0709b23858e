"""Folders that stock pyvene saved: the allow-list's classes do here what they do there."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from imports_oracle import IDS, by_hooks, logits

from subvene.interventions._pyvene import pyvene
from subvene.runner.exchange.imports import ImportRefusedError
from subvene.runner.intervened.model import IntervenedModel

Importing = Callable[..., IntervenedModel]
BLOCK = {"layer": 1, "component": "block_output"}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def saved(model: Any, folder: Path, *representations: dict[str, Any]) -> Path:
    config = pyvene.IntervenableConfig([pyvene.RepresentationConfig(**one) for one in representations])
    pyvene.IntervenableModel(config, model).save(str(folder))
    return folder


def classes() -> dict[str, tuple[Any, dict[str, Any]]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        source = {"source_representation": draw(24)}
        wide = {"embed_dim": 24}
        mask = pyvene.SigmoidMaskIntervention(**wide, **source)
        with torch.no_grad():
            mask.mask.copy_(draw(24, seed=5))
        return {
            "addition": (pyvene.AdditionIntervention(**wide, **source), BLOCK),
            "subtraction": (pyvene.SubtractionIntervention(**wide, **source), BLOCK),
            "vanilla": (
                pyvene.VanillaIntervention(**wide, **source),
                {"layer": 0, "component": "mlp_output"},
            ),
            "rotated": (
                pyvene.RotatedSpaceIntervention(**wide, **source),
                {"layer": 2, "component": "attention_output"},
            ),
            "low rank": (
                pyvene.LowRankRotatedSpaceIntervention(**wide, low_rank_dimension=3, **source),
                BLOCK,
            ),
            "mask": (mask, BLOCK),
        }


@pytest.mark.parametrize("name", ["addition", "subtraction", "vanilla", "rotated", "low rank", "mask"])
def test_a_class_does_what_pyvene_does(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    intervention, place = classes()[name]
    folder = saved(llama(), tmp_path / "saved", {**place, "intervention": intervention})
    m = imported(folder)
    path, end = {
        "block_output": ("model.layers.{}", "output"),
        "mlp_output": ("model.layers.{}.mlp", "output"),
        "attention_output": ("model.layers.{}.self_attn", "output"),
    }[place["component"]]
    source = intervention.source_representation

    def apply(h: torch.Tensor) -> torch.Tensor:  # pyvene's own instance, one token a row
        rows = h.reshape(-1, h.shape[-1]).clone()
        return intervention(rows, source.expand_as(rows)).view_as(h)

    expected = by_hooks(llama(), (path.format(place["layer"]), end, apply))
    torch.testing.assert_close(logits(m), expected, rtol=0, atol=1e-4)
    (edit,) = m.spec.interventions
    assert (edit.kind, edit.class_name, edit.positions) == ("pyvene", type(intervention).__name__, "all")


def test_stock_pyvene_gives_the_same_logits(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path
) -> None:
    # Zeroing needs no source and no state, so the folder can be run as pyvene itself loads it.
    folder = saved(
        llama(),
        tmp_path / "saved",
        {"layer": 2, "component": "mlp_activation", "intervention_type": pyvene.ZeroIntervention},
    )
    stock = pyvene.IntervenableModel.load(str(folder), llama())
    every = {"unit_locations": {"base": [[list(range(IDS.shape[1]))] * len(IDS)]}}
    with torch.no_grad():
        _, expected = stock({"input_ids": IDS}, **every)
    m = imported(folder)
    torch.testing.assert_close(logits(m), expected.logits, rtol=0, atol=1e-5)
    assert m.spec.interventions[0].component == "model.layers[2].mlp.act_fn.output"


def test_several_at_named_and_raw_places(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path
) -> None:
    raw = "model.layers[0].self_attn.o_proj.input"
    heads = pyvene.AdditionIntervention(embed_dim=32, source_representation=draw(32))
    block = pyvene.AdditionIntervention(embed_dim=24, source_representation=draw(24, seed=1))
    values = pyvene.AdditionIntervention(embed_dim=32, source_representation=draw(32, seed=2))
    folder = saved(
        llama(),
        tmp_path / "saved",
        {"component": raw, "intervention": heads},
        {**BLOCK, "intervention": block},
        {"layer": 2, "component": "attention_value_output", "intervention": values},
    )
    m = imported(folder, key="k", strength=0.5)
    expected = by_hooks(
        llama(),
        ("model.layers.0.self_attn.o_proj", "input", lambda o: o + 0.5 * draw(32)),
        ("model.layers.1", "output", lambda h: h + 0.5 * draw(24, seed=1)),
        ("model.layers.2.self_attn.o_proj", "input", lambda o: o + 0.5 * draw(32, seed=2)),
    )
    torch.testing.assert_close(logits(m), expected, rtol=0, atol=1e-4)
    assert [e.name for e in m.spec.interventions] == ["k_0", "k_1", "k_2"]


# --- refusals


@pytest.fixture
def folder(llama: Callable[..., Any], tmp_path: Path) -> Path:
    return saved(llama(), tmp_path / "saved", {**BLOCK, "intervention": classes()["low rank"][0]})


def alter(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


@pytest.mark.parametrize(
    "text",
    [
        "<class 'evil_module.Evil'>",
        "<class 'pyvene.models.interventions.NoiseIntervention'>",
        "<class 'pyvene.models.interventions.LambdaIntervention'>",
        "<class 'evil_module.pyvene.models.interventions.AdditionIntervention'>",
        "<class 'pyvene.models.interventions.AdditionIntervention'> or evil",
        "AdditionIntervention",
        3,
    ],
)
def test_class_paths_are_compared_and_never_imported(
    imported: Importing, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Any
) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    alter(folder, intervention_types=[text])
    with pytest.raises(ImportRefusedError, match="not one of the classes that are allowed"):
        imported(folder)
    assert "evil_module" not in sys.modules


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_pickles_are_refused_and_not_executed(imported: Importing, folder: Path, how: str) -> None:
    marker = folder.parent / "executed"
    (path,) = folder.glob("intkey_*.bin")
    if how == "torch":
        torch.save({"source_representation": Bomb(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ImportRefusedError, match="intkey_"):
        imported(folder)
    assert not marker.exists()


REPRESENTATION = [1, "block_output", "pos", 1, 3, *[None] * 9]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sorted_keys": ["../../outside#0"]}, "is not the key of"),
        ({"sorted_keys": ["/layer_1_comp_block_output_unit_pos_nunit_1#0"]}, "LowRank.*has no"),
        ({"sorted_keys": []}, "expected lists of one length"),
        ({"sorted_keys": "x"}, "expected lists of one length"),
        ({"mode": "serial"}, "mode 'serial'"),
        ({"representations": [[1, "head_attention_value_output", "h.pos"]]}, "edits parts of a token"),
        ({"representations": [[1, "block_output", "pos", 2]]}, "2 units"),
        ({"representations": [["1", "block_output"]]}, "layer '1'"),
        ({"representations": [[1, "block_output"] * 9]}, "none that pyvene writes"),
        ({"representations": [{"layer": 1, "exec": "x"}]}, "none that pyvene writes"),
        ({"representations": [3]}, "none that pyvene writes"),
        ({"intervention_dimensions": [24, 24]}, "one an intervention"),
    ],
)
def test_configs_that_are_refused(
    imported: Importing, folder: Path, config: dict[str, Any], message: str
) -> None:
    alter(folder, **config)
    with pytest.raises(ImportRefusedError, match=message):
        imported(folder)


def test_what_is_not_of_this_model(imported: Importing, llama: Callable[..., Any], folder: Path) -> None:
    with pytest.raises(ImportRefusedError, match=r"layers from 0 to 0 .* found 1"):
        imported(folder, llama(num_hidden_layers=1))
    with pytest.raises(Exception, match=r"shape \[24\], expected \[20\]"):
        imported(folder, llama(hidden_size=20))


def test_without_a_stored_source(imported: Importing, llama: Callable[..., Any], tmp_path: Path) -> None:
    kind = pyvene.VanillaIntervention
    folder = saved(llama(), tmp_path / "saved", {**BLOCK, "intervention_type": kind})
    with pytest.raises(ImportRefusedError, match="lacks the source that VanillaIntervention needs"):
        imported(folder)


def test_part_of_the_dimensions(imported: Importing, llama: Callable[..., Any], tmp_path: Path) -> None:
    intervention = classes()["addition"][0]
    intervention.set_interchange_dim(5)
    folder = saved(llama(), tmp_path / "saved", {**BLOCK, "intervention": intervention})
    with pytest.raises(ImportRefusedError, match="in 5 of its 24 dimensions only"):
        imported(folder)


def test_our_own_artifact_needs_no_import(imported: Importing, tmp_path: Path, folder: Path) -> None:
    imported(folder)
    with pytest.raises(ImportRefusedError, match="needs no import"):
        imported(tmp_path / "artifact")
