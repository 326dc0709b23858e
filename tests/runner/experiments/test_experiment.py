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

from subvene.runner import IntervenedModel, NotSteeredError, Results, run_experiment
from subvene.runner.artifacts import artifact
from subvene.runner.experiments.look import run as module
from subvene.runner.experiments.look.section import conditions_of, item_of, look_of
from subvene.runner.files.storage import StorageError
from subvene.runner.monitor.reload import reload_difference
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
    monkeypatch.setattr("subvene.runner.intervened.loaded.load_model", load_model)
    monkeypatch.setattr("subvene.runner.experiments.scaffold.load_model", load_model)


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


def results_in(run: Path) -> dict[str, bytes]:
    """Those of a run's files that say what was measured."""
    shown = ("results.json", "report.html", "tables/", "artifact/")
    return {name: held for name, held in content(run).items() if name.startswith(shown)}


def texts(results: Results) -> list[str | None]:
    """What was written, prompt by prompt, in the order of the coefficients."""
    samples = look_of(results).evaluations[0]
    return [
        item.text
        for key in samples.keys
        for condition in conditions_of(results, samples)
        if (item := item_of(condition, key)) is not None
    ]


def beside(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.parent.iterdir() if folder.name in p.name)


# What it leaves behind ------------------------------------------------------------------------------------


def test_a_run_and_its_real_reload(experiment: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, Any]] = []
    result = run_experiment(
        experiment, output=tmp_path / "out", on_step=lambda what, value: steps.append((what, value))
    )
    assert result.output == tmp_path / "out"
    stored = Results.load(result.output)
    assert stored == result.results
    section = look_of(stored)
    # The fresh process has its own number of threads, and with it another order of sums.
    assert section.reload_difference is not None
    assert section.reload_difference <= 1e-5
    assert section.dtype == "float32"
    told = [what for what, _ in steps]
    assert told == [
        "planned",
        "fitted",
        "unit",
        "evaluated",
        "unit",
        "evaluated",
        "saved",
        "reloaded",
        "finished",
    ]
    values = dict(steps)
    assert (values["planned"], values["saved"]) == (2, result.output)
    assert values["reloaded"] == section.reload_difference
    assert values["finished"] == stored
    (fitted,) = stored.fits
    assert fitted.provenance == values["fitted"].provenance
    assert fitted.provenance["pairs"] == 2
    samples, contrast = section.evaluations
    assert (samples.kind, contrast.kind) == ("samples", "contrast")
    assert contrast.coefficients == (-2, 0, 2)
    environment: Any = stored.manifest["environment"]
    versions = environment["versions"]
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"subvene", "pyvene", "torch", "transformers"} <= set(versions)
    assert load_spec(result.output / "experiment.yaml") == load_spec(experiment)
    assert beside(result.output) == ["out"]
    tensors = safetensors.torch.load_file(result.output / "artifact" / artifact.TENSORS)
    assert set(tensors) == {f"glad.block_output[{layer}]" for layer in range(3)}


@no_fresh_process
def test_without_fit_the_tensors_of_a_file_work(write: Callable[..., Path], tmp_path: Path) -> None:
    result = run_experiment(write(STORED), output=tmp_path / "out")
    alone = IntervenedModel.from_spec(write(STORED))
    assert texts(result.results) == [
        alone.generate("hello world", strengths=c, max_new_tokens=4, do_sample=False)[0] for c in (0, 3)
    ]
    assert result.results.fits == ()
    # The artifact does not need the file.
    (tmp_path / "t.safetensors").unlink()
    ids = torch.tensor([[1, 4, 5, 6]])
    reloaded = IntervenedModel.from_pretrained(result.output / "artifact")
    with torch.no_grad():
        found = reloaded(ids, prompt_lengths=[2]).logits
        assert torch.equal(found, alone(ids, prompt_lengths=[2]).logits)


