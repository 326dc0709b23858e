"""A short form of `make test-kill`: a persona run with a judge, killed twice."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from random import Random

from forked import Forked

from subvene.runner.cli.app import main
from subvene.runner.intervened.model import IntervenedModel

sys.path.insert(0, str(Path(__file__).parent))

import kills

IMPORTED = IntervenedModel  # and with it what a run imports, which a copy of this process need not


class Forks(kills.Runs):
    """Runs that begin with what is imported here: every kill is of a run at work, and none of its imports."""

    def started(self, arguments: list[str], environment: dict[str, str]) -> Forked:
        def command() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(environment)
            os.chdir(self.folder)
            sys.argv = ["subvene", *arguments]
            main()

        return Forked(command)


def test_a_run_that_is_killed_twice_ends_as_if_it_had_not_been() -> None:
    with kills.runs(["persona"], Forks) as experiments:
        found = experiments.kill("persona", 0, Random(4), times=2)
        assert found.right, found
        assert found.signals
