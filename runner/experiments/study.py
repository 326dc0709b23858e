"""A study: an experiment that is done in units which are recorded, and so can be stopped and taken up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Required, TypedDict

import transformers

from subvene.interventions import Sizes
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.run_folder import check_run_folder, run_folder
from subvene.runner.files.ledger import Ledger
from subvene.runner.models.anatomy import sizes_from_config
from subvene.runner.models.identity import Manifest
from subvene.runner.models.loading import load_config, load_model, with_overrides
from subvene.specs import ExperimentSpec, dump_spec

Step = Callable[[str, Any], None]
"""Called as things are done: ("planned", number of units), ("unit", what, and whether it was done before),
("finished", results)."""


class UnitTold(TypedDict, total=False):
    """What a step says of a unit: what was done, whether before, and of which condition or trait."""

    what: Required[str]
    was_done: Required[bool]
    condition: str
    seed: int
    fold: int
    trait: str


Publish = Callable[[Path, Results], None]
"""Writes a run's tables and its report, from its folder and its results."""


class Study(Protocol):
    """The plan of one experiment, and its execution."""

    what: ClassVar[str]
    """What a run of it is, in words."""

    def __init__(self, spec: ExperimentSpec, folder: Path, sizes: Sizes, step: Step) -> None:
        """Read what the spec names, and plan; relative files are looked for in `folder`."""

    def check(self) -> None:
        """Find out what is wrong before the model is loaded.

        Raises:
            SubveneError: a file, a judge or a setting is not as it must be.
        """

    def manifest(self) -> Manifest:
        """What there is to know about where the numbers come from."""

    def units(self) -> int:
        """Units of work to come, those of earlier runs among them."""

    def run(
        self, model: transformers.PreTrainedModel, tokenizer: Any, ledger: Ledger, output: Path
    ) -> Results:
        """Do every unit that is not done, and put the results together."""


@dataclass(frozen=True)
class StudyResult:
    """What a run gave.

    Attributes:
        output: the run's folder: `manifest.json`, `units.jsonl`, `results.json`, `tables/`, `report.html`,
            `artifacts/`.
        results: what `results.json` holds.
    """

    output: Path
    results: Results


def run_study(
    kind: type[Study],
    spec: ExperimentSpec,
    *,
    output: Path,
    folder: Path,
    publish: Publish,
    on_step: Step | None = None,
    **overrides: Any,
) -> StudyResult:
    """Run a study, or take it up where it was stopped.

    Every unit of work is recorded under a key made of all that it depends on. What is recorded is not done
    again, so a process that is killed loses one unit.

    Args:
        kind: the study.
        spec: the experiment.
        output: the run's folder; one of an earlier run of the same or another version of the experiment.
        folder: where relative files of the spec are looked for.
        publish: writes tables and report.
        on_step: see `Step`.
        **overrides: fields of the spec's `model:` to replace.

    Raises:
        SubveneError: a file, a judge or a setting is not as it must be; found before the model is loaded.
    """
    step = on_step or (lambda what, value: None)
    spec = with_overrides(spec, overrides)
    check_run_folder(output, kind.what)
    study = kind(spec, folder, sizes_from_config(load_config(spec.model, **overrides)), step)
    study.check()
    manifest = study.manifest()
    with run_folder(output, manifest, dump_spec(spec)) as ledger:
        step("planned", study.units())
        model, tokenizer = load_model(spec.model, **overrides)
        found = study.run(model, tokenizer, ledger, output)
        results = found.model_copy(update={"manifest": manifest})
        results.save(output)
        publish(output, results)
    step("finished", results)
    return StudyResult(output, results)
