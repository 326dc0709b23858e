"""The scaffold that every study runs in: folder, ledger, model, units, results, report."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subvene.runner.experiments.elsewhere import Executor, Job, run_elsewhere
from subvene.runner.experiments.reported import report_results
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.run_folder import check_run_folder, run_folder
from subvene.runner.experiments.study import Publish, Step, Study
from subvene.runner.files.reporting import reporting
from subvene.runner.models.anatomy import sizes_from_config
from subvene.runner.models.identity import hashed_once
from subvene.runner.models.loading import load_config, load_model, with_overrides
from subvene.specs import ExperimentSpec, SubveneError, dump_spec


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
    name: str | None = None,
    on_step: Step | None = None,
    executor: Executor | None = None,
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
        name: of the experiment, the report's title; None: it has none.
        on_step: see `Step`.
        executor: does the units of work; None: this process.
        **overrides: fields of the spec's `model:` to replace.

    Raises:
        SubveneError: a file, a judge or a setting is not as it must be; found before the model is loaded.
    """
    step = on_step or (lambda what, value: None)
    spec = with_overrides(spec, overrides)
    if executor is not None and kind.here is not None:
        raise SubveneError(f"{kind.what} is run in this process, without --executor: {kind.here}")
    if executor is not None and spec.trackers:
        raise SubveneError("report_to: trainings are told from this process; run it without --executor")
    if executor is not None and spec.engine is not None:
        raise SubveneError(f"engine: {spec.engine.words} does the units of work; run it without --executor")
    check_run_folder(output, kind.what)
    sizes = sizes_from_config(load_config(spec.model, **overrides))
    study = kind(spec, folder, sizes, step)
    study.check()
    manifest = study.manifest()
    if name is not None:
        manifest["name"] = name
    with ExitStack() as stack:
        workers = None
        if executor is not None:
            manifest["executor"] = executor.manifest()
            job = Job(kind, spec, os.path.abspath(folder), os.getcwd(), overrides)
            workers = stack.enter_context(executor.workers(job))
        ledger = stack.enter_context(run_folder(output, manifest, dump_spec(spec)))
        told_to = reporting(spec.trackers, output.absolute().name, output / "tensorboard")
        stack.enter_context(told_to)
        step("planned", study.units())
        model, tokenizer = load_model(spec.model, **overrides)
        # Every study leaves the weights as they are: arms are hooks, adapters beside them, or copies.
        stack.enter_context(hashed_once(model))
        opened = (model, tokenizer, ledger, output)
        if workers is None:
            found = study.run(*opened)
        else:
            found = run_elsewhere(workers, lambda told: kind(spec, folder, sizes, told), opened, step)
        results = found.model_copy(update={"manifest": manifest})
        report_results(results, ledger)
        results.save(output)
        publish(output, results)
    step("finished", results)
    return StudyResult(output, results)
