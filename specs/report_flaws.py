"""What an experiment that reports to trackers must be like."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.trackers import not_installed


def report_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields trackers that are not there, and why there would be nothing to report."""
    for i, expected in not_installed(spec.trackers):
        place = ("report_to", i) if isinstance(spec.report_to, tuple) else ("report_to",)
        yield Flaw(place, expected, spec.trackers[i])
    if spec.trackers and not spec.evaluate and not any(recipe.trains for recipe in spec.fits):
        expected = "`evaluate:`, or a recipe that trains by steps: nothing here would be reported"
        yield Flaw(("report_to",), expected, None, found="neither")
