"""Units of work that other processes do, while this one plans, writes the ledger, and concludes.

A study is gone through with a ledger that leaves every unit which is not done. Where it needs one it stops
there (`Waiting`) and goes on with what does not need it (`Ledger.each`); so what is left are the units that
can be done now, whatever depends on what. They are done elsewhere and recorded here, and the study is gone
through again. When nothing is left, that pass gives the results: the study itself, in this process, from the
records. Units that ask a judge are done here, since a judge counts what it has used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import JsonValue

from subvene.runner.experiments.results import Results
from subvene.runner.experiments.study import Step, Study
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, Waiting
from subvene.runner.files.records import Record
from subvene.runner.files.storage import atomic_folder
from subvene.runner.models.identity import ExecutorManifest, hashed_once
from subvene.specs import ExperimentSpec, SubveneError
from subvene.specs.regular_file import read_bytes

BESIDE = ("fits", "vectors")
"""Folders of a run in which units leave files beside the ledger."""
_JUDGED = "judge"


@dataclass(frozen=True)
class Job:
    """What another process needs to know of a run to do a unit of it.

    Attributes:
        kind: the study.
        spec: the experiment.
        folder: where its relative files are looked for, absolute.
        working: the working directory.
        overrides: fields of the spec's `model:` to replace.
    """

    kind: type[Study]
    spec: ExperimentSpec
    folder: str
    working: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """A unit that another process has done.

    Attributes:
        record: as the ledger keeps it.
        files: what it left beside the ledger, by path in the run's folder.
    """

    record: Record
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Lost:
    """A unit whose process ended before it was done; it is done again.

    Attributes:
        key: of the unit.
        why: in words.
    """

    key: str
    why: str


class Workers(Protocol):
    """Processes that do units."""

    def submit(self, key: str, known: Mapping[str, Mapping[str, JsonValue]], output: Path) -> None:
        """Have a unit done.

        Args:
            key: of the unit.
            known: the results of all units that are done, by key.
            output: the run's folder, with what they left beside the ledger.
        """

    def finished(self) -> list[Done | Lost]:
        """Wait until at least one unit has ended.

        Raises:
            SubveneError: a unit cannot be done; the error that it ended with.
        """


class Executor(Protocol):
    """Who does the units of a run, where this process does not."""

    def manifest(self) -> ExecutorManifest:
        """What the run's manifest says of it."""

    def workers(self, job: Job) -> AbstractContextManager[Workers]:
        """Processes that do units of a job, for as long as the block lasts.

        Raises:
            SubveneError: there are none.
        """


def run_elsewhere(
    workers: Workers, make: Callable[[Step], Study], opened: tuple[Any, Any, Ledger, Path], step: Step
) -> Results:
    """Run a study whose units other processes do.

    Args:
        workers: who does them.
        make: the study, new for every pass, telling the step that it is given.
        opened: model, tokenizer, ledger and the run's folder, as for `Study.run`.
        step: told of everything once; of ("lost", what and why) too.
    """
    model, _, ledger, output = opened
    telling, asked = _Telling(step), dict[str, str]()
    with hashed_once(model):
        while True:
            waiting = _Waiting()
            with ledger.leaving(waiting.leave):
                try:
                    return make(telling.again()).run(*opened)
                except Waiting as reason:
                    if not waiting.units:
                        raise RuntimeError(f"nothing can be done of what is left: {reason}") from reason
            for key in (key for key in waiting.units if key not in asked):
                workers.submit(key, ledger.results | ledger.unfinished, output)
            asked |= waiting.units
            for ended in workers.finished():
                if isinstance(ended, Lost):
                    step("lost", {"what": asked[ended.key], "why": ended.why})
                    workers.submit(ended.key, ledger.results | ledger.unfinished, output)
                else:
                    _keep(ended, ledger, output)


def files_beside(output: Path) -> Iterator[str]:
    """What units have left beside the ledger, by path in the run's folder."""
    for name in BESIDE:
        for path in sorted((output / name).rglob("*")):
            if path.is_file():
                yield path.relative_to(output).as_posix()


def write_beside(output: Path, files: Mapping[str, bytes]) -> None:
    """Write what a unit left beside the ledger, each folder whole or not at all."""
    for parent in {Path(name).parent for name in files}:
        with atomic_folder(output / parent) as temporary:
            for name, content in files.items():
                if Path(name).parent == parent:
                    (temporary / Path(name).name).write_bytes(content)


class UnitDone(Exception):
    """The unit that is asked for is done; ends the pass through the study."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record


class OneUnit(Ledger):
    """The ledger of a process that does one unit; it writes nothing.

    Args:
        known: the results of all units that are done, by key.
        key: of the unit that is to be done.
    """

    def __init__(self, known: Mapping[str, Mapping[str, JsonValue]], key: str) -> None:
        super().__init__(Path())
        self.results = {name: dict(result) for name, result in known.items()}
        self._key = key

    def take(self, record: Record) -> None:
        """End the pass: this is the one."""
        raise UnitDone(record)

    def alone(self, key: str, identity: Mapping[str, object]) -> None:
        """For `leaving`: leaves every other unit."""
        if key != self._key:
            raise Waiting(str(identity.get("unit")))


def do_one(
    study: Study,
    model: Any,
    tokenizer: Any,
    output: Path,
    known: Mapping[str, Mapping[str, JsonValue]],
    key: str,
) -> Done:
    """Do one unit of a study.

    Args:
        study: fresh.
        model: loaded.
        tokenizer: its tokenizer.
        output: a folder with what the units that are done have left beside the ledger.
        known: the results of these, by key.
        key: of the unit.

    Raises:
        SubveneError: the study has no such unit here.
    """
    before = set(files_beside(output))
    ledger = OneUnit(known, key)
    try:
        with ledger.leaving(ledger.alone):
            study.run(model, tokenizer, ledger, output)
    except UnitDone as done:
        left = (name for name in files_beside(output) if name not in before)
        return Done(done.record, {name: read_bytes(output / name) for name in left})
    except Waiting:
        pass
    raise SubveneError(
        "a worker plans other units than the process that runs the experiment: both need the same files, the "
        "same versions of subvene, torch, transformers and pyvene, and the model on the same kind of device"
    )


class _Waiting:
    """The units that one pass through a study leaves: key → what it is."""

    def __init__(self) -> None:
        self.units: dict[str, str] = {}

    def leave(self, key: str, identity: Mapping[str, object]) -> None:
        """Leave a unit, unless it asks a judge."""
        if _JUDGED not in identity:
            self.units[key] = str(identity.get("unit"))
            raise Waiting(self.units[key])


def _keep(done: Done, ledger: Ledger, output: Path) -> None:
    write_beside(output, done.files)
    ledger.take(done.record)


class _Telling:
    """Tells every step of a study once, however often it is gone through.

    What the first pass finds done was done by an earlier run; what later ones find, by this one.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._told: Counter[str] = Counter()
        self._pass = 0

    def again(self) -> Step:
        """The step for another pass."""
        seen: Counter[str] = Counter()
        self._pass += 1
        is_first = self._pass == 1

        def step(what: str, value: Any) -> None:
            key = repr([what, _of_unit(value) if what == "unit" else None])
            seen[key] += 1
            if seen[key] <= self._told[key]:
                return
            self._told[key] += 1
            if what == "unit":
                value = {**value, "was_done": value["was_done"] and is_first}
            self._step(what, value)

        return step


def _of_unit(value: Mapping[str, Json]) -> list[tuple[str, Json]]:
    return sorted((name, inner) for name, inner in value.items() if name != "was_done")
