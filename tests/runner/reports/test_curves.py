"""The figures show the numbers of the results, and the chosen points among them."""

from __future__ import annotations

import statistics
from typing import Any

from subvene.runner.reports.curves import swept, trade_off, validation_grid

BASELINES = frozenset({"baseline"})


def test_trade_off_has_a_mark_for_every_row_and_the_baseline_as_a_line(results: dict[str, Any]) -> None:
    made = trade_off(results["rows"], "true_info", BASELINES)
    assert made is not None
    drawn = {
        (text, x, y, dx, dy)
        for trace in made.data
        for text, x, y, dx, dy in zip(
            trace.text, trace.x, trace.y, trace.error_x.array, trace.error_y.array, strict=True
        )
    }
    assert drawn == {
        (row["label"], *(row["metrics"][m][part] for part in ("mean", "sd") for m in ("kl", "true_info")))
        for row in results["rows"]
    }
    (line,) = made.layout.shapes
    assert line.y0 == line.y1 == results["rows"][0]["metrics"]["true_info"]["mean"]


def test_one_cell_has_no_bars(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        for summary in row["metrics"].values():
            summary["sd"] = None
    made = trade_off(results["rows"], "mc2", BASELINES)
    assert made is not None
    assert all(trace.error_y.array is None for trace in made.data)


def test_sweep_is_drawn_over_the_strength(results: dict[str, Any]) -> None:
    found = swept(list(reversed(results["rows"])), "mc1", BASELINES)
    assert found is not None
    field, made = found
    (trace,) = made.data
    assert (field, trace.name, trace.x) == ("strength", "weaker", (2.0, 5.0, 10.0))
    assert list(trace.y) == [
        r["metrics"]["mc1"]["mean"] for r in results["rows"] if r["condition"] == "weaker"
    ]


def test_a_sweep_of_two_fields_is_a_line_for_each_value_of_the_other() -> None:
    rows = [
        {
            "condition": "s",
            "label": f"s {k} {a}",
            "point": {"fit.select.k": k, "iti.strength": a},
            "metrics": {"mc1": {"mean": k * a, "sd": None, "n": 1}},
        }
        for k in (16, 48)
        for a in (1, 2)
    ]
    found = swept(rows, "mc1", BASELINES)
    assert found is not None
    assert [(t.name, t.x, t.y) for t in found[1].data] == [
        ("s k=16", (1, 2), (16, 32)),
        ("s k=48", (1, 2), (48, 96)),
    ]


def test_no_sweep_no_curve(results: dict[str, Any]) -> None:
    assert swept([r for r in results["rows"] if r["condition"] != "weaker"], "mc1", BASELINES) is None


def test_grid_of_two_fields_is_a_map_with_the_chosen_points_outlined(results: dict[str, Any]) -> None:
    made = validation_grid(results["grid"], results["chosen"])
    assert made is not None
    (heat,) = made.data
    assert (heat.x, heat.y) == (("2.0", "5.0", "10.0"), ("16", "48"))
    for i, k in enumerate((16, 48)):
        for j, strength in enumerate((2.0, 5.0, 10.0)):
            point = {"iti.strength": strength, "fit.select.k": k}
            values = [entry["metrics"]["mc2"] for entry in results["grid"] if entry["point"] == point]
            assert heat.z[i][j] == statistics.fmean(values)
            times = sum(entry["point"] == point for entry in results["chosen"])
            outlined = any(s.x0 < j < s.x1 and s.y0 < i < s.y1 for s in made.layout.shapes)
            assert outlined == bool(times)
            assert (f"chosen {times} of 4" in heat.text[i][j]) == bool(times)


def test_grid_of_one_field_is_a_line_with_the_chosen_points_marked(results: dict[str, Any]) -> None:
    grid = [entry for entry in results["grid"] if entry["point"]["fit.select.k"] == 16]
    chosen = [{"point": {"fit.select.k": 16, "iti.strength": a}} for a in (5.0, 10.0, 5.0)]
    made = validation_grid(list(reversed(grid)), chosen)
    assert made is not None
    line, marks = made.data
    assert line.x == (2.0, 5.0, 10.0)
    assert dict(zip(marks.x, marks.text, strict=True)) == {5.0: "2 of 3", 10.0: "1 of 3"}
    assert [line.y[line.x.index(x)] for x in marks.x] == list(marks.y)


def test_values_that_are_no_numbers_are_named(results: dict[str, Any]) -> None:
    grid = [
        {"point": {"iti.positions": value}, "metrics": {"mc2": 0.5}} for value in ("all", {"first": 3}, "all")
    ]
    made = validation_grid(grid, grid[:1])
    assert made is not None
    assert made.data[0].x == ("all", '{"first": 3}')


def test_grid_of_three_fields_is_no_figure() -> None:
    grid = [
        {"point": {"a.x": i, "a.y": i, "a.z": i}, "metrics": {"mc2": 0.5}, "questions": 3} for i in range(2)
    ]
    assert validation_grid(grid, []) is None
