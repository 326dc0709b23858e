"""An experiment from end to end: what it leaves behind, what it refuses, and what its reload proves."""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from subvene.runner import IntervenedModel, NotSteeredError, run_experiment
from subvene.runner.artifacts import artifact
from subvene.runner.files.storage import StorageError
from subvene.runner.monitor.reload import reload_difference
from subvene.runner.reports import experiment as module
from subvene.specs import ExperimentSpec, SpecError, SubveneError, load_spec

STORED = """\
interventions:
- {kind: steering, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3, positions: response}
evaluate:
- {kind: samples, coefficients: [0, 3], prompts: [hello world], max_new_tokens: 4}
"""
no_fresh_process = pytest.mark.usefixtures("_no_fresh_process")
in_this_process = pytest.mark.usefixtures("_in_this_process")
no_model = pytest.mark.usefixtures("_no_model")


@pytest.fixture
def _no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the reload, which costs a second Python with torch."""
    monkeypatch.setattr(module, "reload_difference", lambda *args: 0.0)


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_model(*args: Any, **kwargs: Any) -> Any:
        pytest.fail("it was loaded")

    monkeypatch.setattr("subvene.runner.recipes.fitting.load_model", load_model)
    monkeypatch.setattr("subvene.runner.intervened.model.load_model", load_model)


COMPARED = """\
interventions:
- {kind: steering, name: v, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3}
conditions:
- {name: v}
evaluate:
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
"""


@no_model
@pytest.mark.parametrize("lines", [STORED, COMPARED])
@pytest.mark.parametrize("place", ["file/run", "x" * 300])
def test_an_output_that_cannot_be_written_is_said_before_the_work(
    write: Callable[..., Path], tmp_path: Path, lines: str, place: str
) -> None:
    (tmp_path / "texts.txt").write_text("hello world\n")
    (tmp_path / "file").touch()
    path = write(lines)
    with pytest.raises(StorageError, match=rf"{place}.*: cannot be written: .*; choose another place"):
        run_experiment(path, output=tmp_path / place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "spec.yaml", "t.safetensors", "texts.txt"]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def beside(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.parent.iterdir() if folder.name in p.name)


# What it leaves behind ------------------------------------------------------------------------------------


def test_a_run_and_its_real_reload(experiment: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, Any]] = []
    result = run_experiment(
        experiment, output=tmp_path / "out", on_step=lambda what, value: steps.append((what, value))
    )
    assert result.output == tmp_path / "out"
    assert result.artifact == tmp_path / "out" / "artifact"
    # The fresh process has its own number of threads, and with it another order of sums.
    assert result.reload_difference <= 1e-5
    assert steps == [
        ("fitted", result.model),
        ("evaluated", result.evaluations[0]),
        ("evaluated", result.evaluations[1]),
        ("saved", result.output),
        ("reloaded", result.reload_difference),
    ]
    stored = json.loads((result.output / "results.json").read_text())
    assert stored.keys() == {
        "evaluations",
        "provenance",
        "reload_max_logit_difference",
        "environment",
        "files_relative_to",
    }
    assert stored["evaluations"] == json.loads(json.dumps(result.evaluations))
    assert [evaluation["kind"] for evaluation in stored["evaluations"]] == ["samples", "contrast"]
    assert [r["coefficient"] for r in stored["evaluations"][1]["records"]] == [-2, 0, 2]
    assert stored["provenance"] == result.model.provenance
    assert stored["provenance"]["pairs"] == 2
    assert stored["reload_max_logit_difference"] == result.reload_difference
    versions = stored["environment"]["versions"]
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"subvene", "pyvene", "torch", "transformers"} <= set(versions)
    assert load_spec(result.output / "experiment.yaml") == load_spec(experiment)
    assert beside(result.output) == ["out"]
    tensors = safetensors.torch.load_file(result.artifact / artifact.TENSORS)
    assert set(tensors) == {f"glad.block_output[{layer}]" for layer in range(3)}


@no_fresh_process
def test_without_fit_the_tensors_of_a_file_work(write: Callable[..., Path], tmp_path: Path) -> None:
    result = run_experiment(write(STORED), output=tmp_path / "out")
    alone = IntervenedModel.from_spec(write(STORED))
    assert [record["response"] for record in result.evaluations[0]["records"]] == [
        alone.generate("hello world", strengths=c, max_new_tokens=4, do_sample=False)[0] for c in (0, 3)
    ]
    assert json.loads((result.output / "results.json").read_text())["provenance"] == {}
    # The artifact does not need the file.
    (tmp_path / "t.safetensors").unlink()
    ids = torch.tensor([[1, 4, 5, 6]])
    reloaded = IntervenedModel.from_pretrained(result.artifact)
    with torch.no_grad():
        found = reloaded(ids, prompt_lengths=[2]).logits
        assert torch.equal(found, alone(ids, prompt_lengths=[2]).logits)


@no_fresh_process
def test_overrides_are_part_of_what_is_left(experiment: Path, tmp_path: Path) -> None:
    result = run_experiment(experiment, output=tmp_path / "out", dtype="bfloat16")
    assert result.model.model.dtype == torch.bfloat16
    for file in (result.output / "experiment.yaml", result.artifact / artifact.SPEC):
        assert load_spec(file).model.dtype == "bfloat16"
    kept = load_spec(result.output / "experiment.yaml")
    assert isinstance(kept, ExperimentSpec)
    assert kept.fit == load_spec(experiment).fit


@no_fresh_process
def test_where_results_go(
    experiment: Path, write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_experiment(experiment).output == Path("runs/experiment")
    assert (tmp_path / "runs" / "experiment" / "results.json").is_file()
    named = write("output: mine\n" + STORED, "named.yaml")
    assert run_experiment(named).output == Path("mine")
    assert run_experiment(named, output="other").output == Path("other")
    assert run_experiment(load_spec(named), folder=tmp_path).output == Path("mine")
    assert (tmp_path / "other" / "results.json").is_file()


@no_fresh_process
def test_a_second_run_replaces_the_results_of_the_first(
    experiment: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is in nobody's way
    run_experiment(experiment, output=out)
    first = (out / "results.json").read_bytes()
    (out / "notes.txt").write_text("of the first run")
    again = run_experiment(experiment, output=out)
    # The same run to the last digit: nothing in it is drawn at random. And the folder is a new one.
    assert (out / "results.json").read_bytes() == first
    assert sorted(p.name for p in out.iterdir()) == ["artifact", "experiment.yaml", "results.json"]
    run_experiment(write(STORED), output=again.output)
    assert json.loads((out / "results.json").read_text())["provenance"] == {}
    assert beside(out) == ["out"]


# What it refuses ------------------------------------------------------------------------------------------


@no_fresh_process
@pytest.mark.parametrize("at", ["evaluate", "save"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_what_was_there(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, error: type[BaseException]
) -> None:
    out = tmp_path / "out"
    run_experiment(experiment, output=out)
    before = content(out)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error("in the middle")

    if at == "evaluate":
        monkeypatch.setitem(module.EVALUATIONS, "contrast", fails)
    else:
        monkeypatch.setattr(IntervenedModel, "save_pretrained", fails)
    for target in (out, tmp_path / "new-out"):
        with pytest.raises(error, match="in the middle"):
            run_experiment(experiment, output=target)
    assert content(out) == before
    assert beside(out) == ["out"]


def test_a_reload_that_fails_loses_no_measurement(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> Any:
        raise SubveneError("no fresh process")

    monkeypatch.setattr(module, "reload_difference", fails)
    with pytest.raises(SubveneError, match="no fresh process"):
        run_experiment(experiment, output=tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["evaluations"]
    assert stored["reload_max_logit_difference"] is None
    assert (tmp_path / "out" / "artifact" / "intervention.yaml").is_file()


@no_model
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_foreign_folder_is_refused_before_the_work(experiment: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    kept = out / "thesis.tex" if kind == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("x")
    with pytest.raises(SubveneError, match="holds no results of an experiment"):
        run_experiment(experiment, output=out)
    assert kept.read_text() == "x"


@no_model
def test_a_spec_that_is_no_experiment(steer: Path) -> None:
    with pytest.raises(SubveneError, match="neither `fit:` nor `evaluate:`"):
        run_experiment(steer)


@no_model
@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, SpecError, r"held-out\.yaml"),
        ("systems: [{positive: a, negative: b}]\nquestions: [c]\n", SubveneError, "are `systems`"),
        ("texts: [{positive: glad, negative: sad}]\n", SubveneError, "prompt is missing"),
    ],
    ids=["no file", "systems", "no prompt"],
)
def test_pairs_of_an_evaluation_are_checked_before_the_work(
    write: Callable[..., Path], tmp_path: Path, text: str | None, error: type[Exception], message: str
) -> None:
    if text is not None:
        (tmp_path / "held-out.yaml").write_text(text)
    path = write(STORED + "- {kind: contrast, coefficients: [0, 1], pairs: {file: held-out.yaml}}\n")
    with pytest.raises(error, match=message):
        run_experiment(path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@no_fresh_process
def test_a_run_that_was_not_steered_leaves_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    lost = {f"z.block_output[{layer}]": torch.full((32,), 1e-30) for layer in range(3)}  # in rounding
    safetensors.torch.save_file(lost, tmp_path / "z.safetensors")
    path = write(STORED.replace("t.safetensors, key: v", "z.safetensors, key: z"))
    with pytest.raises(NotSteeredError):
        run_experiment(path, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What the reload proves -----------------------------------------------------------------------------------


@pytest.fixture
def m(steer: Path) -> IntervenedModel:
    return IntervenedModel.from_spec(steer)


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fresh process runs, run here: a second Python with torch costs six seconds."""

    def run(command: list[str], **_: Any) -> Any:
        python, flag, name, *arguments = command
        assert (python, flag) == (sys.executable, "-m")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [name, *arguments])
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # it is imported here already
                    runpy.run_module(name, run_name="__main__")
            except SubveneError as error:
                return SimpleNamespace(returncode=1, stderr=str(error))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("subvene.runner.monitor.reload.subprocess.run", run)


