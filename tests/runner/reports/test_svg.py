"""Figures as SVG files: their numbers, words and intervals, always the same bytes, nothing left out."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import plotly.graph_objects as go
import pytest

from subvene.runner.experiments.results import Choice, Metric, Tried
from subvene.runner.experiments.rows import Row
from subvene.runner.reports.curves import figure, trade_off, validation_grid
from subvene.runner.reports.figures import layer_heat_map, probe_heat_map
from subvene.runner.reports.localization_figures import draws
from subvene.runner.reports.svg import svg
from subvene.runner.reports.svg_marks import FigureError

SVG = "{http://www.w3.org/2000/svg}"


def words(document: str) -> list[str]:
    """What is written in it, without its title."""
    root = ElementTree.fromstring(document)
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


def paths(document: str) -> int:
    return len(list(ElementTree.fromstring(document).iter(f"{SVG}path")))


def test_a_figure_gives_its_words_and_always_the_same_bytes() -> None:
    untouched = {"mc1": Metric(mean=0.3, n=2), "kl": Metric(mean=0.0, n=2)}
    edited = {"mc1": Metric(mean=-0.4, sd=0.1, n=2), "kl": Metric(mean=0.5, n=2)}
    rows = [Row("baseline", "baseline", {}, untouched), Row("<b>$a_1$", "日本 −2", {}, edited)]
    made = trade_off(rows, "mc1", {"baseline"})
    assert made is not None
    document = svg(made, "what <it> shows")
    written = words(document)
    assert {"KL(original ‖ edited), nats per token", "MC1", "<b>$a_1$", "baseline"} <= set(written)
    numbers = [word for word in written if re.fullmatch(r"[−\-]?[\d.]+", word)]
    assert any(number.startswith("−") for number in numbers)
    assert not any(number.startswith("-") for number in numbers)
    assert svg(made, "what <it> shows") == document
    assert "what &lt;it&gt; shows" in document
    assert not re.search(r"20\d\d-\d\d-\d\d", document)
    assert 'href="http' not in document


def test_intervals_are_drawn() -> None:
    plain = figure(go.Scatter(x=[0, 1], y=[1, 2], mode="markers"), x="x", y="y")
    bars = {"type": "data", "symmetric": False, "array": [0.5, None], "arrayminus": [0.25, None]}
    with_bars = figure(go.Scatter(x=[0, 1], y=[1, 2], mode="markers", error_y=bars), x="x", y="y")
    # For each of two points a bar; the caps are two marks in the definitions, used twice each.
    assert svg(with_bars, "x").count("LineCollection") == svg(plain, "x").count("LineCollection") + 1
    assert 'id="LineCollection_1"' in svg(with_bars, "x")


def test_every_cell_of_a_heat_map_is_drawn_and_what_is_missing_is_grey() -> None:
    made = layer_heat_map(
        [[0.0, 1.0], [None, -1.0]], [0, 7], ["before", "last"], of="effect", around_zero=True
    )
    document = svg(made, "x")
    assert document.count("fill: #eeeeee") == 1
    assert {"before", "last", "layer", "effect"} <= set(words(document))
    ringed = svg(probe_heat_map([[0.5, 0.75], [1.0, 0.6]], {"1": [0]}), "x")
    assert {"50%", "100%", "shifted", "head", "layer", "Probe accuracy on validation questions"} <= set(
        words(ringed)
    )


def test_a_grid_says_its_numbers_and_what_was_chosen() -> None:
    tried = tuple(
        Tried(point={"a.strength": s, "b.k": k}, value=0.125 * s, n=4) for s in (1, 5) for k in ("few", "all")
    )
    made = validation_grid([Choice(condition="c", metric="mc2", tried=tried, chosen=tried[3].point)])
    assert made is not None
    written = words(svg(made, "x"))
    assert {"0.125", "0.625", "few", "all", "strength", "k", "MC2"} <= set(written)
    assert "chosen 1 of 1" in written


def test_draws_have_bars_ticks_and_lines_through_both() -> None:
    made = draws([0.0, 0.2, 0.2, 0.3, 0.9], "mc2", "edit_random", {"baseline": 0.05}, [-0.1, 1.0], 0.95)
    assert made is not None
    written = words(svg(made, "x"))
    assert {"each draw", "prediction", "prediction interval, 95%", "untouched model", "count"} <= set(written)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (go.Figure(go.Pie(values=[1, 2])), "found pie"),
        (go.Figure(go.Scatter(x=[1], y=[1], marker={"symbol": "hourglass"})), "found hourglass"),
        (go.Figure(go.Scatter(x=[1], y=[1], fill="tozeroy")), "found tozeroy"),
        (go.Figure(go.Box(x=[1], name="a", orientation="v")), "boxes that lie"),
        (go.Figure(layout={"shapes": [{"type": "circle"}]}), "found a circle"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(made: go.Figure, said: str) -> None:
    with pytest.raises(FigureError, match=said):
        svg(made, "x")