@no_fresh_process
def test_overrides_are_part_of_what_is_left(experiment: Path, tmp_path: Path) -> None:
    result = run_experiment(experiment, output=tmp_path / "out", dtype="bfloat16")
    assert look_of(result.results).dtype == "bfloat16"
    for file in (result.output / "experiment.yaml", result.output / "artifact" / artifact.SPEC):
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
def test_a_second_run_takes_up_the_first(
    experiment: Path, write: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is in nobody's way
    run_experiment(experiment, output=out)
    first = content(out)
    assert {"manifest.json", "units.jsonl", "results.json", "report.html", "experiment.yaml"} <= set(first)
    assert {"tables/results.csv", "tables/results.md", "tables/samples.csv", "tables/pairs.csv"} <= set(first)
    done: list[bool] = []
    run_experiment(
        experiment, output=out, on_step=lambda what, v: done.append(v["was_done"]) if what == "unit" else None
    )
    # The same run to the last byte: nothing is done again.
    assert done == [True, True]
    assert content(out) == first
    # Another experiment in its place: what it measures is new, and its results replace the others.
    again = run_experiment(write(STORED), output=out)
    assert again.results.fits == ()
    assert Results.load(out) == again.results
    units = (out / "units.jsonl").read_bytes()
    assert units.startswith(first["units.jsonl"])
    assert units != first["units.jsonl"]
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
    before = results_in(out)
    assert {"results.json", "tables/results.csv", "artifact/intervention.yaml"} <= before.keys()

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise error("in the middle")

    if at == "evaluate":
        # Nothing of it was done before.
        experiment.write_text(
            experiment.read_text().replace("coefficients: [-2, 0, 2]", "coefficients: [-3, 0]")
        )

    if at == "evaluate":
        monkeypatch.setattr(module, "run_contrast", fails)
    else:
        monkeypatch.setattr(IntervenedModel, "save_pretrained", fails)
    for target in (out, tmp_path / "new-out"):
        with pytest.raises(error, match="in the middle"):
            run_experiment(experiment, output=target)
    # Of the run that failed there is what it did, to be taken up: nothing of it is taken for results.
    assert results_in(out) == before
    assert results_in(tmp_path / "new-out") == {}
    assert beside(out) == ["new-out", "out"]


def test_a_reload_that_fails_loses_no_measurement(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> Any:
        raise SubveneError("no fresh process")

    monkeypatch.setattr(module, "reload_difference", fails)
    with pytest.raises(SubveneError, match="no fresh process"):
        run_experiment(experiment, output=tmp_path / "out")
    stored = Results.load(tmp_path / "out")
    assert len(texts(stored)) == 6
    section = look_of(stored)
    assert (section.reload_difference, section.reload_failure) == (None, "no fresh process")
    assert "No fresh process could load it: no fresh process" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out" / "artifact" / "intervention.yaml").is_file()


@no_model
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_foreign_folder_is_refused_before_the_work(experiment: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    kept = out / "thesis.tex" if kind == "folder" else out
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("x")
    with pytest.raises(
        SubveneError, match="exists and is no run of a look at an edit; choose another --output"
    ):
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
def test_a_run_that_was_not_steered_leaves_no_results(write: Callable[..., Path], tmp_path: Path) -> None:
    lost = {f"z.block_output[{layer}]": torch.full((32,), 1e-30) for layer in range(3)}  # in rounding
    safetensors.torch.save_file(lost, tmp_path / "z.safetensors")
    path = write(STORED.replace("t.safetensors, key: v", "z.safetensors, key: z"))
    with pytest.raises(NotSteeredError):
        run_experiment(path, output=tmp_path / "out")
    left = content(tmp_path / "out")
    assert sorted(left) == [".lock", "experiment.yaml", "manifest.json", "units.jsonl"]
    assert left["units.jsonl"] == b""


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
    placements = [json.loads(command[-2]) for command in commands]
    assert placements == [{"device": "cpu"}, {"device": "cpu"}, {"device_map": spread}]
