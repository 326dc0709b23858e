"""The tables and the page of interchanges: every cell beside its controls, as numbers and as heat maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import plotly.graph_objects as go

from subvene.runner.experiments.interchange.section import Cell, Grid, interchange_of
from subvene.runner.experiments.results import Results
from subvene.runner.experiments.tracing.section import Interval
from subvene.runner.files.csv_file import csv_text
from subvene.runner.measures.interchange import ARMS, Arm
from subvene.runner.reports.blocks import Document, Items, Table
from subvene.runner.reports.documents import document_files
from subvene.runner.reports.figures import layer_heat_map
from subvene.runner.reports.markup import Html, downloads, items, join, plot, shown, side_by_side
from subvene.runner.reports.page import count, page
from subvene.runner.reports.sections import declared, provenance

COLUMNS = (
    "tokens",
    "layer",
    "trained subspace [95 %]",
    "whole vector",
    "random subspace",
    "shuffled sources",
    "probe",
    "subspace minus whole [95 %]",
)
ARM_NAMES: dict[Arm, str] = {
    "das": "trained subspace",
    "whole": "whole vector",
    "random": "random subspace",
    "shuffled": "shuffled sources",
}
_ABOUT = (
    "Interchange intervention accuracy: the share of held-out rows in which the label is the likeliest "
    "answer with the source's state put into the base. Nothing that was held out was trained on, and no "
    "value of the columns that the data were split by is on both sides. Intervals are over held-out rows: "
    "Wilson's for accuracies, percentile bootstrap for differences, which are paired by row. Rows may "
    "share such values: the intervals are about other rows of the same values, not about other values."
)
_ABOUT_CONTROLS = (
    "Controls: the whole vector swapped at the same tokens; subspaces of the same rank (or with the same "
    "mask) in random directions, mean over draws; the trained subspace with the sources of other rows, "
    "whose labels are not asked for; a logistic regression's accuracy on held-out states of bases and "
    "sources there (in brackets: the share of the commonest answer), which reads and changes nothing."
)
_ABOUT_CHOICE = (
    "Of each place the layer that is best on the rows that were trained on, so that no held-out row chooses."
)
EXCEEDS = (
    "At the cells with a dagger (†) the trained subspace does what swapping the whole vector does not, "
    "though the whole vector has the subspace in it. Makelov et al. (2023, “Is This the Subspace You Are "
    "Looking for?”) show how such an illusion comes about: half of the direction tells the texts apart "
    "and has no effect further on, the other half has an effect and is the same in all texts (a dormant "
    "parallel pathway). Swapping along both halves lets the first drive the second, which never happens "
    "in the model's own runs; swapping the whole vector leaves the second as it was. So a high accuracy "
    "there is no evidence that the model keeps the variable in this subspace. It may also be that "
    "something else in the whole vector undoes the effect. These numbers do not tell the two apart."
)
UNSPECIFIC = (
    "Of the cells with a dagger, the sources of other rows do as well at {}, as far as intervals over these "
    "rows say: that the subspace is changed is what counts there, not what the source says."
)
NOT_EXCEEDS = (
    "At no cell does the trained subspace do more than swapping the whole vector, as far as intervals over "
    "these rows say."
)

Line = dict[str, str | float | int | None]


# Tables ---------------------------------------------------------------------------------------------------


def interchange_files(results: Results) -> dict[str, str]:
    """The tables by file name."""
    lines = [line for grid in interchange_of(results).grids for line in cell_lines(grid)]
    return document_files("results", document(results), results.kind) | {"cells.csv": csv_text(lines)}


def document(results: Results) -> Document:
    """Each place's best layer, then every cell, and what must be known to read them."""
    blocks: list[Table | Items] = []
    for grid in interchange_of(results).grids:
        blocks += [best_table(grid), Table.of(COLUMNS, table_lines(grid.cells), "every cell")]
    return [*blocks, Items(tuple(notes(results)))]


def best_table(grid: Grid) -> Table:
    """The best layer of every place of a grid."""
    return Table.of(COLUMNS, table_lines([grid.best(place) for place in grid.places]), title(grid))


def title(grid: Grid) -> str:
    """Of a table: what is swapped, and how many rows there are."""
    rank = "" if grid.rank is None else f", {count(grid.rank, 'dimension')}"
    return (
        f"{grid.name.replace('_', ' ')}: {grid.class_name}{rank} at {grid.site} "
        f"({count(len(grid.rows), 'held-out row')}, {grid.trained_on} trained on; with nothing put in "
        f"{grid.untouched.mean:.2f})"
    )


def table_lines(cells: tuple[Cell, ...] | list[Cell]) -> list[tuple[str, ...]]:
    """A line for each cell, as `COLUMNS` has it."""
    return [
        (
            cell.place,
            str(cell.layer),
            in_words(cell.iia["das"]) + (" †" if cell.exceeds_whole else ""),
            *(f"{cell.iia[arm].mean:.2f}" for arm in ARMS[1:]),
            f"{cell.probe.mean:.2f} ({cell.measured.probe_chance:.2f})",
            in_words(cell.over["whole"]),
        )
        for cell in cells
    ]


