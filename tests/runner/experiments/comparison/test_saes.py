"""An SAE of a comparison is read once, before the model, whatever its conditions make of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sae_by_hand import config, drawn, write
from tiny_model import WIDTH, write_tiny_model

from subvene.runner import run_experiment
from subvene.runner.artifacts.saelens import SaeError, SaeLensFolder

SPEC = """\
subvene: 1
model: {name: %s}
interventions:
- {kind: sae_feature, name: feature, sae: {folder: one}, features: [3], do: clamp, value: 4.0}
conditions:
- {name: untouched, interventions: []}
- {name: swept, sweep: {feature.features: [[3], [5]], feature.value: [2.0, 6.0]}}
- {name: other, set: {feature.sae: {folder: two}, feature.features: [11]}}
evaluate:
- {kind: divergence, texts: {file: texts.jsonl}, limit: 2}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    for seed, name in enumerate(("one", "two")):
        weights = drawn("jumprelu", WIDTH, seed=10 * seed)
        write(tmp_path / name, config("jumprelu", weights, "blocks.1.hook_resid_post"), weights)
    (tmp_path / "texts.jsonl").write_text('"hello world"\n"how are you"\n')
    (tmp_path / "saes.yaml").write_text(SPEC % write_tiny_model(tmp_path / "model"))
    return tmp_path / "saes.yaml"


def test_each_sae_is_read_once_and_every_condition_has_its_own_latents(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    whole = SaeLensFolder.read

    def counted(path: Path, overrides: Mapping[str, Any] | None = None) -> SaeLensFolder:
        read.append(path.name)
        return whole(path, overrides)

    monkeypatch.setattr(SaeLensFolder, "read", counted)
    results = run_experiment(spec, output=tmp_path / "run").results
    assert sorted(read) == ["one", "two"]
    kl = {one.label: one.metrics["kl"].mean for one in results.conditions}
    assert kl.pop("untouched") == 0
    assert len(set(kl.values())) == len(kl) == 5
    assert all(value > 0 for value in kl.values())
    # Taken up, nothing is done again: what a unit depends on is what the SAE was read as.
    again = run_experiment(spec, output=tmp_path / "run", on_step=_done).results
    assert again.conditions == results.conditions


def _done(what: str, value: Any) -> None:
    if what == "unit":
        assert value["was_done"]


def test_a_latent_that_there_is_not_is_said_before_the_model_is_loaded(spec: Path, tmp_path: Path) -> None:
    spec.write_text(spec.read_text().replace("[11]", "[12]"))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(SaeError, match="expected latents from 0 to 11, found 12"):
        run_experiment(spec, output=tmp_path / "run")
