"""Configs and tokenizers that transformers cannot use: one error that names the model, at every door."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from subvene.runner.cli.app import app
from subvene.runner.models.loading import ModelError, load_config, load_model, load_skeleton, load_tokenizer

Text = Callable[[dict[str, Any]], str]


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def having(**fields: Any) -> Text:
    return lambda config: json.dumps(config | fields)


def lacking(name: str) -> Text:
    return lambda config: json.dumps({key: value for key, value in config.items() if key != name})


def spoil(folder: Path, text: Text, file: str = "config.json") -> None:
    path = folder / file
    path.write_text(text(json.loads(path.read_text())))


# What can be said without transformers, and what only it can say.
SEEN = {
    "no model type": (lacking("model_type"), "model_type"),
    "a model type that is no text": (having(model_type=5), "model_type|model type"),
    "half a file": (lambda config: json.dumps(config)[:200], "JSON"),
    "an empty file": (lambda config: "", "JSON"),
    "no mapping": (lambda config: "[1]", "."),
    "nothing": (lambda config: "null", "."),
    "text for a size": (having(hidden_size="a"), "hidden_size"),
    "a fraction for a size": (having(num_hidden_layers=2.5), "num_hidden_layers"),
    "a negative width": (having(hidden_size=-32), "hidden_size is -32|hidden_size"),
    "no layers": (having(num_hidden_layers=0), "num_hidden_layers is 0"),
    "negative layers": (having(num_hidden_layers=-1), "num_hidden_layers is -1"),
    "no heads": (having(num_attention_heads=0), "num_attention_heads is 0|ZeroDivisionError"),
    "no keys": (having(num_key_value_heads=0), "num_key_value_heads is 0"),
    "no words": (having(vocab_size=0), "vocab_size is 0"),
    "no width of heads": (having(head_dim=0), "head_dim is 0"),
}
UNSEEN = {
    "an unknown model type": (having(model_type="brand_new"), "brand_new"),
    "an unknown activation": (having(hidden_act="nope"), "KeyError: 'nope'"),
    "an unknown rope": (having(rope_parameters={"rope_type": "no", "rope_theta": 1.0}), "KeyError: 'no'"),
    "a padding token beyond the words": (having(pad_token_id=999), "Padding_idx"),
    "a number for a type": (having(dtype=5), "AttributeError"),
    "a type that torch has not": (having(dtype="floaty"), "floaty"),
    "text for quantisation": (having(quantization_config="x"), "."),
    "a mapping of labels that is none": (having(id2label="x"), "AttributeError"),
    "a size beyond numbers": (having(hidden_size=2**70), "."),
}


@pytest.mark.parametrize("case", [*SEEN, *UNSEEN])
def test_a_broken_config_is_a_model_error(folder: Path, case: str) -> None:
    text, said = (SEEN | UNSEEN)[case]
    spoil(folder, text)
    for load in (load_skeleton, load_model):
        with pytest.raises(ModelError, match=said) as caught:
            load(str(folder), device="cpu")
        assert str(folder) in str(caught.value)
    # Without weights or modules it is read, or refused in the same way.
    try:
        load_config(str(folder))
    except ModelError as error:
        assert str(folder) in str(error)  # noqa: PT017 (either is right)


def spec(folder: Path) -> Path:
    path = folder.parent / "spec.yaml"
    path.write_text(
        f"subvene: 1\nmodel: {{name: {folder}}}\n"
        "fit: {recipe: mean_difference, key: k, pairs: {texts: [{positive: a, negative: b}]}}\n"
        "interventions: [{kind: steering, layer: 1, vector: {key: k}, coefficient: 1}]\n"
        "evaluate: [{kind: divergence, limit: 1}]\n"
    )
    return path


@pytest.mark.parametrize("case", [*SEEN, *UNSEEN])
def test_validate_and_run_say_so(folder: Path, case: str) -> None:
    file = spec(folder)
    spoil(folder, (SEEN | UNSEEN)[case][0])
    checked = CliRunner().invoke(app, ["validate", str(file)])
    assert checked.exit_code == (1 if case in SEEN else 0)
    if case in SEEN:
        assert f"{file}:2:15: model.name: expected a model's folder" in checked.stdout
        assert "config.json" in checked.stdout
    ran = CliRunner().invoke(app, ["run", str(file), "-o", str(folder.parent / "out")])
    assert isinstance(ran.exception, SystemExit), ran.exception
    assert ran.exit_code == 1
    assert str(folder) in ran.output.replace("\n", "")


TOKENIZERS = {
    "half a file": ("tokenizer.json", lambda config: json.dumps(config)[:200], "."),
    "no model": ("tokenizer.json", lacking("model"), "Model missing"),
    "an unknown step": ("tokenizer.json", having(pre_tokenizer={"type": "X"}), "PreTokenizer"),
    "a list": ("tokenizer_config.json", lambda config: "[]", "AttributeError"),
    "a number for a token": ("tokenizer_config.json", having(eos_token=5), "eos_token"),
    "a number for a class": ("tokenizer_config.json", having(tokenizer_class=5), "AttributeError"),
}


@pytest.mark.parametrize("case", [*TOKENIZERS])
def test_a_broken_tokenizer_is_a_model_error(folder: Path, case: str) -> None:
    file, text, said = TOKENIZERS[case]
    spoil(folder, text, file)
    with pytest.raises(ModelError, match=said) as caught:
        load_tokenizer(str(folder))
    assert str(folder) in str(caught.value)
