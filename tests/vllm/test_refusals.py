"""Engines that would pass over artifacts, or run them wrongly, do not start; the reason is said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_model import SIZES, WORDS, write_tiny_model, write_tokenizer

from subvene.runner.engines.errors import EngineError
from subvene.specs import SubveneError

CONFIGURE = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from subvene.runner.engines.vllm import versions
{before}
from subvene.runner.engines.vllm.plugin import is_active, register
from subvene.runner.engines.vllm.engine import check_active
register()
model, folder = sys.argv[1:]
EngineArgs(model=model).create_engine_config()
held = {{"subvene": {{"artifacts": {{"a": folder}}}}}}
{then}
"""


def configured(reference: Any, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    folder = reference.artifacts["steering"]
    given = {"model": str(reference.path), "dtype": "float32", "max_model_len": 128}
    given["additional_config"] = {"subvene": {"artifacts": {"a": folder}}}
    return EngineArgs(**given | options).create_engine_config()


def test_what_is_held_is_a_part_of_the_compilation_caches_key(reference: Any) -> None:
    plain = configured(reference, additional_config={}).compute_hash()
    held = {
        name: {"subvene": {"artifacts": {"a": reference.artifacts[name]}}} for name in ("steering", "heads")
    }
    hashes = {configured(reference, additional_config=one).compute_hash() for one in held.values()}
    assert len({plain, *hashes}) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data_parallel_size": 2}, "data parallelism"),
        (
            {"additional_config": {"subvene": {"artefacts": {}}}},
            "expected artifacts, reserve, collect, digest",
        ),
        (
            {"additional_config": {"subvene": {"reserve": {"columns": -1}}}},
            "columns: expected a whole number",
        ),
        ({"additional_config": {"subvene": {"artifacts": {"a": "/nowhere/at/all"}}}}, "nowhere"),
    ],
)
def test_a_configuration_is_refused(reference: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(SubveneError, match=words):
        configured(reference, **options)


def test_an_artifact_of_another_model_is_refused(reference: Any, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "model", num_hidden_layers=2)
    with pytest.raises(SubveneError, match="was made for another model"):
        configured(reference, model=str(other))


def test_an_architecture_that_was_not_checked_is_refused(
    engines: Any, reference: Any, tmp_path: Path
) -> None:
    from vllm_cases import Reference

    sizes = SIZES | {"hidden_size": 128, "num_attention_heads": 4, "vocab_size": len(WORDS)}
    model = transformers.StableLmForCausalLM(transformers.StableLmConfig(**sizes))
    model.save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    made = Reference(tmp_path, model)
    with pytest.raises(EngineError, match="has not been checked"):
        engines(made.path, {"steering": made.artifacts["steering"]})


@pytest.mark.parametrize(
    ("environment", "before", "then", "words"),
    [
        (
            {},
            "versions.SUPPORTED = '>=99'",
            "EngineArgs(model=model, additional_config=held).create_engine_config()",
            "expected vLLM >=99, found",
        ),
        (
            {"VLLM_PLUGINS": "other"},
            "import subvene.runner.engines.vllm.plugin as p; p.register = lambda: None",
            "check_active()",
            "has not loaded subvene's plugin",
        ),
    ],
)
def test_a_vllm_that_is_another_or_has_no_plugin_is_refused(
    reference: Any, environment: dict[str, str], before: str, then: str, words: str
) -> None:
    script = CONFIGURE.format(before=before, then=then)
    done = subprocess.run(
        [sys.executable, "-c", script, reference.path, reference.artifacts["steering"]],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1], done.stderr[-3000:]