PROMPTS = ["hello world", "tell me about the sun , the rain and the day"]


@in_this_process
@pytest.mark.parametrize("rule", ["response", "prompt", "last_prompt_token", "all"])
def test_a_whole_artifact_reloads_to_the_same_logits(steer: Path, tmp_path: Path, rule: str) -> None:
    steer.write_text(steer.read_text().replace("positions: response", f"positions: {rule}"))
    m = IntervenedModel.from_spec(steer)
    assert reload_difference(m, m.save_pretrained(tmp_path / "art"), PROMPTS) == 0.0


@in_this_process
@pytest.mark.parametrize("change", ["coefficient", "vector", "layer"])
def test_what_has_changed_since_it_was_saved_is_seen(
    m: IntervenedModel, steer: Path, tmp_path: Path, change: str
) -> None:
    folder = m.save_pretrained(tmp_path / "art")
    (edit,) = m.intervenable.interventions.values()
    if change == "coefficient":
        edit.strength += 0.5
    elif change == "vector":
        edit.vector.data[3] *= 1.1
    else:
        m = IntervenedModel.from_spec(load_spec_at(steer, 2), folder=steer.parent)
    assert reload_difference(m, folder, PROMPTS) > 1e-3


def load_spec_at(steer: Path, layer: int) -> Any:
    steer.write_text(steer.read_text().replace("layer: 1", f"layer: {layer}"))
    return load_spec(steer)


