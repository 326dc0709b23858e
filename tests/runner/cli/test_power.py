"""`subvene power`, against experiments that are simulated."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from subvene.runner.cli.app import app
from subvene.runner.files.power import detectable_difference, smallest_p


@pytest.mark.parametrize(("n", "sd", "alpha", "power"), [(8, 20.0, 0.05, 0.8), (60, 0.5, 0.01, 0.9)])
def test_a_detectable_difference_is_found_as_often_as_it_says(
    n: int, sd: float, alpha: float, power: float
) -> None:
    gap = detectable_difference(n, sd, alpha=alpha, power=power)
    drawn = np.random.default_rng(1).normal(gap, sd, size=(20_000, n))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < alpha).mean() == pytest.approx(power, abs=0.01)


def test_the_best_of_all_draws_has_the_smallest_p() -> None:
    assert smallest_p(9) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="draws"):
        smallest_p(0)


def test_the_command_gives_both_and_corrects_for_rows() -> None:
    def said(*options: str) -> dict[str, list[dict[str, float]]]:
        done = CliRunner().invoke(app, ["power", "--json", "--draws", "19", "--questions", "163", *options])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    one, ten = said(), said("--rows", "10")
    assert one["draws"] == [{"draws": 19, "smallest_p": pytest.approx(0.05)}]
    expected = detectable_difference(163, 0.5, alpha=0.005)
    assert ten["questions"][0]["detectable_difference"] == pytest.approx(expected)
    assert one["questions"][0]["detectable_difference"] < expected
    plain = CliRunner().invoke(app, ["power", "--draws", "9"]).stdout
    assert "0.1000  (no set can reach 0.05)" in plain
    assert CliRunner().invoke(app, ["power", "--sd", "-1"]).exit_code == 2
