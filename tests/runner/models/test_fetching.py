"""Keywords that say how a model is fetched: transformers gets them, and our checks look where it looks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from subvene import IntervenedModel, fit
from subvene.runner.experiments.look.section import look_of
from subvene.runner.models.loading import ModelError, load_config, load_model, load_skeleton
from subvene.runner.models.pretrained import load_weights
from subvene.runner.reports.experiment import run_experiment

REPO, COMMIT = "user/tiny", "0123456789abcdef0123456789abcdef01234567"
PAIRS = [("i am glad", "i am sad"), ("very good day", "very bad day")]


@pytest.fixture
def cache(model_folder: Path, tmp_path: Path) -> Path:
    """A cache of somebody's own, in which a model of the Hub lies; the Hub's own cache has never seen it."""
    repository = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model_folder, repository / "snapshots" / COMMIT)
    return tmp_path / "cache"


def snapshot(cache: Path) -> Path:
    (folder,) = cache.glob("models--*/snapshots/*")
    return folder


def test_a_model_comes_from_the_cache_that_is_named(cache: Path, model_folder: Path) -> None:
    asked: dict[str, Any] = {"cache_dir": cache, "local_files_only": True}
    model, tokenizer = load_model(REPO, **asked)
    by_folder, _ = load_model(str(model_folder))
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, by_folder(ids).logits)
    assert tokenizer("hello")
    assert load_config(REPO, **asked).hidden_size == model.config.hidden_size
    assert load_skeleton(REPO, **asked).device.type == "meta"
    with pytest.raises(ModelError, match=REPO):
        load_model(REPO, local_files_only=True)


def test_every_door_takes_them_and_no_artifact_keeps_them(cache: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"cache_dir": str(cache), "local_files_only": True}
    m = fit("mean_difference", REPO, pairs=PAIRS, key="glad", layer=0, coefficient=1.0, **asked)
    m.save_pretrained(tmp_path / "glad")
    assert "cache" not in (tmp_path / "glad" / "intervention.yaml").read_text("utf-8")
    again = IntervenedModel.from_pretrained(tmp_path / "glad", **asked)
    spec = again.spec.model_dump(mode="json", exclude_none=True)
    third = IntervenedModel.from_spec(spec, tensors=m.tensors, **asked)
    assert third.generate("hello", max_new_tokens=2) == m.generate("hello", max_new_tokens=2)


LOOK = f"""\
subvene: 1
model: {{name: {REPO}}}
fit: {{recipe: mean_difference, key: glad, layers: [0], pairs: {{texts: [{{positive: i am glad,
  negative: i am sad}}]}}}}
interventions:
- {{kind: steering, layer: 0, vector: {{key: glad}}, coefficient: 1, positions: all}}
evaluate:
- kind: contrast
  coefficients: [0, 1]
  pairs: {{texts: [{{prompt: hello, positive: good, negative: bad}}]}}
"""


def test_a_fresh_process_finds_what_a_run_has_loaded_from_there(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tmp_path / "look.yaml"
    spec.write_text(LOOK, "utf-8")
    monkeypatch.chdir(tmp_path)
    done = run_experiment(spec, output=tmp_path / "run", cache_dir="cache", local_files_only=True)
    section = look_of(done.results)
    assert section.reload_failure is None
    assert section.reload_difference == 0.0


def test_what_is_wrong_in_that_cache_is_refused(cache: Path) -> None:
    asked: dict[str, Any] = {"cache_dir": cache, "local_files_only": True}
    settings = snapshot(cache) / "generation_config.json"
    kept = settings.read_text("utf-8")
    settings.write_text("{", "utf-8")
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be read as JSON"):
        load_model(REPO, **asked)
    settings.write_text(kept, "utf-8")
    path = snapshot(cache) / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = next(name for name in weights if name.endswith("up_proj.weight"))
    weights[name] = weights[name].to(torch.int8)
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} in model.safetensors as I8"):
        load_model(REPO, **asked)


def test_a_file_that_will_be_fetched_anew_is_not_judged_by_its_old_copy(cache: Path) -> None:
    (snapshot(cache) / "generation_config.json").write_text("{", "utf-8")
    seen: dict[str, Any] = {}

    class Reads:
        """Says what it was asked, and mends the file, as a download does."""

        @staticmethod
        def from_pretrained(source: str, **options: Any) -> tuple[Any, Any]:
            seen.update(options)
            (snapshot(cache) / "generation_config.json").write_text(json.dumps({}), "utf-8")
            raise OSError("asked")

    with pytest.raises(Exception, match="asked"):
        load_weights(Reads, REPO, cache_dir=cache, force_download=True)
    assert seen["force_download"] is True
    assert seen["cache_dir"] == cache


@pytest.mark.parametrize(
    ("name", "value"), [("cache_dir", 3), ("local_files_only", "yes"), ("force_download", 1)]
)
def test_another_type_is_refused(name: str, value: object, model_folder: Path) -> None:
    with pytest.raises(ModelError, match=f"{name}: expected"):
        load_config(str(model_folder), **{name: value})