@in_this_process
def test_a_vector_that_somebody_swapped_is_seen(m: IntervenedModel, tmp_path: Path) -> None:
    """The file and its hash agree with each other, and not with the model that was saved."""
    folder = m.save_pretrained(tmp_path / "art")
    tensors = safetensors.torch.load_file(folder / artifact.TENSORS)
    tensors["v.block_output[1]"] = tensors["v.block_output[1]"].flip(0).contiguous()
    safetensors.torch.save_file(tensors, folder / artifact.TENSORS)
    with pytest.raises(SubveneError, match=r"did not reload in a fresh process(?s:.)*truncated or altered"):
        reload_difference(m, folder, PROMPTS)
    fingerprint = json.loads((folder / artifact.FINGERPRINT).read_text())
    fingerprint["sha256"][artifact.TENSORS] = hashlib.sha256(
        (folder / artifact.TENSORS).read_bytes()
    ).hexdigest()
    (folder / artifact.FINGERPRINT).write_text(json.dumps(fingerprint))
    assert reload_difference(m, folder, PROMPTS) > 1e-3


def test_it_reloads_where_the_model_lies(
    m: IntervenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model on the CPU of a machine with a GPU is compared there, one that is spread likewise."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        raise InterruptedError

    monkeypatch.setattr("subvene.runner.monitor.reload.subprocess.run", run)
    spread = {"model.embed_tokens": "cpu", "model.layers": 0}
    for device_map in (None, {"": "cpu"}, spread):
        m.model.hf_device_map = device_map
        with pytest.raises(InterruptedError):
            reload_difference(m, tmp_path, PROMPTS)
    placements = [json.loads(command[-1]) for command in commands]
    assert placements == [{"device": "cpu"}, {"device": "cpu"}, {"device_map": spread}]
