"""What real trackers hold of trainings and sweeps; `make test-trackers` has an environment with them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loopback
import pytest
from small_experiments import Scripted, write_experiments
from tiny_model import write_tiny_model

from subvene import IntervenedModel, fit, run_experiment
from subvene.runner.experiments.reported import _cells
from subvene.runner.files.reporting import curves, reporting
from subvene.runner.training import trainer

pytest.importorskip(
    "tensorboard", reason="TensorBoard is not installed; `make test-trackers` has an environment with it"
)

PREFERENCES = [
    {"prompt": f"hello {word}", "chosen": f"i am {glad}", "rejected": "i am very gloomy"}
    for word in ("day", "world", "you", "train", "sun")
    for glad in ("glad", "happy")
]
HEADS = {"rule": "list", "heads": {1: [0, 2]}}
Runs = dict[str, dict[str, list[tuple[int, float]]]]
"""By run and measure, the values with their steps."""

# Trackio reads it when it is imported.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")


def in_tensorboard(folder: Path) -> Runs:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Runs = {}
    for run in sorted({path.parent for path in folder.rglob("events.out.*")}):
        events = EventAccumulator(str(run)).Reload()
        for tag in events.Tags()["scalars"]:
            values = [(event.step, event.value) for event in events.Scalars(tag)]
            found.setdefault(run.relative_to(folder).as_posix(), {})[tag] = values
    return found


def in_mlflow(project: str) -> Runs:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(project)
    found: Runs = {}
    for run in client.search_runs([experiment.experiment_id]):
        for tag in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, tag)
            values = [(one.step, one.value) for one in history]
            found.setdefault(str(run.info.run_name), {})[tag] = values
    return found


def in_trackio(project: str) -> Runs:
    from trackio.sqlite_storage import SQLiteStorage

    found: Runs = {}
    for run in SQLiteStorage.get_runs(project):
        for row in SQLiteStorage.get_logs(project, run):
            for tag, value in row.items():
                if tag not in ("step", "timestamp"):
                    found.setdefault(run, {}).setdefault(tag, []).append((row["step"], value))
    return found


def in_wandb(folder: Path) -> Runs:
    """What offline runs wrote, read with W&B's own message types; W&B has no reader of its own in Python."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: Runs = {}
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        tags: dict[str, list[tuple[int, float]]] = {}
        for message in leveldb_log(path.read_bytes()):
            record = Record.FromString(message)
            if record.HasField("run"):
                found[record.run.display_name] = tags
            values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            for tag, value in values.items():
                if not tag.startswith("_"):
                    tags.setdefault(tag, []).append((record.history.step.num, float(value)))
    return found


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """The messages of a log in LevelDB's format behind W&B's seven bytes, each in pieces of 32 KiB blocks."""
    assert content[:4] == b":W&B"
    at, message = 7, b""
    while at + 7 <= len(content):
        room = 2**15 - at % 2**15
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if room < 7:
            at += room
            continue
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield message
            message = b""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("trackers") / "model")


@pytest.fixture(params=["tensorboard", "mlflow", "trackio", "wandb"])
def tracker(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Callable[[str, Path], Runs]]:
    """A tracker that is there, and how what it holds of a project, or in a folder, is read."""
    pytest.importorskip(request.param)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    if request.param == "wandb":
        import wandb

        wandb.teardown()  # it keeps the folder in which it was first used
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    read: dict[str, Callable[[str, Path], Runs]] = {
        "tensorboard": lambda project, folder: in_tensorboard(folder),
        "mlflow": lambda project, folder: in_mlflow(project),
        "trackio": lambda project, folder: in_trackio(project),
        "wandb": lambda project, folder: in_wandb(tmp_path),
    }
    return request.param, read[request.param]


def trained(folder: Path, **more: Any) -> IntervenedModel:
    fields = {"data": PREFERENCES, "heads": HEADS, "learning_rate": 0.02, "epochs": 2, "validation": 0.4}
    return fit("localized_edit", folder, key="glad", **fields, **more)


def test_the_curves_of_a_training_are_those_of_its_provenance(
    folder: Path, tmp_path: Path, tracker: tuple[str, Callable[[str, Path], Runs]]
) -> None:
    name, read = tracker
    m = trained(folder, report_to=name, logging_dir=tmp_path / "events")
    (run,) = read("glad", tmp_path / "events").values()
    steps, per_epoch = m.provenance["steps"], m.provenance["steps"] // 2
    loss = [value for _, value in sorted(run["loss"])]
    assert [step for step, _ in sorted(run["loss"])] == list(range(1, steps + 1))
    epochs = [sum(loss[i * per_epoch : (i + 1) * per_epoch]) / per_epoch for i in range(2)]
    assert epochs == pytest.approx(m.provenance["epoch_losses"], rel=1e-4)
    looked = [(one["step"], one["loss"]) for one in m.provenance["evaluations"]]
    assert sorted(run["validation_loss"]) == [
        (step, pytest.approx(value, rel=1e-4)) for step, value in looked
    ]
    assert {"accuracy", "grad_norm", "learning_rate", "validation_accuracy"} <= run.keys()


