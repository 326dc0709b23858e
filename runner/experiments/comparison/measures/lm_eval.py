"""Tasks of lm-evaluation-harness of arms, by name, in the harness itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from subvene.runner.engines.lm_eval_tasks import check_tasks, harness_version, run_tasks
from subvene.runner.experiments.comparison.measures.base import Measured, OneUnit, Place, WithReceipts, plain
from subvene.runner.experiments.results import Item
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import digest
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import LmEvalSpec, SubveneError
from subvene.specs.regular_file import read_bytes


class _Task(TypedDict):
    task: str
    version: str
    hashes: list[str]
    scores: dict[str, list[float]]


class _Run(WithReceipts):
    tasks: list[_Task]


class LmEvalMeasure(OneUnit[str, _Run]):
    """The scores of tasks, a document each."""

    name = "lm_eval"

    def __init__(self, spec: LmEvalSpec, folder: Path) -> None:
        self.spec = spec
        self.include = None if spec.include is None else folder / Path(spec.include).expanduser()
        check_tasks(spec.tasks, self.include)

    def tested(self, place: Place) -> Sequence[str]:
        """The tasks."""
        return self.spec.tasks

    def unit(self, items: Sequence[str]) -> Mapping[str, Json]:
        """The tasks, what was written of one's own, and the harness."""
        return {"unit": self.name, "tasks": list(items), **self.data()}

    def work(self, m: IntervenedModel, items: Sequence[str], system: str | None) -> _Run:
        """Run the tasks."""
        found, receipts = run_tasks(
            m,
            items,
            include=self.include,
            limit=self.spec.limit,
            num_fewshot=self.spec.num_fewshot,
            batch_size=self.spec.batch_size,
            system=system,
        )
        tasks: list[_Task] = [
            {"task": one.task, "version": one.version, "hashes": one.hashes, "scores": one.scores}
            for one in found
        ]
        return {"tasks": tasks, "receipts": plain(receipts)}

    def record(self, measured: Measured, result: _Run, items: Sequence[str]) -> None:
        """Every score of every document."""
        for one in result["tasks"]:
            for metric, values in one["scores"].items():
                measured.mean(metric, values)
            for i, of_document in enumerate(one["hashes"]):
                scores: dict[str, float | bool | None] = {
                    metric: values[i] for metric, values in one["scores"].items()
                }
                measured.items.append(
                    Item(key=digest(["lm_eval", one["task"], i, of_document])[:16], scores=scores)
                )

    def data(self) -> Mapping[str, Json]:
        """The harness, how much is asked, and a hash of the tasks of one's own."""
        return {
            "lm_eval": harness_version(),
            "limit": self.spec.limit,
            "num_fewshot": self.spec.num_fewshot,
            "include": None if self.include is None else _sha256(self.include),
        }


def _sha256(folder: Path) -> str:
    """A hash of all files of a folder."""
    state = hashlib.sha256()
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        try:
            content = read_bytes(path)
        except OSError as error:
            raise SubveneError(f"{path}: cannot be read ({error})") from error
        state.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return state.hexdigest()
