"""Tasks of lm-evaluation-harness run on a model with its edits, in this process.

Of a task's metrics those count that are the mean of a number a document: accuracies, exact matches. What is
made of all documents together (a perplexity, an F1 over all) has no items, and so no intervals.
"""

from __future__ import annotations

import importlib.util
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from subvene.runner.edits.receipt import Receipt, check_together
from subvene.runner.files.json_value import Json
from subvene.specs import SubveneError
from subvene.specs._flaws import nearest

if TYPE_CHECKING:
    from subvene.runner.intervened.model import IntervenedModel


class _Sample(TypedDict):
    """What the harness keeps of a document, beside the value of each of its metrics."""

    doc_id: int
    doc_hash: str
    filter: str
    metrics: list[str]


@dataclass(frozen=True)
class Documents:
    """What a task gave.

    Attributes:
        task: its name.
        version: of the task, as the harness has it.
        hashes: of each document, as the harness has it.
        scores: by metric, of each document.
    """

    task: str
    version: str
    hashes: list[str]
    scores: dict[str, list[float]]


def harness_version() -> str:
    """The installed lm-evaluation-harness.

    Raises:
        SubveneError: it is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SubveneError(
            "evaluate: `kind: lm_eval` needs lm-evaluation-harness: pip install 'subvene[lm-eval]'"
        )
    return version("lm_eval")


def check_tasks(tasks: Sequence[str], include: Path | None) -> None:
    """Refuse names that are no single tasks of the harness.

    Raises:
        SubveneError: it is not installed, or a name is none of a task.
    """
    harness_version()
    manager = _manager(include)
    for task in tasks:
        if task in manager.all_subtasks:
            continue
        near = nearest(task, manager.all_subtasks)
        what = "a group of tasks: name those of its tasks that you want" if task in manager.all_tasks else ""
        what = what or (
            f"no task of lm-evaluation-harness; did you mean {near}?" if near else "no task of the harness"
        )
        raise SubveneError(f"evaluate: lm_eval: tasks: {task!r} is {what} (`lm-eval ls tasks` lists them)")


def run_tasks(
    m: IntervenedModel,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    system: str | None = None,
) -> tuple[list[Documents], list[Receipt]]:
    """Run tasks on a model with its edits.

    Args:
        m: the model; its edits act unless it is disabled.
        tasks: names of single tasks.
        include: a folder with tasks of one's own.
        limit: at most so many documents of each, the first ones.
        num_fewshot: worked examples before each document; None: as the task has it.
        batch_size: texts at a time.
        system: a paragraph before every document; None: nothing.

    Returns:
        What each task gave, and the receipts.

    Raises:
        SubveneError: a task gives no number a document.
        NotSteeredError: an intervention acted in none of the passes.
    """
    from lm_eval.evaluator import simple_evaluate

    from subvene.runner.engines.lm_eval_model import HarnessModel

    model = HarnessModel(m, batch_size=batch_size)
    found: Any = simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=_manager(include),
        limit=limit,
        num_fewshot=num_fewshot,
        system_instruction=system,
        bootstrap_iters=0,
        log_samples=True,
    )
    check_together(model.receipts)
    documents = [
        _documents(task, str(found["versions"].get(task, "")), found["samples"][task], found["results"][task])
        for task in tasks
    ]
    return documents, model.receipts


def _manager(include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include))


def _documents(task: str, version: str, samples: Sequence[_Sample], results: Mapping[str, Json]) -> Documents:
    """The metrics that are means over documents, by what a table calls them."""
    scores: dict[str, list[float]] = {}
    hashes: list[str] = []
    for name in dict.fromkeys(str(sample["filter"]) for sample in samples):
        of_filter = sorted((s for s in samples if s["filter"] == name), key=lambda sample: sample["doc_id"])
        values_of: Sequence[Mapping[str, object]] = of_filter
        hashes = [str(sample["doc_hash"]) for sample in of_filter]
        for metric in of_filter[0]["metrics"]:
            found, whole = [sample[metric] for sample in values_of], results.get(f"{metric},{name}")
            given = [float(value) for value in found if isinstance(value, numbers.Real)]
            if len(given) < len(found) or not isinstance(whole, numbers.Real):
                continue
            if math.isclose(sum(given) / len(given), float(whole), abs_tol=1e-9):
                told = metric if name == "none" else f"{metric}_{name}"
                scores[re.sub(r"\W+", "_", f"{task}_{told}")] = given
    if not scores:
        raise SubveneError(
            f"evaluate: lm_eval: {task}: none of its metrics is the mean of a number a document; run it by "
            "`subvene lm-eval run`, which has all of them"
        )
    return Documents(task, version, hashes, scores)
