"""Fine-tuning one's own GPT-judge: training files, jobs, and what became of them.

The recipe is Lin et al. (2022)'s: 5 epochs, batches of 21, learning-rate multiplier 0.1, on the prompts and
completions that they published. A folder holds everything: the files, and `jobs.json` with the ids of uploads
and jobs, written after every step, so that the same command run again goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Required, TypedDict

from filelock import FileLock

from subvene.runner.data.truthfulqa.questions import question_key
from subvene.runner.files.json_value import Json
from subvene.runner.files.storage import atomic_file, atomic_folder
from subvene.runner.judges.base import Answer, Aspect, JudgeError
from subvene.runner.judges.scales.yes_no import NO, YES, chat_messages, completion_prompt
from subvene.runner.judges.training.labels import Label
from subvene.specs.regular_file import open_regular, read_bytes, read_text

if TYPE_CHECKING:
    import openai

    from subvene.runner.judges.server.client import Endpoint

Form = Literal["completions", "chat"]
FORMS: tuple[Form, ...] = ("completions", "chat")
DONE = ("succeeded", "failed", "cancelled")
_MANIFEST, _JOBS = "finetune.json", "jobs.json"


class Recipe(NamedTuple):
    """Hyperparameters; the defaults are those of Lin et al. (2022), who tuned GPT-3 6.7B (curie)."""

    epochs: int = 5
    batch_size: int = 21
    learning_rate_multiplier: float = 0.1


class FileRecord(TypedDict):
    """One training file."""

    rows: int
    questions: int
    yes: int
    sha256: str


class Prepared(TypedDict):
    """What `finetune.json` holds: the share for validation, and by name every file."""

    validation: float
    seed: int
    files: dict[str, FileRecord]


class Asked(TypedDict):
    """What a job was started with."""

    base_url: str
    model: str
    form: Form
    recipe: Mapping[str, float]


class JobState(TypedDict, total=False):
    """What `jobs.json` holds of an aspect: ids of the uploaded files and of the job, and how that stands."""

    asked: Required[Asked]
    train: str
    validation: str
    job: str
    status: str
    fine_tuned_model: str | None
    error: str


def prepare(
    labels: dict[Aspect, Sequence[Label]], folder: Path, *, validation: float = 0.1, seed: int = 0
) -> Prepared:
    """Writes the training files of each aspect in both forms, `truth.train.chat.jsonl` and so on.

    Args:
        labels: what people said, by quality.
        folder: where the files go; it must not exist.
        validation: share of the questions that are kept for validation; 0 keeps none.
        seed: which ones. The same questions are kept for every quality.

    Returns:
        The record that is also written to `finetune.json`: rows, questions and sha256 of every file.

    Raises:
        JudgeError: the folder exists, or one side of the split would be empty.
    """
    if folder.exists():
        raise JudgeError(f"{folder} exists; name a new folder, because a job may be training on these files")
    keys = sorted({question_key(row.question) for rows in labels.values() for row in rows})
    random.Random(seed).shuffle(keys)
    kept = set(keys[: round(validation * len(keys))])
    if len(kept) == len(keys) or (validation > 0 and not kept):
        raise JudgeError(
            f"{len(keys)} questions cannot be split with a share of {validation:g} for validation: "
            f"there would be none on one side"
        )
    files: dict[str, FileRecord] = {}
    with atomic_folder(folder) as temporary:
        for aspect, rows in labels.items():
            parts = {"train": [row for row in rows if question_key(row.question) not in kept]}
            if kept:
                parts["validation"] = [row for row in rows if question_key(row.question) in kept]
            for part, chosen in parts.items():
                if not chosen:
                    raise JudgeError(f"no {aspect} label is left for {part}; give more labels")
                for form in FORMS:
                    text = "".join(_line(row, aspect, form) for row in chosen)
                    name = file_name(aspect, part, form)
                    (temporary / name).write_text(text, encoding="utf-8")
                    files[name] = {
                        "rows": len(chosen),
                        "questions": len({question_key(row.question) for row in chosen}),
                        "yes": sum(row.label for row in chosen),
                        "sha256": hashlib.sha256(text.encode()).hexdigest(),
                    }
        record: Prepared = {"validation": validation, "seed": seed, "files": files}
        (temporary / _MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def file_name(aspect: Aspect, part: str, form: Form) -> str:
    """The name of a training file in its folder."""
    return f"{aspect}.{part}.{form}.jsonl"


def prepared(folder: Path) -> list[Aspect]:
    """The qualities that a folder has training files for.

    Raises:
        JudgeError: it is no folder that `prepare` wrote.
    """
    try:
        files = json.loads(read_text(folder / _MANIFEST))["files"]
        aspects: tuple[Aspect, ...] = ("truth", "info")
        return [aspect for aspect in aspects if file_name(aspect, "train", "chat") in files]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise JudgeError(
            f"{folder}: expected a folder of `subvene judge finetune prepare` ({error})"
        ) from error


def start(
    endpoint: Endpoint, folder: Path, aspect: Aspect, *, model: str, form: Form, recipe: Recipe
) -> JobState:
    """Uploads an aspect's files and starts its job; whatever has been done already is not done again.

    Args:
        endpoint: the server.
        folder: what `prepare` wrote.
        aspect: which quality.
        model: the model to be tuned.
        form: which of the files the model takes.
        recipe: the hyperparameters.

    Returns:
        The state: `job`, `status`, and what was asked for.

    Raises:
        JudgeError: the server refuses, the files have changed, or another job is recorded for this aspect.
    """
    import openai

    if aspect not in prepared(folder):
        raise JudgeError(f"{folder} holds no training files for {aspect}")
    asked: Asked = {"base_url": endpoint.base_url, "model": model, "form": form, "recipe": recipe._asdict()}
    with _Jobs(folder) as jobs:
        state = jobs.setdefault(aspect, {"asked": asked})
        if state["asked"] != asked:
            raise JudgeError(
                f"{folder / _JOBS}: a job for {aspect} is recorded with other settings ({state['asked']}); "
                f"prepare another folder for another job"
            )
        if "job" in state:
            return state
        endpoint.check([])
        client = endpoint.client
        try:
            for part in ("train", "validation"):
                path = folder / file_name(aspect, part, form)
                if part not in state and (part == "train" or path.exists()):
                    _unchanged(path)
                    with open_regular(path) as file:
                        uploaded = client.files.create(file=(path.name, file), purpose="fine-tune")
                    state[part] = uploaded.id
                    jobs.save()
            # A start whose reply was lost: the job is there, and is known by its file, which is ours alone.
            job = _find_job(client, state["train"]) or _create(client, state, aspect, model, recipe)
        except openai.OpenAIError as error:
            raise endpoint.failure(error) from None
        state |= {"job": job.id, "status": job.status}
        jobs.save()
        return state


def endpoint_of(folder: Path, aspect: Aspect) -> str:
    """The URL at which an aspect's job was started.

    Raises:
        JudgeError: no job was started.
    """
    return str(_started(folder, aspect)["asked"]["base_url"])


def follow(
    endpoint: Endpoint,
    folder: Path,
    aspect: Aspect,
    *,
    interval: float = 30.0,
    say: Callable[[str], None] = lambda message: None,
) -> JobState:
    """Waits until a job has ended, and tells what happens meanwhile.

    Args:
        endpoint: the server.
        folder: what `prepare` wrote and `start` was given.
        aspect: which quality.
        interval: seconds between questions to the server.
        say: called with each message of the job, oldest first.

    Returns:
        The state: `status`, and `fine_tuned_model` where the job has succeeded.

    Raises:
        JudgeError: no job was started, or the server cannot be asked.
    """
    import openai

    state = _started(folder, aspect)
    client = endpoint.client
    seen: set[str] = set()
    while True:
        try:
            job = client.fine_tuning.jobs.retrieve(state["job"])
            events = list(client.fine_tuning.jobs.list_events(state["job"], limit=100))
        except openai.OpenAIError as error:
            raise endpoint.failure(error) from None
        for event in sorted(events, key=lambda event: event.created_at):
            if event.id not in seen:
                seen.add(event.id)
                say(event.message)
        if job.status in DONE:
            break
        time.sleep(interval)
    with _Jobs(folder) as jobs:
        state = jobs[aspect]
        state |= {"status": job.status, "fine_tuned_model": job.fine_tuned_model}
        if job.error is not None and job.error.message:
            state["error"] = job.error.message
        jobs.save()
    return state


def _line(row: Label, aspect: Aspect, form: Form) -> str:
    answer = Answer(row.question, row.answer)
    completion = YES if row.label else NO
    if form == "completions":
        row_of_form: Json = {"prompt": completion_prompt(answer, aspect), "completion": completion}
    else:
        said = {"role": "assistant", "content": completion.strip()}
        row_of_form = {"messages": [*chat_messages(answer, aspect), said]}
    return json.dumps(row_of_form, ensure_ascii=False) + "\n"


def _unchanged(path: Path) -> None:
    files = json.loads(read_text(path.parent / _MANIFEST))["files"]
    if hashlib.sha256(read_bytes(path)).hexdigest() != files[path.name]["sha256"]:
        raise JudgeError(f"{path} is not as it was prepared; prepare another folder from the labels")


def _find_job(client: openai.OpenAI, training_file: str) -> Any:
    return next((job for job in client.fine_tuning.jobs.list() if job.training_file == training_file), None)


def _create(client: openai.OpenAI, state: JobState, aspect: Aspect, model: str, recipe: Recipe) -> Any:
    options: _Validation = {"validation_file": state["validation"]} if "validation" in state else {}
    # Never twice on its own: after a lost reply nobody knows whether the job runs, until they are listed.
    return client.with_options(max_retries=0).fine_tuning.jobs.create(
        model=model,
        training_file=state["train"],
        suffix=f"subvene-{aspect}",
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {
                    "n_epochs": recipe.epochs,
                    "batch_size": recipe.batch_size,
                    "learning_rate_multiplier": recipe.learning_rate_multiplier,
                }
            },
        },
        **options,
    )


class _Validation(TypedDict, total=False):
    validation_file: str


class _Jobs(dict[str, JobState]):
    """`jobs.json`, held by one process at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / _JOBS
        self._lock = FileLock(f"{self._path}.lock")

    def __enter__(self) -> _Jobs:
        self._lock.acquire()
        self.update(_read_jobs(self._path.parent))
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def save(self) -> None:
        with atomic_file(self._path) as file:
            file.write(json.dumps(self, indent=2) + "\n")


def _started(folder: Path, aspect: Aspect) -> JobState:
    state = _read_jobs(folder).get(aspect)
    if state is None or "job" not in state:
        raise JudgeError(f"{folder}: no job for {aspect} was started; run `subvene judge finetune start`")
    return state


def _read_jobs(folder: Path) -> dict[str, JobState]:
    path = folder / _JOBS
    try:
        found = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise JudgeError(f"{path}: expected the record of started jobs ({error})") from error
    if not isinstance(found, dict):
        raise JudgeError(f"{path}: expected a mapping of started jobs, found {type(found).__name__}")
    return found
