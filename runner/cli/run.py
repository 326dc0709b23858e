"""`subvene run`: an experiment from end to end, told as it goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from subvene.runner.cli._comparison import ComparisonStory
from subvene.runner.cli._console import err, out, quiet_libraries, results
from subvene.runner.cli._localization import LocalizationStory
from subvene.runner.cli._options import Json
from subvene.runner.cli._persona import PersonaStory
from subvene.runner.cli._source import experiment
from subvene.runner.cli._units import UnitStory, print_places
from subvene.runner.cli._words import positions_in_words, strength_in_words
from subvene.specs import ExperimentSpec, SubveneError

if TYPE_CHECKING:
    from rich.console import Console

    from subvene.runner.intervened.model import IntervenedModel
    from subvene.runner.reports.experiment import ExperimentResult

LARGEST_RELOAD_DIFFERENCE = 1e-5
"""In float32, between this process and a fresh one: the sums may be taken in another order, no more."""


def run(
    spec: Annotated[
        Path,
        typer.Argument(
            metavar="EXPERIMENT", help="A spec file with `fit:` or `evaluate:`.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Where the results go; by default the spec's `output`, or runs/NAME.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run an experiment: fit, evaluate, save.

    One that looks at coefficients is reloaded in a fresh process as a proof; its folder is written whole or
    not at all. One that compares conditions, or measures traits, goes on where it was stopped when it is run
    again with the same output.
    """
    declared = experiment(
        spec, "this is no experiment: it has neither `fit:` nor `evaluate:`; try `subvene generate`"
    )
    if declared.compares_conditions or declared.measures_traits or declared.asks_localization:
        _in_units(spec, output, as_json, declared)
        return
    with results(as_json) as emit:
        from subvene.runner.reports.experiment import run_experiment

        quiet_libraries()
        story = _Story(out(), declared)
        if not as_json:
            story.begin()
        on_step = None if as_json else story.step
        done = cast("ExperimentResult", run_experiment(spec, output=output, on_step=on_step))
        if as_json:
            stored = json.loads((done.output / "results.json").read_text(encoding="utf-8"))
            emit({"output": str(done.output), "artifact": str(done.artifact), **stored})
        _check_reload(done.model, done.reload_difference)


def _in_units(spec: Path, output: Path | None, as_json: bool, declared: ExperimentSpec) -> None:
    with results(as_json) as emit:
        from subvene.runner.reports.experiment import run_experiment

        quiet_libraries()
        kind: type[UnitStory] = PersonaStory if declared.measures_traits else ComparisonStory
        if declared.asks_localization:
            kind = LocalizationStory
        with kind(out(), err()) as story:
            done = run_experiment(spec, output=output, on_step=story.step)
        if as_json:
            emit(
                {"output": str(done.output), **json.loads((done.output / "results.json").read_text("utf-8"))}
            )
        else:
            print_places(out(), done.output)


def _check_reload(m: IntervenedModel, difference: float) -> None:
    # `not <=`: a NaN is a failure too.
    if str(m.model.dtype) == "torch.float32" and not difference <= LARGEST_RELOAD_DIFFERENCE:
        raise SubveneError(
            "the artifact does not reload as it was saved: "
            f"logits differ by up to {difference:.3g}, more than {LARGEST_RELOAD_DIFFERENCE:g}"
        )


class _Story:
    """Prints each step of a run when it is done."""

    def __init__(self, console: Console, spec: ExperimentSpec) -> None:
        self.console, self.spec = console, spec
        self.count = 0

    def begin(self) -> None:
        """The model, and what will be done to it."""
        from subvene.runner.cli._tables import print_line

        self.console.print(f"model    {self.spec.model.name}", soft_wrap=True)
        for i, declared in enumerate(self.spec.interventions):
            name = declared.name or f"{declared.kind}_{i}"
            layer = getattr(declared, "layer", None)
            site = getattr(declared, "site", None) or getattr(declared, "component", "")
            place = site if layer is None else f"{site}[{layer}]"
            strength = strength_in_words(declared.strength)
            what = f"{name}: {declared.kind} at {place}, strength {strength}"
            print_line(self.console, "edit", f"{what}, on {positions_in_words(declared.positions)}")

    def step(self, what: str, value: Any) -> None:
        """What `run_experiment` calls as things are done."""
        steps: dict[str, Callable[[Any], None]] = {
            "fitted": self._fitted,
            "evaluated": self._evaluated,
            "saved": lambda folder: self.console.print(f"\nsaved    {folder}", soft_wrap=True),
            "reloaded": self._reloaded,
        }
        if what in steps:
            steps[what](value)

    def _fitted(self, m: IntervenedModel) -> None:
        from subvene.runner.cli.fit import print_fitted

        if self.spec.fit is None:
            return
        print_fitted(self.console, m.provenance)

    def _evaluated(self, evaluation: Mapping[str, Any]) -> None:
        from rich.text import Text

        from subvene.runner.cli import _tables

        forms = {"samples": _tables.print_samples, "contrast": _tables.print_contrast}
        titles = {
            "samples": "What it writes, by coefficient: one batch, 0 is the untouched model",
            "contrast": "What it prefers: log p(positive answer) − log p(negative answer), in nats",
        }
        self.console.print()
        title = titles.get(evaluation["kind"], evaluation["kind"])
        self.console.print(Text(title, style="bold underline"))
        forms.get(evaluation["kind"], _tables.print_records)(self.console, evaluation)

    def _reloaded(self, difference: float) -> None:
        agree = "logits agree exactly" if difference == 0 else f"max |Δ logit| = {difference:.2g}"
        self.console.print(f"reloaded in a fresh process: {agree}")
