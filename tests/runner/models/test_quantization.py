"""`quantization_config`: what is refused before any weight is read; tests/consumers has real methods."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from subvene.runner.models.identity import model_sha256
from subvene.runner.models.linear import is_linear
from subvene.runner.models.loading import ModelError, load_model
from subvene.runner.models.pretrained import PretrainedError
from subvene.runner.models.quantization import check_quantized, plain_fields, quantization_of
from subvene.specs import SpecError
from subvene.specs.loading import parse_spec

NF4: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
FILE = """\
subvene: 1
model: {name: gpt2, quantization_config: {quant_method: quanto, weights: int8}}
interventions:
- {kind: scaling, name: off, site: attention_heads, layer: 1, heads: [0], gain: 0.0, positions: all}
"""


@pytest.fixture
def own(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(model_folder, tmp_path / "own"))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"quant_method": "nf5"}, "quantization_config says quant_method 'nf5', which transformers does not"),
        ({"quant_method": "bitsandbytes"}, "'bitsandbytes' without load_in_4bit or load_in_8bit"),
        (
            NF4 | {"bnb_4bit_quant_typ": "nf4"},
            "has no field 'bnb_4bit_quant_typ'; did you mean bnb_4bit_quant_",
        ),
        ({"quant_method": "quanto", "weights": "int9"}, "quantization_config: quanto: .*int9"),
    ],
)
def test_what_transformers_would_pass_over_is_refused(
    model_folder: Path, declared: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(str(model_folder), quantization_config=declared)


def test_a_package_that_is_not_there_is_named_before_weights_are_read(own: Path) -> None:
    if importlib.util.find_spec("optimum") is not None:
        pytest.skip("optimum is installed")
    (own / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pip install optimum-quanto"):
        load_model(str(own), quantization_config={"quant_method": "quanto", "weights": "int8"})


def test_a_checkpoint_that_is_quantised_already_is_refused(own: Path) -> None:
    path = own / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(config | {"quantization_config": NF4}), "utf-8")
    with pytest.raises(ModelError, match="the checkpoint is quantised already"):
        load_model(str(own), quantization_config=NF4)


def test_an_object_of_transformers_is_its_fields() -> None:
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    fields = plain_fields(config)
    assert isinstance(fields, dict)
    assert fields["bnb_4bit_compute_dtype"] == "bfloat16"
    made = quantization_of(fields, transformers.LlamaConfig())
    assert made.to_dict() == config.to_dict()


def test_a_spec_declares_it_in_the_words_of_transformers() -> None:
    fields = parse_spec(FILE).model.quantization_config
    assert fields == {"quant_method": "quanto", "weights": "int8"}
    with pytest.raises(SpecError, match=r"model.quantization_config: expected a mapping with `quant_method`"):
        parse_spec(FILE.replace("quant_method: quanto", "method: quanto"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "conditions: [{name: baked, bake: true}]\nevaluate: [{kind: divergence, texts: {file: t.txt}}]\n",
            r"conditions\[0\].bake: expected false: a change does not go exactly into quantised weights",
        ),
        (
            "engine: vllm\nevaluate: [{kind: samples, prompts: [hi]}]\n",
            "model.quantization_config: expected nothing beside `engine`",
        ),
    ],
)
def test_what_cannot_be_done_with_such_weights_is_refused_when_the_file_is_read(
    more: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(FILE + more)


def test_a_model_of_which_nothing_was_quantised_is_refused() -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
    with pytest.raises(PretrainedError, match="nothing of a GPT2LMHeadModel was quantised"):
        check_quantized(model)
    linear = next(module for module in model.modules() if is_linear(module))
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    check_quantized(model)
    assert model_sha256(model)
