"""A local judge is known by what answers: weights, config, tokenizer, chat template."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from tiny_judge import save_tiny_judge
from tiny_questions import PRIMER, QUESTIONS, write_questions

import subvene.runner.judges.local.models as module
from subvene.runner import run_experiment
from subvene.runner.judges import BOTH, COHERENCE, make_judge
from subvene.specs import ModelSpec
from subvene.specs.judges import TransformersJudgeSpec

COMPARISON = """\
interventions:
- {{kind: steering, name: v, layer: 1, vector: {{file: t.safetensors, key: v}}, coefficient: 3}}
conditions:
- {{name: v}}
evaluate:
- kind: truthfulqa
  data: {{file: questions.csv}}
  preset: qa
  primer: primer.txt
  max_new_tokens: 4
  measure: [generation]
  judge: {{kind: transformers, model: {{name: {judge}, dtype: float32, device: cpu}}}}
"""


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return save_tiny_judge(model_folder, tmp_path / "judge")


def spec_of(folder: Path) -> TransformersJudgeSpec:
    model = ModelSpec(name=str(folder), dtype="float32", device="cpu")
    return TransformersJudgeSpec(truth_model=model, info_model=model)


def identities(folder: Path) -> list[Any]:
    """As a judge of answers and as one of traits."""
    spec = spec_of(folder)
    return [make_judge(spec, Path()).describe(BOTH), make_judge(spec, Path()).identity([COHERENCE])]


def other_weights(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def other_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"yes"', '"aye"'))


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }} ?")


def other_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))


@pytest.mark.parametrize("change", [other_weights, other_tokens, other_template, other_config])
def test_another_model_under_the_same_name_is_another_judge(
    folder: Path, change: Callable[[Path], None]
) -> None:
    before = identities(folder)
    assert identities(folder) == before
    change(folder)
    assert all(new != old for new, old in zip(identities(folder), before, strict=True))


def test_a_copy_is_the_same_model_and_nothing_is_loaded_to_tell(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "load_model", None)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    one, two = (identities(place)[0]["truth_model"]["sha256"] for place in (folder, copy))
    assert one == two


def test_a_run_asks_a_judge_with_other_weights_again(
    folder: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "primer.txt").write_text(PRIMER)
    write_questions(tmp_path / "questions.csv", QUESTIONS[:2])
    path, output = write(COMPARISON.format(judge=folder), "comparison.yaml"), tmp_path / "run"

    def judgements() -> int:
        run_experiment(path, output=output)
        lines = (output / "units.jsonl").read_text().splitlines()
        return sum(json.loads(line)["unit"]["unit"] == "judgement" for line in lines)

    assert [judgements(), judgements()] == [1, 1]
    other_weights(folder)
    assert judgements() == 2
