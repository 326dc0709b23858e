"""What a run measured, for the card of what is pushed."""

from __future__ import annotations

import os
from pathlib import Path

from subvene.runner.artifacts import hub
from subvene.runner.experiments.results import FILE, Results
from subvene.runner.reports.publish import card_table


def measured_of(source: Path, results: Path | None = None) -> str | None:
    """The tables for the card of what is to be pushed; None where no run measured it.

    Args:
        source: an artifact's folder, or the output of `subvene run`.
        results: the `results.json` of a run; None: of the run that the artifact lies in.

    Raises:
        ResultsError: these are no results of `subvene run`.
        HubError: there is nothing that can be pushed.
    """
    folder, run = hub.located(source)
    if results is None:
        if run is None or not (run / FILE).is_file():
            return None
        results = run / FILE
    place = None if run is None else Path(os.path.abspath(folder)).relative_to(run).as_posix()
    return card_table(Results.load(results), place) or None
