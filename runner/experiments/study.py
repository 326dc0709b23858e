"""A study: an experiment that is done in units which are recorded, and so can be stopped and taken up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, Required, TypedDict

import transformers

from subvene.interventions import Sizes
from subvene.runner.experiments.results import Results
from subvene.runner.files.ledger import Ledger
from subvene.runner.models.identity import Manifest
from subvene.specs import ExperimentSpec

Step = Callable[[str, Any], None]
"""Called as things are done: ("power", lines on what so many draws and questions can find), ("planned",
number of units), ("unit", what, and whether it was done before),
("lost", a unit whose process ended and that is done again, and why), ("finished", results)."""


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
    here: ClassVar[str | None]
    """Why its units cannot be done by other processes; None: they can."""

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
