"""Experiments by vLLM in this process, held against the same ones under transformers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from counting_judge import install
from served_experiments import ALL, CHOSEN, Words, check, hold, write, write_fitted

from subvene.runner import run_experiment
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.engines.errors import EngineError

ENGINE = "engine: {vllm: {max_model_len: 128, enforce_eager: true, max_num_seqs: 32}}"


@pytest.fixture(scope="module")
def held(engines: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    engines.close()
    return hold(tmp_path_factory.mktemp("engine"))


def test_every_measure_gives_what_this_process_gives(
    held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(Words(), monkeypatch)
    make = partial(write, tmp_path, held)
    here = run_experiment(make(more=ALL, chosen=CHOSEN), output=tmp_path / "here").results
    path = make(ENGINE, more=ALL, chosen=CHOSEN)
    served = run_experiment(path, output=tmp_path / "served").results
    check(served, here)
    said = served.manifest["engine"]
    assert (said["engine"], said["options"]["max_model_len"]) == ("vllm", 128)
    assert said["versions"]["vllm"].startswith("0.32")
    # Everything is done: nothing is asked of vLLM, which then need not start.
    monkeypatch.setattr("subvene.runner.engines.vllm.local.VllmEngine", None)
    again = run_experiment(path, output=tmp_path / "served").results
    assert [cell.units for cell in again.conditions] == [cell.units for cell in served.conditions]


@pytest.mark.parametrize(("site", "tokens"), [("block_output", "mean"), ("attention_heads", "last")])
def test_what_is_fitted_by_vllm_is_what_is_fitted_here(
    held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, tokens: str
) -> None:
    """Vectors of given texts and of the model's own answers, then conditions with them, and projections."""
    install(Words(), monkeypatch)
    make = partial(write_fitted, tmp_path, held, site=site, tokens=tokens)
    here = run_experiment(make(), output=tmp_path / "here").results
    served = run_experiment(make(ENGINE), output=tmp_path / "served").results
    check(served, here)
    tensors = [
        {
            key: value
            for file in sorted((tmp_path / where / "fits").glob("*/*.safetensors"))
            for key, value in safetensors.torch.load_file(file).items()
        }
        for where in ("here", "served")
    ]
    assert tensors[0].keys() == tensors[1].keys()
    assert any(name.startswith("early.") for name in tensors[0])
    for name, value in tensors[0].items():
        torch.testing.assert_close(tensors[1][name], value, rtol=1e-4, atol=1e-5)


def test_what_vllm_cannot_do_is_refused_before_it_starts(
    held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subvene.runner.engines.vllm.local.VllmEngine", None)
    path = write(tmp_path, held, ENGINE)
    text = path.read_text().replace("coefficient: 3,", "coefficient: 3, preserve_norm: true,")
    path.write_text(text)
    with pytest.raises(
        EngineError, match=r"interventions\[0\] \(steering\): .* does not say what it adds as columns"
    ):
        run_experiment(path, output=tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_request_that_was_not_steered_fails_its_unit(held: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, held, ENGINE, positions="{indices: [40], of: response}")
    with pytest.raises(NotSteeredError, match="no position of this request matches"):
        run_experiment(path, output=tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