def in_words(value: Interval) -> str:
    """`0.96 [0.90, 0.99]`."""
    if value.low is None or value.high is None:
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def notes(results: Results) -> list[str]:
    """What must stand beside the tables."""
    grids = interchange_of(results).grids
    said = [_ABOUT, _ABOUT_CONTROLS, _ABOUT_CHOICE]
    said.append(EXCEEDS if any(cell.exceeds_whole for grid in grids for cell in grid.cells) else NOT_EXCEEDS)
    for grid in grids:
        among = "all tokens" if grid.among == "vocabulary" else ", ".join(map(repr, grid.answers))
        said.append(f"{grid.name}: the label must be the likeliest of {among}")
        if grid.not_known:
            said.append(
                f"{grid.name}: {count(grid.not_known, 'row')} left out, whose texts the model itself goes on "
                "with otherwise than the data say"
            )
        if grid.straddling:
            said.append(
                f"{grid.name}: {count(grid.straddling, 'row')} left out, which would have been on both sides"
            )
        if unspecific := [cell for cell in grid.cells if cell.exceeds_whole and not cell.exceeds_shuffled]:
            said.append(f"{grid.name}: {UNSPECIFIC.format(_where(unspecific))}")
        if same := [cell for cell in grid.cells if cell.measured.equal == 1]:
            said.append(f"{grid.name}: source and base have the same state in every row, at {_where(same)}")
        if grid.note is not None:
            said.append(f"{grid.name}: {grid.note}")
    return [*said, *results.notes]


def _where(cells: list[Cell]) -> str:
    return ", ".join(f"{cell.place} at layer {cell.layer}" for cell in cells)


def cell_lines(grid: Grid) -> Iterator[Line]:
    """One line a cell."""
    for cell in grid.cells:
        line: Line = {"evaluation": grid.name, "key": grid.key, "place": cell.place, "layer": cell.layer}
        values: dict[str, Interval] = {str(arm): value for arm, value in cell.iia.items()}
        values["probe"] = cell.probe
        values |= {f"das_minus_{name}": value for name, value in cell.over.items()}
        for name, value in values.items():
            line |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
        yield line | {
            "probe_chance": cell.measured.probe_chance,
            "train": cell.measured.train,
            "untouched": grid.untouched.mean,
            "equal": cell.measured.equal,
            "moved": cell.measured.moved,
            "exceeds_whole": int(cell.exceeds_whole),
            "rows": len(grid.rows),
        }


# The page -------------------------------------------------------------------------------------------------


def render(results: Results) -> Html:
    """The page as text, the same for the same results."""
    sections = [(heading, content) for heading, make in SECTIONS if (content := make(results)) is not None]
    model = (declared(results).get("model") or {}).get("name")
    parts = [f"{grid.key}: {count(len(grid.cells), 'cell')}" for grid in interchange_of(results).grids]
    return page(results, "Interchange", model=model, summary=join([" · ".join(parts)]), sections=sections)


def best_cells(results: Results) -> Html | None:
    """The best layer of every place beside its controls."""
    parts = [shown(best_table(grid)) for grid in interchange_of(results).grids]
    return join([*parts, items(*notes(results))])


def heat_maps(results: Results) -> Html | None:
    """Places by layers: a heat map for the trained subspace and one for each control."""
    parts: list[Html] = []
    for grid in interchange_of(results).grids:
        drawn = [plot(arm_map(grid, arm), f"{grid.key}: {ARM_NAMES[arm]}") for arm in ARMS]
        probe = _map(grid, lambda cell: cell.probe.mean, "accuracy")
        gap = _map(grid, lambda cell: cell.over["whole"].mean, "difference", around_zero=True)
        drawn += [
            plot(probe, f"{grid.key}: a linear probe's accuracy"),
            plot(gap, f"{grid.key}: trained subspace minus whole vector"),
        ]
        parts.append(side_by_side(*drawn))
    return join(parts)


def every_cell(results: Results) -> Html | None:
    """All cells of every grid."""
    return join(
        shown(Table.of(COLUMNS, table_lines(grid.cells), f"{grid.key}: every cell"))
        for grid in interchange_of(results).grids
    )


def arm_map(grid: Grid, arm: Arm) -> go.Figure:
    """The accuracy of one arm, places by layers."""
    return _map(grid, lambda cell: cell.iia[arm].mean, "IIA")


def _map(grid: Grid, value: Callable[[Cell], float], of: str, *, around_zero: bool = False) -> go.Figure:
    z = [[value(grid.cell(layer, place)) for layer in grid.layers] for place in grid.places]
    made = layer_heat_map(z, grid.layers, grid.places, of=of, around_zero=around_zero)
    if not around_zero:
        made.update_traces(zmin=0, zmax=1)
    return made


def _downloads(results: Results) -> Html | None:
    return downloads(interchange_files(results))


SECTIONS: tuple[tuple[str, Callable[[Results], Html | None]], ...] = (
    ("Best layer of each place", best_cells),
    ("Cells by layer", heat_maps),
    ("Every cell", every_cell),
    ("Provenance", provenance),
    ("Downloads", _downloads),
)
"""The sections in their order, each with its title; those that give None are left out."""
