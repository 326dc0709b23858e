"""The folder for stock pyvene: loaded by it in a process of its own, and equal to the intervened model."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BY_NAME, LAYERS
from tiny_exports import EDIT, HEAD, ablate, intervened, steer

from subvene.runner.exchange.exports.base import ExportError
from subvene.runner.exchange.exports.driver import export
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec

CAP = {"kind": "capping", "layer": LAYERS - 1, "direction": {"key": "v"}, "max": -1.0}
KINDS = {
    "steering": steer(),
    "head_direction": HEAD,
    "adaptive": HEAD | {"adaptive": "one_minus_p"},
    "low_rank_edit": EDIT,
    "capping": CAP,
    "ablation": ablate("mlp_output"),
    "pyvene": {"kind": "pyvene", "class": "ZeroIntervention", "site": "mlp_output", "layer": 0},
    "collects": {"kind": "pyvene", "class": "CollectIntervention", "site": "mlp_output", "layer": 0},
    "response": steer(positions="response"),
    "prompt": EDIT | {"positions": "prompt"},
    "cursor": HEAD | {"positions": "last_prompt_token"},
    "counted": steer(positions={"first": 3, "of": "response"}),
}


@pytest.mark.parametrize("what", KINDS)
def test_every_kind_is_exact_in_stock_pyvene(what: str, tmp_path: Path) -> None:
    m = intervened(BY_NAME["llama"], KINDS[what])
    folder = export(m, "pyvene", tmp_path / "stock")
    record = json.loads((folder / "equivalence.json").read_text())
    assert record["consumer"]["name"] == "pyvene"
    assert "every token of the response in a call of its own" in record["consumer"]["how"]
    assert record["max_logit_difference"] < 1e-5
    assert record["max_logit_effect"] > (-1 if what == "collects" else 0.01)


_ALONE = """
import sys, torch, transformers, pyvene
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
stock = pyvene.IntervenableModel.load(sys.argv[2], model)
assert "subvene.runner" not in sys.modules, "only the classes are needed"
ids = torch.tensor([[8, 9, 10, 11, 12]])
with torch.no_grad():
    _, output = stock({"input_ids": ids}, unit_locations=None)
    _, answer = stock.generate({"input_ids": ids}, unit_locations=None, intervene_on_prompt=True,
                               max_new_tokens=5, do_sample=False)
torch.save({"logits": output.logits, "answer": answer}, sys.argv[3])
"""


def test_it_loads_in_a_fresh_process(loaded: tuple[Any, Any], model_folder: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded
    spec = InterventionSpec.model_validate(
        {
            "subvene": 1,
            "model": {"name": str(model_folder)},
            "interventions": [
                {
                    "kind": "steering",
                    "layer": 1,
                    "vector": {"key": "g"},
                    "coefficient": 4.0,
                    "positions": "response",
                },
                {"kind": "head_direction", "directions": {"key": "h"}, "strength": 2.0},
            ],
        }
    )
    generator = torch.Generator().manual_seed(0)
    given = {
        "g.block_output[1]": torch.randn(32, generator=generator),
        "h.attention_heads[0]": torch.randn(4, 8, generator=generator),
    }
    m = IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=given)
    folder = export(m, "pyvene", tmp_path / "stock")
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "README.md", "equivalence.json"} | {
        n for n in names if n.startswith("intkey_") and n.endswith(".bin")
    }
    assert len(names) == 5
    command = [sys.executable, "-c", _ALONE, str(model_folder), str(folder), str(tmp_path / "found.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    ids = torch.tensor([[8, 9, 10, 11, 12]])
    with torch.no_grad():
        expected = m(ids, prompt_lengths=[5]).logits
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=1e-5)
        assert torch.equal(found["answer"], m.generate_ids(ids, max_new_tokens=5, do_sample=False))
        with m.disabled():
            assert (m(ids).logits - expected).abs().max() > 0.05


def test_measuring_says_nothing_and_leaves_the_model_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = BY_NAME["llama"].fresh().train()
    kept = model.model.layers[0].register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.INFO, "root"):
        export(intervened(BY_NAME["llama"], HEAD, model=model.eval()), "pyvene", tmp_path / "stock")
    assert capsys.readouterr().out == ""
    assert not [record for record in caplog.records if "pyvene" in record.pathname]
    assert list(model.model.layers[0]._forward_hooks.values())
    assert all(parameter.requires_grad for parameter in model.parameters())
    kept.remove()


def test_what_stock_pyvene_cannot_do_is_refused(tmp_path: Path) -> None:
    skip = {"kind": "pyvene", "class": "SkipIntervention", "site": "mlp_output", "layer": 0}
    late = steer(positions={"last": 1, "of": "response"})
    for declared, reason in (
        (skip, "needs its module's input"),
        (late, "count from the end of the response"),
    ):
        with pytest.raises(ExportError, match=reason):
            export(intervened(BY_NAME["llama"], declared), "pyvene", tmp_path / "stock", approximate=True)
    with pytest.raises(ExportError, match="does not know Qwen3ForCausalLM"):
        export(intervened(BY_NAME["qwen3"], HEAD), "pyvene", tmp_path / "stock")
    assert not list(tmp_path.iterdir())
