"""What `subvene run` prints of a look at an edit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from subvene.runner.cli._units import UnitStory
from subvene.runner.cli._words import positions_in_words, strength_in_words
from subvene.specs import ExperimentSpec, SubveneError, intervention_name

if TYPE_CHECKING:
    from rich.console import Console

    from subvene.runner.experiments.results import Results
    from subvene.runner.intervened.model import IntervenedModel

LARGEST_RELOAD_DIFFERENCE = 1e-5
"""In float32, between this process and a fresh one: the sums may be taken in another order, no more."""
_TITLES = {
    "samples": "What it writes, by coefficient: one batch, 0 is the untouched model",
    "contrast": "What it prefers: log p(positive answer) − log p(negative answer), in nats",
}


def check_reload(results: Results) -> None:
    """Check that what was saved reloads as it was; nothing of other studies.

    Raises:
        SubveneError: in float32, logits differ by more than rounding, or are not numbers.
    """
    from subvene.runner.experiments.look.section import SECTION, LookSection

    section = results.section(SECTION, LookSection)
    if section is None or section.dtype != "float32":
        return
    difference = section.reload_difference
    if difference is None or difference > LARGEST_RELOAD_DIFFERENCE:
        by = "are not finite" if difference is None else f"differ by up to {difference:.3g}"
        raise SubveneError(
            f"the artifact does not reload as it was saved: logits {by}, more than "
            f"{LARGEST_RELOAD_DIFFERENCE:g}"
        )


class LookStory(UnitStory):
    """Prints each step of a look when it is done, whether it was done now or by an earlier run.

    Args:
        console: standard output.
        progress_console: standard error.
        spec: the experiment.
        quiet: print nothing.
    """

    def __init__(
        self, console: Console, progress_console: Console, spec: ExperimentSpec, *, quiet: bool
    ) -> None:
        super().__init__(console, progress_console)
        self.spec, self.quiet = spec, quiet

    def __enter__(self) -> Self:
        if not self.quiet:
            self._begin()
        return self

    def step(self, what: str, value: Any) -> None:
        """What `run_experiment` calls as things are done."""
        steps: dict[str, Callable[[Any], None]] = {
            "fitted": self._fitted,
            "evaluated": self._evaluated,
            "saved": lambda folder: self.console.print(f"\nsaved    {folder}", soft_wrap=True),
            "reloaded": self._reloaded,
        }
        if what in steps and not self.quiet:
            steps[what](value)
        elif what == "lost":
            super().step(what, value)

    def end(self, output: Path) -> None:
        """Nothing: where the results are was said when they were saved."""

    def _begin(self) -> None:
        """The model, and what will be done to it."""
        from subvene.runner.cli._tables import print_line

        self.console.print(f"model    {self.spec.model.name}", soft_wrap=True)
        for i, declared in enumerate(self.spec.interventions):
            layer = getattr(declared, "layer", None)
            site = declared.site or declared.module_path or ""
            place = site if layer is None else f"{site}[{layer}]"
            strength = strength_in_words(declared.strength)
            what = f"{intervention_name(self.spec, i)}: {declared.kind} at {place}, strength {strength}"
            print_line(self.console, "edit", f"{what}, on {positions_in_words(declared.positions)}")

    def _fitted(self, m: IntervenedModel) -> None:
        from subvene.runner.cli.fit import fits_in, print_fitted

        if self.spec.fit is None:
            return
        for provenance in fits_in(m.provenance):
            print_fitted(self.console, provenance)

    def _evaluated(self, results: Results) -> None:
        from rich.text import Text

        from subvene.runner.cli import _tables
        from subvene.runner.experiments.look.section import look_of

        forms = {"samples": _tables.print_samples, "contrast": _tables.print_contrast}
        for evaluation in look_of(results).evaluations:
            self.console.print()
            self.console.print(Text(_TITLES[evaluation.kind], style="bold underline"))
            forms[evaluation.kind](self.console, results, evaluation)

    def _reloaded(self, difference: float) -> None:
        agree = "logits agree exactly" if difference == 0 else f"max |Δ logit| = {difference:.2g}"
        self.console.print(f"reloaded in a fresh process: {agree}")
