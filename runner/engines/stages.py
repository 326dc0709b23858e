"""Which edits of a request an engine may do at once, and which have to see what others have done."""

from __future__ import annotations

from collections.abc import Sequence

from subvene.runner.engines.served import ServedIntervention


def stages(interventions: Sequence[ServedIntervention]) -> list[int]:
    """The stage of each intervention of a request, in the order in which they are to act.

    What is in one stage reads the activation as the stage finds it. So one that reads comes after all that
    was written before it at a site of its own; one that adds a constant may stand beside them.
    """
    found: list[int] = []
    for i, later in enumerate(interventions):
        stage = 0
        for earlier, theirs in zip(interventions[:i], found, strict=True):
            sites = {edit.site for edit in earlier.edits}
            for edit in later.edits:
                if edit.site in sites:
                    stage = max(stage, theirs + edit.reads)
        found.append(stage)
    return found
