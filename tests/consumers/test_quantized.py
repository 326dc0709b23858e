"""Models that are quantised while they are loaded; `make test-quantized` has an environment for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_model import write_tiny_model

from subvene import IntervenedModel, fit, load_model, run_experiment
from subvene.runner.exchange.exports.checkpoint import BakeError, bake
from subvene.runner.experiments.look.section import look_of
from subvene.runner.models.identity import model_sha256
from subvene.runner.models.loading import ModelError

pytest.importorskip(
    "optimum.quanto", reason="no method is installed; `make test-quantized` has an environment with two"
)

INT8: dict[str, Any] = {"quant_method": "quanto", "weights": "int8"}
PAIRS = [("i am glad", "i am sad"), ("very good day", "very bad day")]
IDS = torch.tensor([[1, 9, 10, 11, 12]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("quantized") / "model")


def torchao() -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    return transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())


METHODS: dict[str, Callable[[], Any]] = {"quanto": lambda: INT8, "torchao": torchao}


@pytest.mark.parametrize("method", METHODS)
def test_it_is_what_transformers_makes_of_it(folder: Path, method: str) -> None:
    declared = METHODS[method]()
    model, tokenizer = load_model(str(folder), quantization_config=declared)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=transformers.QuantoConfig(weights="int8") if method == "quanto" else declared,
    ).eval()
    plain, _ = load_model(str(folder))
    with torch.no_grad():
        logits, expected, full = (one(IDS).logits for one in (model, theirs, plain))
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, full)
    assert len({model_sha256(model), model_sha256(plain)}) == 2
    assert tokenizer("hello")


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_acts_on_it_is_saved_and_reloads_on_the_same(folder: Path, tmp_path: Path, method: str) -> None:
    declared = METHODS[method]()
    m = fit(
        "mean_difference",
        folder,
        pairs=PAIRS,
        key="glad",
        layer=1,
        coefficient=4.0,
        positions="all",
        quantization_config=declared,
    )
    assert m.spec.model.quantization_config is not None
    logits = m(IDS).logits
    site = m.model.model.layers[1]
    vector = m.tensors["glad.block_output[1]"]
    handle = site.register_forward_hook(lambda module, inputs, output: output + 4.0 * vector)
    with torch.no_grad():
        by_hand = m.model(IDS).logits
    handle.remove()
    torch.testing.assert_close(logits, by_hand, rtol=0, atol=1e-5)
    m.save_pretrained(tmp_path / "glad")
    again = IntervenedModel.from_pretrained(tmp_path / "glad")
    assert torch.equal(again(IDS).logits, logits)
    assert model_sha256(again.model) == model_sha256(m.model)
    with pytest.raises(BakeError, match="the weights are quantised"):
        bake(m)


RUN = """\
subvene: 1
model: {{name: {folder}, quantization_config: {{quant_method: quanto, weights: int8}}}}
fit: {{recipe: mean_difference, key: glad, layers: [1], pairs: {{texts: [{{positive: i am glad,
  negative: i am sad}}]}}}}
interventions:
- {{kind: steering, name: glad, layer: 1, vector: {{key: glad}}, coefficient: 1, positions: all}}
evaluate:
- kind: contrast
  coefficients: [0, 1]
  pairs: {{texts: [{{prompt: hello, positive: good, negative: bad}}]}}
"""


def test_a_run_of_a_file_that_declares_it(folder: Path, tmp_path: Path) -> None:
    spec = tmp_path / "look.yaml"
    spec.write_text(RUN.format(folder=folder))
    section = look_of(run_experiment(spec, output=tmp_path / "run").results)
    assert section.reload_failure is None
    assert section.reload_difference == 0.0


def test_a_method_that_leaves_everything_alone_is_refused(folder: Path) -> None:
    alone = INT8 | {"modules_to_not_convert": ["model.layers", "lm_head"]}
    with pytest.raises(ModelError, match="nothing of a LlamaForCausalLM was quantised"):
        load_model(str(folder), quantization_config=alone)
