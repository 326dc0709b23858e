"""Conditions that a running server generates, held against the same ones in this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from counting_judge import install
from served_experiments import ALL, CHOSEN, SCORES, SIZES, Words, check, hold, write
from small_experiments import Scripted
from tiny_model import write_tiny_model
from typer.testing import CliRunner

from subvene.runner import Results, run_experiment
from subvene.runner.cli.app import app
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.http import server
from subvene.runner.engines.in_process import InProcess
from subvene.runner.experiments.on_ray import RayExecutor
from subvene.specs import SpecError, SubveneError, load_spec

KEY = "secret"
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return hold(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def url(held: dict[str, Any]) -> Iterator[str]:
    with running(
        server(InProcess.load(held["artifacts"], collect=["block_output[1]"]), "127.0.0.1", 0, KEY)
    ) as address:
        yield f"{address}/v1"


@contextmanager
def running(listening: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def made(held: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.setenv("SUBVENE_API_KEY", KEY)

    return partial(write, tmp_path, held)


def test_a_server_gives_what_this_process_gives(
    made: Write, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(Words(), monkeypatch)
    here = run_experiment(made(more=ALL, chosen=CHOSEN), output=tmp_path / "here").results
    path = made(f"engine: {{url: '{url}'}}", more=ALL, chosen=CHOSEN)
    result = run_experiment(path, output=tmp_path / "served")
    check(result.results, here)
    said = result.results.manifest["engine"]
    assert (said["url"], said["engine"], list(said["artifacts"])) == (
        url,
        "transformers",
        ["cheerful", "late"],
    )
    assert url in (result.output / "report.html").read_text()
    assert "engine" not in here.manifest


def test_run_takes_the_engine_as_an_option(made: Write, url: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = CliRunner().invoke(app, ["run", str(made()), "-o", str(output), "--engine", url])
    assert result.exit_code == 0, result.output
    assert Results.load(output).manifest["engine"]["url"] == url
    assert f"url: {url}" in (output / "experiment.yaml").read_text().replace("'", "").replace('"', "")
    refused = CliRunner().invoke(app, ["run", str(made()), "-o", str(tmp_path / "x"), "--engine", "here"])
    assert refused.exit_code != 0
    assert "engine.url: expected the URL of a running `subvene serve`" in refused.output
    assert not (tmp_path / "x").exists()


def test_a_request_that_was_not_steered_fails_its_unit(made: Write, url: str, tmp_path: Path) -> None:
    path = made(f"engine: {{url: '{url}'}}", positions="{indices: [40], of: response}")
    with pytest.raises(NotSteeredError, match="no position of this run matches"):
        run_experiment(path, output=tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_what_the_server_does_not_hold_is_refused(
    made: Write, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = f"engine: {{url: '{url}'}}"
    with pytest.raises(EngineError, match="holds no artifact that does what other here does"):
        run_experiment(made(engine, layer=0), output=tmp_path / "layer")
    with pytest.raises(SpecError, match=r"interventions\[0\].during: expected none beside `engine`"):
        load_spec(made(engine, positions="response, during: {to: 2}"))
    install(Words(), monkeypatch)
    elsewhere = SCORES.replace("layer: 1", "layer: 0")
    with pytest.raises(EngineError, match=r"does not collect .* start it with --collect 'block_output\[0\]'"):
        run_experiment(made(engine, more=elsewhere), output=tmp_path / "projection")
    other = write_tiny_model(tmp_path / "other", **SIZES | {"intermediate_size": 24})
    with pytest.raises(SubveneError, match="does the units of work; run it without --executor"):
        run_experiment(made(engine), output=tmp_path / "ray", executor=RayExecutor(None, 1, 0))
    with pytest.raises(EngineError, match="is `subvene serve` running there"):
        run_experiment(made("engine: {url: 'http://127.0.0.1:9/v1'}"), output=tmp_path / "nobody")
    silent = ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    with running(silent) as address, pytest.raises(EngineError, match="does not say by hashes"):
        run_experiment(made(f"engine: {{url: '{address}/v1'}}"), output=tmp_path / "kind")
    with pytest.raises(EngineError, match="holds another model"):
        run_experiment(made(engine, model=other), output=tmp_path / "model")
    monkeypatch.delenv("SUBVENE_API_KEY")
    with pytest.raises(EngineError, match="Bearer KEY"):
        run_experiment(made(engine), output=tmp_path / "key")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("- {kind: trait_scores, traits: [{name: a, file: a.json}], sampling: model}",
         "asks for no settings"),
        ("- {kind: divergence, texts: {file: t.txt}}", "does nothing else"),
        ("fit: {recipe: mean_difference, key: w, pairs: {texts: [{prompt: a, positive: b, negative: c}]}}",
         "name the artifact's tensors"),
    ],
)  # fmt: skip
def test_what_no_server_does_is_refused_when_the_file_is_read(made: Write, more: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(made("engine: {url: 'http://127.0.0.1:1/v1'}", more=more))


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ("recipe: angular", r"fit.recipe: expected any of mean_difference, .*, which `engine` fits"),
        ("recipe: mean_difference, site: mlp_neurons", r"fit.site: expected any of block_output"),
    ],
)
def test_what_vllm_does_not_fit_is_refused_when_the_file_is_read(made: Write, fit: str, message: str) -> None:
    pairs = "{texts: [{prompt: a, positive: b, negative: c}]}"
    with pytest.raises(SpecError, match=message):
        load_spec(made("engine: vllm", more=f"fit: {{{fit}, key: w, pairs: {pairs}}}"))


def test_vllm_is_refused_before_a_model_is_loaded_where_it_is_not_installed(
    made: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subvene.runner.engines.vllm.versions.installed", lambda: None)
    monkeypatch.setattr("subvene.runner.experiments.scaffold.load_model", None)
    with pytest.raises(EngineError, match=r"pip install 'subvene\[vllm\]' .*make env-vllm"):
        run_experiment(made("engine: vllm"), output=tmp_path / "run")
    result = CliRunner().invoke(app, ["run", str(made()), "-o", str(tmp_path / "run"), "--engine", "vllm"])
    assert result.exit_code != 0
    assert "make env-vllm" in result.output


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("{}", "either `vllm` or `url`"),
        ("{vllm: {}, url: 'http://127.0.0.1:1/v1'}", "either `vllm` or `url`, found both"),
        ("{vllm: {}, api_key_env: KEY}", "api_key_env: expected nothing beside `vllm`"),
        ("{vllm: {dtype: float16}}", "dtype"),
        ("ray", "`vllm`, or a mapping"),
    ],
)
def test_what_is_no_engine_is_refused_when_the_file_is_read(made: Write, engine: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_spec(made(f"engine: {engine}"))
    assert load_spec(made("engine: vllm")) == load_spec(made("engine: {vllm: {}}"))
