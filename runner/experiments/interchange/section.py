"""What a run of interchanges knows beyond its conditions: every cell of the grid with its controls."""

from __future__ import annotations

from typing import Literal

from subvene.runner.experiments.results import Record, Results
from subvene.runner.experiments.tracing.section import Interval
from subvene.runner.measures.interchange import Arm, CellMeasured

SECTION = "interchange"
Control = Literal["whole", "random", "shuffled"]


class Cell(Record):
    """A layer and a place.

    Attributes:
        measured: of each held-out row.
        iia: by arm, the mean over held-out rows with its interval.
        probe: a linear probe's accuracy on held-out states.
        over: by control, the trained subspace's accuracy minus that of the control, paired by row.
    """

    measured: CellMeasured
    iia: dict[Arm, Interval]
    probe: Interval
    over: dict[Control, Interval]

    @property
    def layer(self) -> int:
        """0-based."""
        return self.measured.layer

    @property
    def place(self) -> str:
        """Of the grid."""
        return self.measured.place

    @property
    def exceeds_whole(self) -> bool:
        """Whether the subspace does what swapping the whole vector does not: its whole interval is above."""
        return self._exceeds("whole")

    @property
    def exceeds_shuffled(self) -> bool:
        """Whether what its source says counts there: its whole interval is above that of other sources."""
        return self._exceeds("shuffled")

    def _exceeds(self, control: Control) -> bool:
        low = self.over[control].low
        return low is not None and low > 0


class Grid(Record):
    """One entry of `evaluate:`.

    Attributes:
        name: its kind, and a number from the second on.
        key: of the fit.
        class_name: the class of pyvene's.
        rank: how many dimensions are swapped; None for a class that learns it.
        site: where.
        layers: in ascending order.
        places: in the file's order.
        among: the tokens among which the label must be the likeliest.
        answers: the answers of the data, as text.
        rows: the keys of the held-out rows.
        trained_on: how many rows.
        straddling: rows with values of both sides, which are in neither.
        not_known: rows that the model itself goes on with otherwise than the data say.
        untouched: how often the label is the likeliest where nothing is put in.
        cells: by layer, then by place.
        note: why passes are whole; None where they begin at their layer.
    """

    name: str
    key: str
    class_name: str
    rank: int | None = None
    site: str
    layers: tuple[int, ...]
    places: tuple[str, ...]
    among: str
    answers: tuple[str, ...]
    rows: tuple[str, ...]
    trained_on: int
    straddling: int
    not_known: int
    untouched: Interval
    cells: tuple[Cell, ...]
    note: str | None = None

    def cell(self, layer: int, place: str) -> Cell:
        """The cell there."""
        return next(cell for cell in self.cells if (cell.layer, cell.place) == (layer, place))

    def best(self, place: str) -> Cell:
        """The cell of a place that is best on the rows that were trained on; the lowest of equals."""
        own = [cell for cell in self.cells if cell.place == place]
        return max(own, key=lambda cell: (cell.measured.train, -cell.layer))


class InterchangeSection(Record):
    """What a run of interchanges found.

    Attributes:
        grids: one an entry of `evaluate:`.
    """

    grids: tuple[Grid, ...] = ()


def interchange_of(results: Results) -> InterchangeSection:
    """The section of such a run's results; an empty one where there is none.

    Raises:
        ResultsError: it is not of that type.
    """
    return results.section(SECTION, InterchangeSection) or InterchangeSection()
