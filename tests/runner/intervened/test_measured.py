"""What is measured obeys the declared settings alone; what a person generates obeys the checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_specs import STEER
from typer.testing import CliRunner

from subvene.runner import IntervenedModel
from subvene.runner.cli.app import app
from subvene.runner.data.text import prompt_ids
from subvene.runner.data.truthfulqa.prompts import Prompts
from subvene.runner.intervened.measured import measured_options
from subvene.runner.intervened.rollouts import Batch, Row, rollouts
from subvene.runner.measures.samples import run_samples
from subvene.runner.measures.truthfulqa_answers import _Writer
from subvene.specs import SamplesSpec

PROMPTS, NEW = ("hello world", "how are you"), 8
WANTS = {
    "repetition_penalty": 50.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [4, 5, 6, 7, 8, 9],
    "min_new_tokens": 8,
    "exponential_decay_length_penalty": [1, 1.5],
    "sequence_bias": [[[12], 9.0]],
}


@pytest.fixture
def spec_of(model_folder: Path, write: Callable[..., Path], tmp_path: Path) -> Callable[[bool], Path]:
    """A spec on the tiny model, with or without wishes in its generation config."""
    wishful = tmp_path / "wishful"
    shutil.copytree(model_folder, wishful)
    path = wishful / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | WANTS | {"eos_token_id": 2}))
    plain = tmp_path / "plain"
    shutil.copytree(model_folder, plain)
    path = plain / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 2}))

    def spec_of(wishes: bool) -> Path:
        text = write(STEER, f"{wishes}.yaml").read_text()
        folder = wishful if wishes else plain
        (tmp_path / f"{wishes}.yaml").write_text(text.replace(str(model_folder), str(folder)))
        return tmp_path / f"{wishes}.yaml"

    return spec_of


def _samples(m: IntervenedModel) -> Any:
    spec = SamplesSpec(prompts=PROMPTS, coefficients=(0, 3), max_new_tokens=NEW)
    return [record["response"] for record in run_samples(m, spec, Path())["records"]]


def _rows(m: IntervenedModel) -> list[Row]:
    ids = [tuple(prompt_ids(m.tokenizer, prompt)) for prompt in PROMPTS]
    return [Row(prompt, temperature=t, seed=1, max_new_tokens=NEW) for prompt in ids for t in (0.0, 1.0)]


def _rollouts(m: IntervenedModel) -> Any:
    return [one.tokens for one in rollouts(m, _rows(m))[0]]


@torch.no_grad()
def _whole(m: IntervenedModel) -> Any:
    """As for models whose cache cannot be forked."""
    return Batch(m, _rows(m)).whole()[0]


@torch.no_grad()
def _answers(m: IntervenedModel) -> Any:
    writer = _Writer(m, Prompts("chat", (), None), NEW, None)
    return writer.plainly([prompt_ids(m.tokenizer, prompt, chat=False) for prompt in PROMPTS])[0]


MEASURES = {"samples": _samples, "rollouts": _rollouts, "whole rollouts": _whole, "answers": _answers}


@pytest.mark.parametrize("measure", MEASURES)
def test_no_measurement_obeys_the_checkpoints_wishes(measure: str, spec_of: Any) -> None:
    wishful, plain = (IntervenedModel.from_spec(spec_of(wishes)) for wishes in (True, False))
    assert MEASURES[measure](wishful) == MEASURES[measure](plain)


def test_a_comparison_is_a_measurement_and_an_answer_is_not(spec_of: Any) -> None:
    def answers(wishes: bool, *options: str) -> Any:
        prompts = [part for prompt in PROMPTS for part in ("-p", prompt)]
        line = ["generate", str(spec_of(wishes)), *prompts, "--max-new-tokens", str(NEW), "--json", *options]
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["records"]

    assert answers(True, "--compare") == answers(False, "--compare")
    sampled = ("--temperature", "1.5", "--seed", "3")
    assert answers(True, "--compare", *sampled) == answers(False, "--compare", *sampled)
    assert answers(True) != answers(False)


def test_plain_generate_is_transformers_own(spec_of: Any) -> None:
    m = IntervenedModel.from_spec(spec_of(True))
    ids = torch.tensor([prompt_ids(m.tokenizer, PROMPTS[0])])
    with m.disabled():
        ours = m.generate_ids(ids, max_new_tokens=NEW, do_sample=False)
        measured = m.generate_ids(ids, **measured_options(m.model, max_new_tokens=NEW))
    assert torch.equal(ours, m.model.generate(ids, max_new_tokens=NEW, do_sample=False))
    assert not torch.equal(ours, measured)


def test_only_what_ends_and_fills_rows_is_kept() -> None:
    """Whatever setting a version of transformers knows, a checkpoint's wish for it is undone."""
    config = transformers.GenerationConfig(**WANTS, eos_token_id=[2, 7], pad_token_id=0, num_beams=4)

    class _Model:
        generation_config = config

    undone = measured_options(_Model())
    assert set(WANTS) <= set(undone)
    assert not {"eos_token_id", "pad_token_id"} & set(undone)
    assert (undone["num_beams"], undone["repetition_penalty"], undone["suppress_tokens"]) == (1, 1.0, None)
