"""The heat map of probes: what is drawn is what was given."""

from __future__ import annotations

import json

import pytest

from subvene.runner.reports.figures import probe_heat_map

ACCURACIES = [[0.5, 0.6, 0.7], [0.8, 0.55, 0.65]]


def test_every_head_stands_in_its_place() -> None:
    figure = probe_heat_map(ACCURACIES, {"1": [0, 2], "0": [1]}, "probes", chance=0.52)
    heat, chosen = figure.data
    assert [list(row) for row in heat.z] == ACCURACIES
    assert heat.zmin == 0.52
    assert sorted(zip(chosen.y, chosen.x, strict=True)) == [(0, 1), (1, 0), (1, 2)]
    assert figure.layout.title.text == "probes"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("head", "layer")
    assert "https://" not in json.dumps(figure.to_plotly_json()["data"], default=str)


@pytest.mark.parametrize("chosen", [None, {}])
def test_nothing_chosen(chosen: dict[int, list[int]] | None) -> None:
    (heat,) = probe_heat_map(ACCURACIES, chosen).data
    assert heat.zmin is None


def test_what_is_no_matrix_or_not_in_it() -> None:
    with pytest.raises(ValueError, match="as many heads in every layer"):
        probe_heat_map([[0.5], [0.5, 0.6]])
    for chosen in ({2: [0]}, {"0": [3]}, {-1: [0]}):
        with pytest.raises(ValueError, match="not among 2 layers of 3 heads"):
            probe_heat_map(ACCURACIES, chosen)
