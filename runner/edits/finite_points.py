"""Sweeps: a point that is no longer finite is marked and left out, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from pydantic import JsonValue

from subvene.runner.edits.not_finite import NotFiniteError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

P = TypeVar("P", bound=Hashable)
T = TypeVar("T")


def over_finite_points(
    points: Sequence[P], run: Callable[[list[int]], T]
) -> tuple[list[int], T | None, dict[P, str]]:
    """Run rows of several points together; what is not finite is run again without.

    Nothing of a run that failed is kept, so that every number is of a run that was finite as a whole.

    Args:
        points: the point of each row.
        run: runs these rows; its `NotFiniteError` names places in the list that it was given.

    Returns:
        The rows that stayed finite, what their run gave (None if there are none), and for every point that
        did not the words for it.

    Raises:
        NotFiniteError: the model is not finite without any edit either, so that there is nothing to sweep.
    """
    rows, marked = list(range(len(points))), dict[P, str]()
    while rows:
        try:
            return rows, run(rows), marked
        except NotFiniteError as error:
            if error.of_model or not error.rows:
                raise
            for place, words in sorted(error.rows.items()):
                marked.setdefault(points[rows[place]], words)
            rows = [row for row in rows if points[row] not in marked]
    return rows, None, marked


class SomeNotFinite(TypedDict, total=False):
    """Of a unit over several points: those that are not finite, each with the words for it at its end."""

    not_finite: list[list[JsonValue]]


class NotFinite(TypedDict):
    """What a unit gives instead of its numbers: why it has none, in words."""

    not_finite: str


def listed(marked: Mapping[tuple[Any, ...], str]) -> SomeNotFinite:
    """Points that are not finite, as JSON values; nothing where there are none."""
    return {"not_finite": [[*point, words] for point, words in marked.items()]} if marked else {}


def by_point(result: SomeNotFinite) -> dict[tuple[Any, ...], str]:
    """What `listed` made of the points, as it was."""
    return {(*point,): str(words) for *point, words in result.get("not_finite", [])}


def marking(is_point: bool, work: Callable[[], T]) -> Callable[[], T | NotFinite]:
    """A unit of work that is one point of a sweep: where it is no longer finite, that is its result.

    Args:
        is_point: whether it is; otherwise `work` is left as it is, and its error ends the run.
        work: does the unit; JSON values.

    Returns:
        As `work`, or giving `not_finite`, in words, and nothing else.
    """

    def marked() -> T | NotFinite:
        try:
            return work()
        except NotFiniteError as error:
            if error.of_model:
                raise
            return {"not_finite": str(error)}

    return marked if is_point else work


def is_marked(result: object) -> TypeIs[NotFinite]:
    """Whether a unit of `marking` gave no numbers."""
    return isinstance(result, dict) and isinstance(result.get("not_finite"), str)
