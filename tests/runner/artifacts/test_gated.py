"""Gated interventions of every kind: they act where the gate is open, and are kept and refused whole."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from architectures import BY_NAME, WIDTH
from tiny_exports import IDS, draw

from subvene.interventions import REGISTRY, InventedTable
from subvene.interventions._pyvene import pyvene
from subvene.runner.artifacts import artifact
from subvene.runner.artifacts.artifact import ArtifactError
from subvene.runner.edits.compile import CompileError
from subvene.runner.engines.batching import why_not_batched
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.served import serve
from subvene.runner.exchange.exports import FORMATS
from subvene.runner.exchange.exports.base import ExportError
from subvene.runner.exchange.exports.driver import export
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.parts import PartSizes
from subvene.specs import InterventionSpec
from subvene.specs.interventions import REGISTRY as SPECS

LLAMA = BY_NAME["llama"]
SIZES = PartSizes.of(Anatomy.of(LLAMA.shared()))
EXAMPLES = [(kind, words) for kind, spec in SPECS.items() for words in spec.examples]
READ = {"measure": "projection", "vector": {"key": "c"}, "site": "block_input", "layer": 0, "decide": "token"}
STEER = {"kind": "steering", "layer": 1, "vector": {"key": "v"}, "coefficient": 2.0, "positions": "response"}
VECTORS = {
    "c.block_input[0]": draw(WIDTH, seed=8),
    "v.block_output[1]": draw(WIDTH, seed=3),
    "c.block_output[0]": draw(WIDTH, seed=6),
}


def made(*declared: Any, tensors: dict[str, torch.Tensor] | None = None) -> IntervenedModel:
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "tiny/llama"}, "interventions": declared}
    )
    return IntervenedModel.from_spec(spec, model=LLAMA.fresh(), tensors=VECTORS | (tensors or {}))


@torch.no_grad()
def logits(m: IntervenedModel, prompt: int = 6) -> torch.Tensor:
    found: torch.Tensor = m(IDS[:1], prompt_lengths=[prompt]).logits
    return found


def open_tokens(vector: torch.Tensor) -> list[int]:
    """Where the projection of the embeddings is above 0."""
    embedded = LLAMA.shared().get_input_embeddings()(IDS[0])
    return (embedded @ vector > 0).nonzero().flatten().tolist()


@pytest.mark.parametrize(("kind", "words"), EXAMPLES)
def test_every_kind_acts_at_the_tokens_at_which_its_gate_is_open(
    kind: str, words: str, tmp_path: Path
) -> None:
    fields: dict[str, Any] = {"kind": kind, **SPECS[kind].examples[words], "positions": "all"}
    plain, tensors = SPECS[kind].model_validate(fields), {}
    for site, layer, edit in REGISTRY[kind].build(plain, InventedTable(), SIZES):
        tensors |= edit.stored(plain.wanted_key or kind, site, layer)
    m = made(fields | {"when": READ | {"above": 0.0}}, tensors=tensors)
    found = logits(m)
    where = open_tokens(VECTORS["c.block_input[0]"])
    assert 0 < len(where) < 6
    receipt = m.receipt[0]
    assert receipt.tokens == receipt.gate.tokens_opened == len(where)
    at_these = made(fields | {"positions": {"indices": where, "of": "prompt"}}, tensors=tensors)
    assert (found - logits(at_these)).abs().max() <= 1e-5
    with m.disabled():
        assert (found - logits(m)).abs().max() > 1e-5
    again = IntervenedModel.from_pretrained(m.save_pretrained(tmp_path / "artifact"), model=LLAMA.fresh())
    assert torch.equal(logits(again), found)
    assert again.receipt[0].gate == receipt.gate


def test_a_gate_is_kept_with_its_tensors_and_vouched_for(tmp_path: Path) -> None:
    gate = {"any": [READ | {"above": 0.0}, READ | {"layer": 1, "below": -0.5}]}
    m = made(
        STEER | {"name": "a", "when": gate},
        STEER | {"name": "b", "during": {"from": 1, "to": 3, "decay": 0.5}},
        tensors={"c.block_input[1]": draw(WIDTH, seed=2)},
    )
    folder = m.save_pretrained(tmp_path / "artifact")
    kept = safetensors.torch.load_file(folder / "tensors.safetensors")
    assert {"c.block_input[0]", "c.block_input[1]"} <= kept.keys()
    again = IntervenedModel.from_pretrained(folder, model=LLAMA.fresh())
    assert torch.equal(logits(again, 2), logits(m, 2))
    assert again.spec.interventions[1].during == m.spec.interventions[1].during
    assert artifact.read(folder).fingerprint["stock_pyvene"] is False
    text = (folder / "intervention.yaml").read_text("utf-8")
    (folder / "intervention.yaml").write_text(text.replace("above: 0.0", "above: -9.0"), encoding="utf-8")
    with pytest.raises(ArtifactError, match="sha256"):
        IntervenedModel.from_pretrained(folder, model=LLAMA.fresh())


def test_gates_of_one_key_and_other_tensors_are_kept_apart(tmp_path: Path) -> None:
    both = []
    for seed in (21, 22):
        file = tmp_path / f"{seed}.safetensors"
        safetensors.torch.save_file({"c.block_input[0]": draw(WIDTH, seed=seed)}, file)
        vector = {"file": str(file), "key": "c"}
        both.append(STEER | {"name": f"s{seed}", "when": READ | {"vector": vector, "above": 0.0}})
    m = made(*both)
    again = IntervenedModel.from_pretrained(m.save_pretrained(tmp_path / "artifact"), model=LLAMA.fresh())
    assert torch.equal(logits(again, 2), logits(m, 2))
    for name in ("s21", "s22"):
        assert again.receipt[name].gate == m.receipt[name].gate
    keys = [one.when.ref.key for one in again.spec.interventions]  # type: ignore[union-attr]
    assert len(set(keys)) == 2


def test_a_stored_layer_threshold_and_side_are_taken_and_kept(tmp_path: Path) -> None:
    when = {"measure": "projection", "vector": {"key": "f"}, "decide": "token"}
    found = {
        "f.block_output[0]": VECTORS["c.block_output[0]"],
        "f.block_output[0].projection_last_threshold": torch.tensor(0.25),
        "f.block_output[0].projection_last_side": torch.tensor(-1.0),
    }
    m = made(STEER | {"when": when}, tensors=found)
    named = made(STEER | {"when": when | {"vector": {"key": "c"}, "layer": 0, "below": 0.25}})
    assert torch.equal(logits(m, 2), logits(named, 2))
    again = IntervenedModel.from_pretrained(m.save_pretrained(tmp_path / "artifact"), model=LLAMA.fresh())
    assert torch.equal(logits(again, 2), logits(m, 2))
    with pytest.raises(CompileError, match=r"not one layer is stored but: 0, 1; name one"):
        made(STEER | {"when": when}, tensors=found | {"f.block_output[1]": draw(WIDTH)})


def test_a_gate_that_reads_later_than_it_decides_is_refused() -> None:
    heads = {"kind": "head_direction", "directions": {"key": "iti"}, "strength": 3.0}
    tensors = {f"iti.attention_heads[{layer}]": draw(4, LLAMA.head_dim, seed=layer) for layer in (0, 1)}
    late = {"measure": "norm", "site": "block_output", "layer": 0, "above": 0.0}
    with pytest.raises(CompileError, match=r"before attention_heads\[0\], which is edited"):
        made(heads | {"when": late}, tensors=tensors)
    made(heads | {"when": late | {"site": "attention_heads"}}, tensors=tensors)
    with pytest.raises(CompileError, match=r"when.any\[0\].layer: expected a layer from 0 to 1"):
        made(STEER | {"layer": 1, "when": {"any": [late | {"layer": 7}]}} | {"layer": 9})


@pytest.mark.parametrize("gate", [{"when": READ | {"above": 0.0}}, {"during": {"to": 3}}], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_no_format_takes_a_gate(name: str, gate: dict[str, Any], tmp_path: Path) -> None:
    m = made(STEER | gate | {"positions": "all"})
    with pytest.raises(ExportError, match="decides while the model runs where it acts"):
        export(m, name, tmp_path / "out", approximate=True)
    assert not (tmp_path / "out").exists()


def test_engines_refuse_a_gate_or_answer_alone(tmp_path: Path) -> None:
    m = made(STEER | {"when": READ | {"above": 0.0}})
    read = artifact.read(m.save_pretrained(tmp_path / "artifact"))
    assert read.sizes is not None
    with pytest.raises(EngineError, match="`when` is not carried out by this engine; `subvene serve`"):
        serve("gated", read, read.sizes)
    assert "gate" in str(why_not_batched(m, [m]))


def test_stock_pyvene_does_not_load_a_gate_without_heeding_it(tmp_path: Path) -> None:
    folder = made(STEER | {"positions": "all", "when": READ | {"above": 0.0}}).save_pretrained(
        tmp_path / "artifact"
    )
    with pytest.raises(RuntimeError, match="gating"), contextlib.redirect_stdout(io.StringIO()):
        pyvene.IntervenableModel.load(str(folder), model=LLAMA.fresh())
