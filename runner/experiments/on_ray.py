"""Units of work as tasks of Ray, on this machine or on the machines of a cluster."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from subvene.runner.experiments.elsewhere import Done, Job, Lost, do_one, files_beside, write_beside
from subvene.runner.models.anatomy import sizes_from_config
from subvene.runner.models.identity import ExecutorManifest, hashed_once
from subvene.runner.models.loading import load_config, load_model
from subvene.specs import SubveneError
from subvene.specs.regular_file import read_bytes

MISSING = "`--executor ray` needs Ray: pip install 'subvene[ray]'"


@dataclass(frozen=True)
class RayExecutor:
    """Runs every unit of work of an experiment as a task of Ray.

    A process keeps the model loaded from one task to the next. One that is killed loses the unit that it was
    doing, which is done again.

    Attributes:
        address: of a cluster, as `ray.init` takes it (`auto`, `ray://host:10001`, `host:6379`); None: Ray is
            started on this machine, and ended with the run.
        cpus: that a unit takes.
        gpus: that a unit takes; a part of one is allowed.
        losses: how many processes one unit may lose before the run fails.
    """

    address: str | None = None
    cpus: float = 1
    gpus: float = 0
    losses: int = 3

    def manifest(self) -> ExecutorManifest:
        """What the run's manifest says of it.

        Raises:
            SubveneError: Ray is not installed.
        """
        return {"kind": "ray", "version": _ray().__version__, "cpus": self.cpus, "gpus": self.gpus}

    @contextmanager
    def workers(self, job: Job) -> Iterator[RayWorkers]:
        """The cluster, for as long as the block lasts.

        Raises:
            SubveneError: Ray is not installed, the job cannot be sent, or no machine has what a unit takes.
        """
        sent = _pickled(job)
        ray = _ray()
        is_ours = not ray.is_initialized()
        if is_ours:
            options: dict[str, Any] = (
                {"address": self.address} if self.address else {"include_dashboard": False}
            )
            ray.init(log_to_driver=False, **options)
        try:
            self._check_resources(ray)
            yield RayWorkers(ray, self, sent)
        finally:
            if is_ours:
                ray.shutdown()

    def _check_resources(self, ray: Any) -> None:
        for name, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            most = max((node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]), default=0)
            if most < wanted:
                raise SubveneError(
                    f"--executor ray: a unit takes {wanted:g} {name}, and the largest machine of this "
                    f"cluster has {most:g}; no unit would ever begin"
                )


class RayWorkers:
    """Tasks of one run.

    Args:
        ray: the module, connected.
        executor: what each unit takes.
        job: pickled.
    """

    def __init__(self, ray: Any, executor: RayExecutor, job: bytes) -> None:
        self._ray, self._executor = ray, executor
        self._job = ray.put(job)
        self._task = ray.remote(num_cpus=executor.cpus, num_gpus=executor.gpus, max_retries=0)(_unit)
        self._running: dict[Any, str] = {}
        self._lost: Counter[str] = Counter()
        self._known: tuple[int, Any] = (-1, None)
        self._files: dict[str, Any] = {}

    def submit(self, key: str, known: Mapping[str, Mapping[str, JsonValue]], output: Path) -> None:
        """Have a unit done: a task."""
        if self._known[0] != len(known):
            self._known = (len(known), self._ray.put(dict(known)))
            for name in files_beside(output):
                if name not in self._files:
                    self._files[name] = self._ray.put(read_bytes(output / name))
        task = self._task.remote([self._job], [self._known[1]], dict(self._files), key)
        self._running[task] = key

    def finished(self) -> list[Done | Lost]:
        """Wait until at least one task has ended."""
        ready, rest = self._ray.wait(list(self._running), num_returns=1)
        more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], [])
        return [self._ended(task, self._running.pop(task)) for task in (*ready, *more)]

    def _ended(self, task: Any, key: str) -> Done | Lost:
        errors = self._ray.exceptions
        try:
            gave = self._ray.get(task)
        except errors.RayTaskError as error:
            raise SubveneError(f"a unit failed in a worker of Ray:\n{error}") from error
        except errors.RayError as error:
            self._lost[key] += 1
            if self._lost[key] > self._executor.losses:
                raise SubveneError(
                    f"a unit has lost {self._lost[key]} processes of Ray, and is not tried again: {error}"
                ) from error
            return Lost(key, f"{type(error).__name__}: {str(error).splitlines()[0]}")
        if isinstance(gave, Exception):
            raise gave
        done: Done = gave
        return done


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise SubveneError(MISSING) from error
    return ray


def _pickled(job: Job) -> bytes:
    try:
        return pickle.dumps(job)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise SubveneError(
            f"--executor ray: what this run was given cannot be sent to other processes ({error}); name "
            "models and settings by text and number, or run in this process"
        ) from error


def _unit(job: list[Any], known: list[Any], files: Mapping[str, Any], key: str) -> Done | Exception:
    """In a worker: do a unit; an error of subvene's is given back as it is."""
    import ray

    try:
        return _done(ray.get(job[0]), ray.get(known[0]), files, key)
    except Exception as error:
        error.add_note(f"in a worker of Ray on {os.uname().nodename}")
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return SubveneError(f"{type(error).__name__}: {error}")
        if isinstance(error, SubveneError):
            return error
        raise


def _done(
    sent: bytes, known: Mapping[str, Mapping[str, JsonValue]], files: Mapping[str, Any], key: str
) -> Done:
    import ray

    here = _opened(hashlib.sha256(sent).hexdigest(), sent)
    sizes = sizes_from_config(load_config(here.job.spec.model, **here.job.overrides))
    study = here.job.kind(here.job.spec, Path(here.job.folder), sizes, _silent)
    with tempfile.TemporaryDirectory(prefix="subvene-ray-") as output:
        write_beside(Path(output), {name: ray.get(content) for name, content in files.items()})
        return do_one(study, here.model, here.tokenizer, Path(output), known, key)


@dataclass(frozen=True)
class _Opened:
    """A job and its model, as long as this process lives; the model's weights stay as they are."""

    job: Job
    model: Any
    tokenizer: Any
    hashed: ExitStack


@functools.lru_cache(maxsize=1)
def _opened(_digest: str, sent: bytes) -> _Opened:
    job: Job = pickle.loads(sent)
    if not Path(job.working).is_dir() or not Path(job.folder).is_dir():
        raise SubveneError(
            f"{job.folder}: this worker does not see the folder of the experiment; share it between machines"
        )
    os.chdir(job.working)
    model, tokenizer = load_model(job.spec.model, **job.overrides)
    hashed = ExitStack()
    hashed.enter_context(hashed_once(model))
    return _Opened(job, model, tokenizer, hashed)


def _silent(what: str, value: object) -> None:
    """Nobody is told in a worker: the units are, where the ledger is."""
