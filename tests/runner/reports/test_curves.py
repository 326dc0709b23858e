"""The figures show the numbers of the results, and the chosen points among them."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest

from subvene.runner.experiments.results import Choice, Metric, Point, Results, Tried
from subvene.runner.experiments.rows import Row, rows
from subvene.runner.reports.curves import swept, trade_off, validation_grid

BASELINES = frozenset({"baseline"})


@pytest.fixture
def table(results: dict[str, Any]) -> list[Row]:
    return rows(Results.of(results).conditions)


@pytest.fixture
def choices(results: dict[str, Any]) -> tuple[Choice, ...]:
    return Results.of(results).choices


def choice(points: list[Point], chosen: Point | None) -> Choice:
    tried = tuple(Tried(point=point, value=0.5, n=3) for point in points)
    return Choice(condition="c", metric="mc2", tried=tried, chosen=chosen)


def test_trade_off_has_a_mark_for_every_row_and_the_baseline_as_a_line(table: list[Row]) -> None:
    made = trade_off(table, "true_info", BASELINES)
    assert made is not None
    drawn = {
        (text, x, y, dx, dy)
        for trace in made.data
        for text, x, y, dx, dy in zip(
            trace.text, trace.x, trace.y, trace.error_x.array, trace.error_y.array, strict=True
        )
    }
    assert drawn == {
        (row.label, *(getattr(row.metrics[m], part) for part in ("mean", "sd") for m in ("kl", "true_info")))
        for row in table
    }
    (line,) = made.layout.shapes
    assert line.y0 == line.y1 == table[0].metrics["true_info"].mean


def test_one_cell_has_no_bars(table: list[Row]) -> None:
    single = [
        replace(row, metrics={n: m.model_copy(update={"sd": None}) for n, m in row.metrics.items()})
        for row in table
    ]
    made = trade_off(single, "mc2", BASELINES)
    assert made is not None
    assert all(trace.error_y.array is None for trace in made.data)


def test_sweep_is_drawn_over_the_strength(table: list[Row]) -> None:
    found = swept(list(reversed(table)), "mc1", BASELINES)
    assert found is not None
    field, made = found
    (trace,) = made.data
    assert (field, trace.name, trace.x) == ("strength", "weaker", (2.0, 5.0, 10.0))
    assert list(trace.y) == [row.metrics["mc1"].mean for row in table if row.condition == "weaker"]


def test_a_sweep_of_two_fields_is_a_line_for_each_value_of_the_other() -> None:
    lines = [
        Row("s", f"s {k} {a}", {"fit.select.k": k, "iti.strength": a}, {"mc1": Metric(mean=k * a, n=1)})
        for k in (16, 48)
        for a in (1, 2)
    ]
    found = swept(lines, "mc1", BASELINES)
    assert found is not None
    assert [(t.name, t.x, t.y) for t in found[1].data] == [
        ("s k=16", (1, 2), (16, 32)),
        ("s k=48", (1, 2), (48, 96)),
    ]


def test_no_sweep_no_curve(table: list[Row]) -> None:
    assert swept([row for row in table if row.condition != "weaker"], "mc1", BASELINES) is None


def test_grid_of_two_fields_is_a_map_with_the_chosen_points_outlined(choices: tuple[Choice, ...]) -> None:
    made = validation_grid(choices)
    assert made is not None
    (heat,) = made.data
    assert (heat.x, heat.y) == (("2.0", "5.0", "10.0"), ("16", "48"))
    for i, k in enumerate((16, 48)):
        for j, strength in enumerate((2.0, 5.0, 10.0)):
            point = {"iti.strength": strength, "fit.select.k": k}
            tried = [one for choice in choices for one in choice.tried]
            values = [one.value for one in tried if one.point == point and one.value is not None]
            assert len(values) == 4
            assert heat.z[i][j] == statistics.fmean(values)
            times = sum(choice.chosen == point for choice in choices)
            outlined = any(s.x0 < j < s.x1 and s.y0 < i < s.y1 for s in made.layout.shapes)
            assert outlined == bool(times)
            assert (f"chosen {times} of 4" in heat.text[i][j]) == bool(times)


def test_grid_of_one_field_is_a_line_with_the_chosen_points_marked(choices: tuple[Choice, ...]) -> None:
    given = []
    for one, strength in zip(choices, (5.0, 10.0, 5.0), strict=False):
        tried = tuple(t for t in reversed(one.tried) if t.point["fit.select.k"] == 16)
        chosen: Point = {"fit.select.k": 16, "iti.strength": strength}
        given.append(one.model_copy(update={"tried": tried, "chosen": chosen}))
    made = validation_grid(given)
    assert made is not None
    line, marks = made.data
    assert line.x == (2.0, 5.0, 10.0)
    assert dict(zip(marks.x, marks.text, strict=True)) == {5.0: "2 of 3", 10.0: "1 of 3"}
    assert [line.y[line.x.index(x)] for x in marks.x] == list(marks.y)


def test_values_that_are_no_numbers_are_named() -> None:
    points: list[Point] = [{"iti.positions": value} for value in ("all", {"first": 3}, "all")]
    made = validation_grid([choice(points, points[0])])
    assert made is not None
    assert made.data[0].x == ("all", '{"first": 3}')


def test_grid_of_three_fields_is_no_figure() -> None:
    points: list[Point] = [{"a.x": i, "a.y": i, "a.z": i} for i in range(2)]
    assert validation_grid([choice(points, None)]) is None
