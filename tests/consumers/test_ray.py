"""Experiments on real Ray, against the same in this process; `make test-ray` has an environment with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loopback
import pytest
import torch
from small_experiments import Scripted, write_experiments

from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.experiments.on_ray import RayExecutor
from subvene.runner.reports.experiment import run_experiment
from subvene.specs import SubveneError

ray = pytest.importorskip("ray", reason="Ray is not installed; `make test-ray` has an environment with it")
LOUD = """\
conditions: [{name: loud, set: {glad.coefficient: 1.0e+38}}]
evaluate:
- {kind: contrast, pairs: {texts: [{prompt: are you glad, positive: very happy, negative: very gloomy}]}}
"""


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("ray")
    torch.set_num_threads(1)  # as Ray sets it for a unit that takes one CPU
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with loopback.serve(Scripted) as url:
        yield write_experiments(folder, url, ["chosen", "plain", "tracing", "localization"])
    ray.shutdown()


class Told:
    """What a run tells."""

    def __init__(self) -> None:
        self.units: list[dict[str, Any]] = []
        self.lost: list[dict[str, Any]] = []

    def __call__(self, what: str, value: Any) -> None:
        if what == "unit":
            self.units.append(value)
        elif what == "lost":
            self.lost.append(value)


def ran(spec: Path, output: Path, executor: RayExecutor | None = None) -> Told:
    told = Told()
    with pytest.MonkeyPatch.context() as patch:
        # Judges that have answered before say so in their record.
        patch.setenv("SUBVENE_CACHE", str(output) + "-cache")
        run_experiment(spec, output=output, on_step=told, executor=executor)
    return told


def ledger(output: Path) -> dict[str, Any]:
    lines = (output / "units.jsonl").read_text("utf-8").splitlines()
    return {record["key"]: record["result"] for record in map(json.loads, lines)}


def tables(output: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in (output / "tables").iterdir()}


def worker() -> int | None:
    """The process that does a unit, as soon as there is one."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::_unit"):
                return int(path.parent.name)
    return None


def test_units_on_ray_give_what_this_process_gives_though_a_worker_is_killed(
    experiments: dict[str, Path], tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            if (pid := worker()) is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.005)

    ran(experiments["chosen"], here)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(kill)
        told = ran(experiments["chosen"], there, RayExecutor())
        ended.result(timeout=5)
    assert len(told.lost) == 1
    assert "died" in told.lost[0]["why"]
    assert ledger(there) == ledger(here)
    assert tables(there) == tables(here)
    manifest = json.loads((there / "manifest.json").read_text())
    assert manifest["executor"] == {"kind": "ray", "version": ray.__version__, "cpus": 1, "gpus": 0}
    again = ran(experiments["chosen"], there, RayExecutor())
    assert all(unit["was_done"] for unit in again.units)
    assert len(again.units) == len(told.units)


def test_an_error_in_a_worker_is_that_of_the_run(experiments: dict[str, Path], tmp_path: Path) -> None:
    spec = experiments["plain"].with_name("loud.yaml")
    plain = experiments["plain"].read_text()
    spec.write_text(plain[: plain.index("evaluate:")] + LOUD)
    with pytest.raises(NotFiniteError, match="glad") as alone:
        ran(spec, tmp_path / "here")
    with pytest.raises(NotFiniteError, match="glad") as error:
        ran(spec, tmp_path / "there", RayExecutor())
    assert str(error.value) == str(alone.value)
    assert "in a worker of Ray on" in error.value.__notes__[0]


def test_what_ray_cannot_do_is_refused(experiments: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    for kind in ("tracing", "localization"):
        with pytest.raises(SubveneError, match="is run in this process, without --executor"):
            ran(experiments[kind], output, RayExecutor())
    with pytest.raises(SubveneError, match="takes 1 GPU, and the largest machine of this cluster has 0"):
        ran(experiments["plain"], output, RayExecutor(gpus=1))
    assert not output.exists()
