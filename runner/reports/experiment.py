"""An experiment file from end to end, whatever it asks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from subvene.runner.experiments.elsewhere import Executor
from subvene.runner.experiments.look.section import check_reloaded
from subvene.runner.experiments.scaffold import StudyResult, run_study
from subvene.runner.experiments.study import Step, Study
from subvene.runner.reports.publish import publish
from subvene.specs import ExperimentSpec, SubveneError, load_spec


def run_experiment(
    spec: ExperimentSpec | str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    on_step: Step | None = None,
    engine: str | None = None,
    executor: Executor | None = None,
    **overrides: Any,
) -> StudyResult:
    """Run an experiment file, or take it up where it was stopped.

    One that compares conditions goes to `experiments.comparison`, one that measures traits to
    `experiments.persona`, one that asks about a localization to `experiments.localization`, one that traces
    the model as it is to `experiments.tracing`, one that measures the cells of a `das` fit to
    `experiments.interchange`, any other to `experiments.look`.

    Args:
        spec: an experiment spec or its path.
        output: folder for the results; default: the spec's `output`, or `runs/<file name>`.
        folder: where relative files are looked for; default: the spec's folder.
        on_step: called as things are done: see `study.Step`; a look also tells of ("fitted", model),
            ("evaluated", results of that evaluation alone), ("saved", path), ("reloaded", difference).
        engine: `vllm`, or URL of the server that generates and scores, in place of the file's `engine:`.
        executor: does the units of work (`experiments.on_ray.RayExecutor`); None: this process.
        **overrides: fields of the spec's `model:` to replace.

    Raises:
        SpecError: the file, or a file of pairs that it names, is not valid; nothing has been loaded.
        StorageError: nothing can be written to `output`; nothing has been loaded.
        NotSteeredError: an intervention did not act.
        SubveneError: a fresh process could not load what a look has saved; its results are written all the
            same.
    """
    name = None
    if not isinstance(spec, ExperimentSpec):
        name, folder = Path(spec).stem, Path(spec).parent if folder is None else folder
        loaded = load_spec(Path(spec), engine=engine)
        if not isinstance(loaded, ExperimentSpec):
            raise SubveneError(
                f"{spec}: this is no experiment: it has neither `fit:` nor `evaluate:`; "
                "try `subvene generate`"
            )
        spec = loaded
    elif engine is not None:
        raise SubveneError("engine: a spec that is given as an object says itself which engine it has")
    done = run_study(
        _study(spec),
        spec,
        output=Path(output or spec.output or Path("runs") / (name or "experiment")),
        folder=Path(folder or "."),
        publish=publish,
        name=name,
        on_step=on_step,
        executor=executor,
        **overrides,
    )
    check_reloaded(done.results)
    return done


def _study(spec: ExperimentSpec) -> type[Study]:
    """The study that an experiment file asks for; the others are not imported."""
    if spec.traces:
        from subvene.runner.experiments.tracing.run import Tracing

        return Tracing
    if spec.asks_interchange:
        from subvene.runner.experiments.interchange.run import Interchange

        return Interchange
    if spec.asks_localization:
        from subvene.runner.experiments.localization.run import Localization

        return Localization
    if spec.compares_conditions:
        from subvene.runner.experiments.comparison.run import Comparison

        return Comparison
    if spec.measures_traits:
        from subvene.runner.experiments.persona.run import Persona

        return Persona
    from subvene.runner.experiments.look.run import Look

    return Look
