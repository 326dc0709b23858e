"""Numbers that are not finite: the error that says where and whose doing it is."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from subvene.specs import SubveneError

ADVICE = "lower the strength, or use a dtype of more range (float32, bfloat16)"
ADVICE_OF_MODEL = "check the weights, or use a dtype of more range (float32, bfloat16)"
_MOST_ROWS = 3


class NotFiniteError(SubveneError):
    """Activations, logits or what was computed from them are not finite, so that nothing can be read there.

    Attributes:
        rows: row of the call's batch → what became of it, in words; empty where no rows are told apart.
        of_model: whether the untouched model is not finite either, so that no edit is the cause.
    """

    def __init__(self, message: str, rows: Mapping[int, str] | None = None, *, of_model: bool = False):
        super().__init__(message)
        self.rows = dict(rows or {})
        self.of_model = of_model

    def of(self, rows: Sequence[int]) -> NotFiniteError:
        """The same error for a caller whose batch it was a part of.

        Args:
            rows: which row of the caller's each row of this batch is.
        """
        named = {rows[row]: words for row, words in self.rows.items()}
        return NotFiniteError(str(self), named, of_model=self.of_model)


@contextlib.contextmanager
def rows_named(rows: Sequence[int]) -> Iterator[None]:
    """Inside, a batch's `NotFiniteError` comes to name the caller's rows: `rows[i]` is that of row i."""
    try:
        yield
    except NotFiniteError as error:
        raise error.of(rows) from error


def check_finite(values: torch.Tensor, what: str, names: Collection[str] = ()) -> None:
    """Check numbers that were computed from a run.

    Args:
        values: the numbers, one a row.
        what: what they are, in words.
        names: the interventions that acted; none for a model without any.

    Raises:
        NotFiniteError: naming the rows and the interventions.
    """
    bad = (~torch.isfinite(values.reshape(len(values), -1)).all(1)).nonzero().flatten().tolist()
    if bad:
        acting = f"under {', '.join(map(repr, names))}" if names else "of the model without any edit"
        advice = ADVICE if names else ADVICE_OF_MODEL
        message = f"{what} {acting}: not finite in {rows_in_words(bad, len(values))}; {advice}"
        raise NotFiniteError(message, {row: f"{what}: not finite" for row in bad}, of_model=not names)


def rows_in_words(rows: Sequence[int], count: int) -> str:
    """`rows 3, 4 of 12`; of more than a few only the first."""
    if len(rows) == count:
        return "every row" if count > 1 else "its only row"
    some = ", ".join(map(str, rows[:_MOST_ROWS]))
    more = f" and {len(rows) - _MOST_ROWS} more" if len(rows) > _MOST_ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {some}{more} of {count}"
