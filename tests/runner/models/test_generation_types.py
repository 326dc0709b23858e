"""Settings of generation that are no such value: refused where the model is loaded or given, by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from subvene.runner import IntervenedModel
from subvene.runner.models.generation import Settings, row_ends
from subvene.runner.models.generation_types import _KINDS, generation_flaw
from subvene.runner.models.loading import ModelError, load_model
from subvene.specs import parse_spec

SPEC = """\
subvene: 1
model: {name: user/tiny}
interventions:
- {kind: steering, layer: 1, vector: {file: v.safetensors, key: v}, coefficient: 1}
"""


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


WRONG: list[tuple[str, Any]] = [
    ("eos_token_id", "x"),
    ("eos_token_id", [2, "x"]),
    ("eos_token_id", 2.5),
    ("eos_token_id", True),
    ("eos_token_id", {}),
    ("eos_token_id", [[2]]),
    ("pad_token_id", "x"),
    ("bos_token_id", [1]),
    ("max_new_tokens", "8"),
    ("top_k", 2.5),
    ("temperature", "hot"),
    ("repetition_penalty", [1]),
    ("do_sample", "yes"),
    ("stop_strings", [5]),
    ("suppress_tokens", 5),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_checkpoints_setting_of_another_type(folder: Path, name: str, value: Any) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), device="cpu")
    assert str(folder) in str(caught.value)
    assert f"generation_config.json cannot be used: {name}: expected" in str(caught.value)
    assert f"found {value!r}" in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"eos_token_id": 2', "[]", "null", "3"])
def test_settings_that_transformers_would_read_over(folder: Path, text: str) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"generation_config.json cannot be (read as JSON|used)"):
        load_model(str(folder), device="cpu")
    (folder / "generation_config.json").unlink()
    load_model(str(folder), device="cpu")


def test_what_transformers_writes_and_means_is_right(folder: Path) -> None:
    assert {*_KINDS} <= {*vars(transformers.GenerationConfig())}
    assert generation_flaw(vars(transformers.GenerationConfig())) is None
    full = transformers.GenerationConfig(
        eos_token_id=[2, 3], pad_token_id=0, do_sample=True, temperature=1, top_k=5, stop_strings=["a"]
    )
    full.save_pretrained(folder)
    loaded, _ = load_model(str(folder), device="cpu")
    assert row_ends(Settings(loaded)) == [2, 3]


def test_a_model_that_is_given_is_checked_too(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    model.generation_config.eos_token_id = "x"
    with pytest.raises(ModelError, match=r"'user/tiny'.*eos_token_id: expected a token id"):
        IntervenedModel.from_spec(parse_spec(SPEC), model=model, tokenizer=tokenizer)
    with pytest.raises(ModelError, match=r"'baked'.*eos_token_id: expected a token id"):
        IntervenedModel.plain(model, tokenizer, name="baked")
    for kwargs in ({}, {"eos_token_id": "y"}):
        with pytest.raises(ModelError, match="eos_token_id: expected a token id or a list"):
            row_ends(Settings(model, **kwargs))
