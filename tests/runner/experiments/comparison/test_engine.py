"""Conditions that a running server generates, held against the same ones in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import WIDTH, write_tiny_model

from subvene.runner import IntervenedModel, Results, run_experiment
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.http import server
from subvene.runner.engines.in_process import InProcess
from subvene.specs import SpecError, load_spec

KEY = "secret"
EXPERIMENT = """\
subvene: 1
model: {{name: {model}, dtype: float32}}
{engine}
interventions:
- {{kind: steering, name: other, layer: {layer}, vector: {{key: v, file: {tensors}}}, coefficient: 3,
   positions: response}}
conditions:
- {{name: baseline, interventions: []}}
- {{name: steered, sweep: {{other.coefficient: [-4, 4]}}}}
evaluate:
- {{kind: samples, prompts: [how are you, hello world], max_new_tokens: 6}}
{more}
"""
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("engine")
    base = write_tiny_model(folder / "model", eos_token_id=2)
    spec = {
        "subvene": 1,
        "model": {"name": str(base), "dtype": "float32"},
        "interventions": [
            {"kind": "steering", "name": "glad", "layer": 1, "vector": {"key": "v"}, "coefficient": 1.0,
             "positions": "response"},
        ],
    }  # fmt: skip
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    m = IntervenedModel.from_spec(spec, tensors={"v.block_output[1]": vector, "v.block_output[0]": vector})
    m.save_pretrained(folder / "cheerful")
    (tensors,) = (folder / "cheerful").glob("*.safetensors")
    return {"model": base, "tensors": tensors, "artifact": folder / "cheerful"}


@pytest.fixture(scope="module")
def url(held: dict[str, Any]) -> Iterator[str]:
    listening = server(InProcess.load({"cheerful": held["artifact"]}), "127.0.0.1", 0, KEY)
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{listening.server_address[1]}/v1"
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def made(held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setenv("SUBVENE_API_KEY", KEY)

    def make(engine: str = "", *, layer: int = 1, more: str = "", **fields: Any) -> Path:
        path = tmp_path / f"{'served' if engine else 'here'}.yaml"
        path.write_text(EXPERIMENT.format(**{**held, **fields}, engine=engine, layer=layer, more=more))
        return path

    return make


def measured(results: Results) -> list[Any]:
    return [
        (cell.name, cell.point, [(item.key, item.text) for item in cell.items]) for cell in results.conditions
    ]


def test_a_server_gives_what_this_process_gives(made: Write, url: str, tmp_path: Path) -> None:
    here = run_experiment(made(), output=tmp_path / "here").results
    served = run_experiment(made(f"engine: {{url: '{url}'}}"), output=tmp_path / "served").results
    assert measured(served) == measured(here)
    assert len({str(texts) for _, _, texts in measured(served)}) == 3
    for mine, theirs in zip(here.conditions, served.conditions, strict=True):
        assert theirs.units != mine.units
        for one, other in zip(mine.receipts["samples"], theirs.receipts["samples"], strict=True):
            same = ("name", "edited", "changed", "rows", "rows_edited", "strengths", "first", "last")
            assert {k: list(v) if isinstance(v, tuple) else v for k, v in other.items() if k in same} == {
                k: one[k] for k in same
            }
            assert other["mean_relative"] == pytest.approx(one["mean_relative"], rel=1e-5)


def test_what_the_server_does_not_hold_is_refused(
    made: Write, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = f"engine: {{url: '{url}'}}"
    with pytest.raises(EngineError, match="holds no artifact that does what other here does"):
        run_experiment(made(engine, layer=0), output=tmp_path / "layer")
    other = write_tiny_model(tmp_path / "other", intermediate_size=24, eos_token_id=2)
    with pytest.raises(EngineError, match="holds another model"):
        run_experiment(made(engine, model=other), output=tmp_path / "model")
    monkeypatch.delenv("SUBVENE_API_KEY")
    with pytest.raises(EngineError, match="Bearer KEY"):
        run_experiment(made(engine), output=tmp_path / "key")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("- {kind: divergence, texts: {file: t.txt}}", "does nothing else"),
        ("fit: {recipe: mean_difference, key: w, pairs: {texts: [{prompt: a, positive: b, negative: c}]}}",
         "serve its artifact"),
    ],
)  # fmt: skip
def test_what_no_server_does_is_refused_when_the_file_is_read(made: Write, more: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(made("engine: {url: 'http://127.0.0.1:1/v1'}", more=more))