SWEEP = """\
fit:
  recipe: mean_difference
  key: glad
  pairs:
    texts:
    - {prompt: how are you, positive: i am very happy, negative: i am very gloomy}
    - {prompt: tell me about the day, positive: the sun is good, negative: the rain is bad}
interventions:
- {kind: steering, name: glad, layer: 1, vector: {key: glad}, coefficient: 2, positions: response}
conditions:
- {name: untouched, interventions: []}
- {name: swept, sweep: {glad.coefficient: [1, 2], glad.layer: [0, 2]}}
- {name: best, sweep: {glad.coefficient: [1, 2]}, choose: {by: contrast}}
evaluate:
- kind: contrast
  pairs:
    texts:
    - {prompt: are you glad, positive: very happy, negative: very gloomy}
    - {prompt: how is it, positive: good sun, negative: bad rain}
  validation: 1
"""


def test_each_cell_of_a_sweep_is_told_once_with_its_measures(
    folder: Path, tmp_path: Path, tracker: tuple[str, Callable[[str, Path], Runs]]
) -> None:
    name, read = tracker
    spec = tmp_path / "sweep.yaml"
    spec.write_text(f"subvene: 1\nmodel: {{name: {folder}}}\nreport_to: {name}\n{SWEEP}")
    done = run_experiment(spec, output=tmp_path / "run")
    run_experiment(spec, output=tmp_path / "run")  # taken up: there is nothing new to tell
    runs = read("run", tmp_path / "run" / "tensorboard")
    cells = {cell.run: cell for cell in _cells(done.results)}
    # Untouched, four points, the chosen one, and two that were tried.
    assert len(cells) == 8
    assert runs.keys() == cells.keys()
    for run, cell in cells.items():
        assert runs[run].keys() == cell.measures.keys()
        for measure, value in cell.measures.items():
            assert [told for _, told in runs[run][measure]] == [pytest.approx(value, rel=1e-5)]


def test_tensorboard_can_tell_cells_apart_by_their_settings(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    spec = tmp_path / "sweep.yaml"
    spec.write_text(f"subvene: 1\nmodel: {{name: {folder}}}\nreport_to: [tensorboard]\n{SWEEP}")
    done = run_experiment(spec, output=tmp_path / "run")
    point = {"condition": "swept", "glad.coefficient": 2, "glad.layer": 0}
    (run,) = (cell.run for cell in _cells(done.results) if cell.settings.items() >= point.items())
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / run)).Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["glad.coefficient"].number_value == 2
    assert settings["glad.layer"].number_value == 0
    assert settings["condition"].string_value == "swept"


def test_steps_that_are_done_again_are_not_shown_twice(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"work": tmp_path / "work", "report_to": "tensorboard", "logging_dir": tmp_path / "events"}
    whole = trained(folder, **kept | {"work": tmp_path / "other", "logging_dir": tmp_path / "whole"})
    optimize, done = trainer._Training._optimize, []

    def killed(self: Any, active: Any) -> None:
        done.append(self.step)
        if len(done) == 4:
            raise KeyboardInterrupt
        optimize(self, active)

    monkeypatch.setattr(trainer._Training, "_optimize", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(folder, checkpoint_every=2, **kept)
    monkeypatch.setattr(trainer._Training, "_optimize", optimize)
    trained(folder, checkpoint_every=2, **kept)
    (again,) = in_tensorboard(tmp_path / "events").values()
    assert [step for step, _ in again["loss"]] == list(range(1, whole.provenance["steps"] + 1))
    (expected,) = in_tensorboard(tmp_path / "whole").values()
    assert [value for _, value in again["loss"]] == [value for _, value in expected["loss"]]


def test_every_layer_of_das_has_curves_of_its_places(tmp_path: Path) -> None:
    with loopback.serve(Scripted) as url:
        spec = write_experiments(tmp_path, url, ["interchange"])["interchange"]
    spec.write_text(spec.read_text().replace("subvene: 1\n", "subvene: 1\nreport_to: tensorboard\n"))
    done = run_experiment(spec, output=tmp_path / "run")
    runs = in_tensorboard(tmp_path / "run" / "tensorboard")
    told = {
        run: {tag.removeprefix("loss/"): values for tag, values in tags.items() if tag.startswith("loss/")}
        for run, tags in runs.items()
    }
    assert {run: set(places) for run, places in told.items() if places} == {
        "das layer=0 seed=0": {"word", "last"},
        "das layer=2 seed=0": {"word", "last"},
        "mask layer=1 seed=0": {"last"},
    }
    provenance: Any = done.results.fits[0].provenance
    cells = {
        name: cell for one in provenance.get("fits", [provenance]) for name, cell in one["cells"].items()
    }
    expected = cells["das.block_output[0].word"]["epoch_losses"]
    loss = [value for _, value in told["das layer=0 seed=0"]["word"]]
    each = len(loss) // len(expected)
    epochs = [sum(loss[i * each : (i + 1) * each]) / each for i in range(len(expected))]
    assert epochs == pytest.approx(expected, rel=1e-4)


def test_nothing_is_written_where_nothing_is_told(tmp_path: Path) -> None:
    with reporting(["tensorboard"], "empty", tmp_path / "events"), curves("run", {}) as log:
        log({}, 0)
    assert not (tmp_path / "events").exists()
