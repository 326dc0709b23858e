"""An experiment file from end to end: fit, evaluate, save, and prove that what was saved reloads."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from subvene.runner.experiments.comparison.run import Comparison
from subvene.runner.experiments.localization.run import Localization
from subvene.runner.experiments.persona.run import Persona
from subvene.runner.experiments.study import Publish, Study, StudyResult, run_study
from subvene.runner.files.leftovers import restore
from subvene.runner.files.storage import atomic_folder, check_writable, write_json
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.measures import EVALUATIONS
from subvene.runner.measures.contrast import contrast_texts
from subvene.runner.models.identity import environment
from subvene.runner.monitor.reload import reload_difference
from subvene.runner.recipes.fitting import fit
from subvene.runner.reports.localization import publish_localization
from subvene.runner.reports.page import publish_comparison
from subvene.runner.reports.persona import publish_persona
from subvene.specs import ContrastSpec, ExperimentSpec, SamplesSpec, SubveneError, dump_spec, load_spec


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment gave.

    Attributes:
        output: the folder with `results.json`, `experiment.yaml` and the artifact.
        artifact: the artifact's folder in it.
        evaluations: the records of each evaluation, in the file's order.
        reload_difference: max |Δ logit| between this process and a fresh one that loaded the artifact.
        model: the model, for further use.
    """

    output: Path
    artifact: Path
    evaluations: tuple[dict[str, Any], ...]
    reload_difference: float
    model: IntervenedModel


def run_experiment(
    spec: ExperimentSpec | str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    on_step: Callable[[str, Any], None] | None = None,
    **overrides: Any,
) -> ExperimentResult | StudyResult:
    """Run an experiment file.

    One that compares conditions goes to `experiments.comparison`, one that measures traits to
    `experiments.persona`, one that asks about a localization to `experiments.localization`.

    Args:
        spec: an experiment spec or its path.
        output: folder for the results; default: the spec's `output`, or `runs/<file name>`.
        folder: where relative files are looked for; default: the spec's folder.
        on_step: called as things are done: ("fitted", model), ("evaluated", records), ("saved", path),
            ("reloaded", difference).
        **overrides: fields of the spec's `model:` to replace.

    Raises:
        SpecError: the file, or a file of pairs that it names, is not valid; nothing has been loaded.
        StorageError: nothing can be written to `output`; nothing has been loaded.
        NotSteeredError: an intervention did not act.
    """
    stem = "experiment"
    if not isinstance(spec, ExperimentSpec):
        stem, folder = Path(spec).stem, Path(spec).parent if folder is None else folder
        loaded = load_spec(Path(spec))
        if not isinstance(loaded, ExperimentSpec):
            raise SubveneError(
                f"{spec}: this is no experiment: it has neither `fit:` nor `evaluate:`; "
                "try `subvene generate`"
            )
        spec = loaded
    folder = Path(folder or ".")
    target = Path(output or spec.output or Path("runs") / stem)
    for declared in spec.evaluate:
        if isinstance(declared, ContrastSpec):
            contrast_texts(declared, folder)  # what is wrong with them is said before the work, not after it
    if (asked := _study(spec)) is not None:
        study, publish = asked
        return run_study(
            study, spec, output=target, folder=folder, publish=publish, on_step=on_step, **overrides
        )
    check_writable(target)
    restore(target)
    if target.exists() and not (target / "results.json").is_file() and not _is_empty_folder(target):
        raise SubveneError(f"{target} exists and holds no results of an experiment; choose another --output")
    step = on_step or (lambda what, value: None)
    transformers.set_seed(spec.seed)

    if spec.fit is not None:
        m = fit(spec, folder=folder, **overrides)
    else:
        m = IntervenedModel.from_spec(spec, folder=folder, **overrides)
    step("fitted", m)
    evaluations = []
    for declared in spec.evaluate:
        evaluations.append(EVALUATIONS[declared.kind](m, declared, folder))
        step("evaluated", evaluations[-1])
    with atomic_folder(target) as temporary:
        m.save_pretrained(temporary / "artifact")
        (temporary / "experiment.yaml").write_text(dump_spec(m.spec), encoding="utf-8")
        results = {
            "evaluations": evaluations,
            "provenance": m.provenance,
            "reload_max_logit_difference": None,
            "environment": environment(),
            "files_relative_to": str(folder.resolve()),
        }
        write_json(temporary / "results.json", results)
    step("saved", target)
    # After saving: what was measured is not lost where a fresh process cannot load the model.
    prompts = next((e.prompts for e in spec.evaluate if isinstance(e, SamplesSpec)), ("Hello, who are you?",))
    difference = reload_difference(m, target / "artifact", prompts)
    # JSON has no NaN; who calls gets it, and null beside it says that there is no number.
    stored = difference if math.isfinite(difference) else None
    write_json(target / "results.json", results | {"reload_max_logit_difference": stored})
    step("reloaded", difference)
    return ExperimentResult(target, target / "artifact", tuple(evaluations), difference, m)


def _study(spec: ExperimentSpec) -> tuple[type[Study], Publish] | None:
    """The study that an experiment file asks for, and who writes its tables and its report."""
    if spec.asks_localization:
        return Localization, publish_localization
    if spec.compares_conditions:
        return Comparison, publish_comparison
    if spec.measures_traits:
        return Persona, publish_persona
    return None


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
