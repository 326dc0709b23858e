"""Units that are done elsewhere: here one after the other, each with nothing but what a worker is given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import loopback
import pytest
from small_experiments import Scripted, write_experiments

from subvene.runner.experiments.elsewhere import Done, Job, Lost, do_one, files_beside, write_beside
from subvene.runner.experiments.on_ray import RayExecutor
from subvene.runner.models.anatomy import sizes_from_config
from subvene.runner.models.loading import load_config, load_model
from subvene.runner.reports.experiment import run_experiment
from subvene.specs import SubveneError

LOST = {"chosen": "divergence", "persona": "vectors"}
"""The second unit of each, which is lost once."""
MOST_AT_ONCE = {"chosen": 4, "persona": 1}
"""Units that do not need one another."""


class OneByOne:
    """Does units in this process, in a folder of its own for each."""

    def __init__(self, job: Job, folder: Path, losing: int) -> None:
        self.job, self.folder, self.losing = job, folder, losing
        self.model, self.tokenizer = load_model(job.spec.model)
        self.sizes = sizes_from_config(load_config(job.spec.model))
        self.waiting: list[tuple[str, Mapping[str, Any], Path]] = []
        self.waves: list[int] = []
        self.count = 0

    def submit(self, key: str, known: Mapping[str, Mapping[str, Any]], output: Path) -> None:
        self.waiting.append((key, json.loads(json.dumps(known)), output))

    def finished(self) -> list[Done | Lost]:
        self.waves.append(len(self.waiting))
        waiting, self.waiting = self.waiting, []
        return [self._ended(*one) for one in waiting]

    def _ended(self, key: str, known: Mapping[str, Mapping[str, Any]], output: Path) -> Done | Lost:
        self.count += 1
        if self.count == self.losing:
            return Lost(key, "killed")
        own = self.folder / str(self.count)
        write_beside(own, {name: (output / name).read_bytes() for name in files_beside(output)})
        study = self.job.kind(self.job.spec, Path(self.job.folder), self.sizes, lambda *step: None)
        return do_one(study, self.model, self.tokenizer, own, known, key)


@dataclass
class Inline:
    """An executor of `OneByOne`."""

    folder: Path
    losing: int = 0
    made: OneByOne | None = None

    def manifest(self) -> dict[str, Any]:
        return {"kind": "inline"}

    @contextmanager
    def workers(self, job: Job) -> Iterator[OneByOne]:
        self.made = OneByOne(job, self.folder, self.losing)
        yield self.made


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder = tmp_path_factory.mktemp("elsewhere")
    with loopback.serve(Scripted) as url:
        yield write_experiments(folder, url, ["chosen", "persona", "plain", "tracing"])


def ledger(output: Path) -> dict[str, Any]:
    """By key; what a judge has used is left out, since who asks first is not told by the cache."""
    records = map(json.loads, (output / "units.jsonl").read_text("utf-8").splitlines())
    return {r["key"]: {k: v for k, v in r["result"].items() if k != "usage"} for r in records}


def tables(output: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in (output / "tables").iterdir()}


@pytest.mark.parametrize("kind", ["chosen", pytest.param("persona", marks=pytest.mark.long)])
def test_a_study_is_the_same_wherever_its_units_are_done(
    experiments: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    told: list[tuple[str, Any]] = []
    executor = Inline(tmp_path, losing=2)
    alone: list[tuple[str, Any]] = []
    run_experiment(experiments[kind], output=here, on_step=lambda *step: alone.append(step))
    run_experiment(
        experiments[kind], output=there, on_step=lambda *step: told.append(step), executor=executor
    )
    assert ledger(there) == ledger(here)
    assert tables(there) == tables(here)
    assert [value for what, value in told if what == "lost"] == [{"what": LOST[kind], "why": "killed"}]
    assert units(told) == units(alone)
    assert executor.made is not None
    assert max(executor.made.waves) >= MOST_AT_ONCE[kind]
    again: list[tuple[str, Any]] = []
    run_experiment(experiments[kind], output=there, on_step=lambda *step: again.append(step))
    assert all(value["was_done"] for what, value in again if what == "unit")


def test_a_study_whose_units_are_not_for_others_is_refused(
    experiments: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        SubveneError, match="a tracing is run in this process, without --executor: how passes"
    ):
        run_experiment(experiments["tracing"], output=tmp_path / "out", executor=Inline(tmp_path))
    assert not (tmp_path / "out").exists()


def test_a_worker_that_plans_other_units_says_so(experiments: dict[str, Path], tmp_path: Path) -> None:
    class Stranger(OneByOne):
        def submit(self, key: str, known: Mapping[str, Mapping[str, Any]], output: Path) -> None:
            super().submit(key[::-1], known, output)

    class Strange(Inline):
        @contextmanager
        def workers(self, job: Job) -> Iterator[OneByOne]:
            yield Stranger(job, self.folder, 0)

    with pytest.raises(SubveneError, match="a worker plans other units"):
        run_experiment(experiments["plain"], output=tmp_path / "out", executor=Strange(tmp_path))


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_said_how_to_install_it(experiments: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SubveneError, match=r"pip install 'subvene\[ray\]'"):
        run_experiment(experiments["plain"], output=tmp_path / "out", executor=RayExecutor())
    assert not (tmp_path / "out").exists()


def units(told: list[tuple[str, Any]]) -> list[str]:
    """What was told of units, in any order; which of two equal units came first is left out."""
    return sorted(repr({**value, "was_done": None}) for what, value in told if what == "unit")
