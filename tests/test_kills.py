"""A short form of `make test-kill`: a persona run with a judge, killed in its first seconds and once more."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

import kills


def test_a_run_that_is_killed_twice_ends_as_if_it_had_not_been() -> None:
    with kills.runs(["persona"]) as experiments:
        found = experiments.kill("persona", 0, Random(4), times=2)
        assert found.right, found
        assert found.signals
