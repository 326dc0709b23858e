"""Statistics of what is measured on turns: drift over a conversation, correlation with scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypedDict

from subvene.runner.data.transcripts import Transcript
from subvene.runner.data.turns import Turn
from subvene.runner.files.statistics import Correlations, correlation


class OfTurn(TypedDict):
    """The projections of one turn number."""

    turn: int
    n: int
    mean: float


class Drift(TypedDict):
    """How a projection moves over the turns of a conversation; see `drift`."""

    by_turn: list[OfTurn]
    slopes: dict[int, float]
    mean_slope: float | None
    standard_error: float | None
    conversations: int


class OfScores(Correlations):
    """The correlation of a projection with scores, and of what a point is one."""

    unit: Literal["turn", "row"]


def drift(values: Sequence[float], turns: Sequence[Turn]) -> Drift:
    """How a projection moves over the turns of a conversation.

    Args:
        values: one per turn; NaN (an empty turn) is left out.
        turns: the turns.

    Returns:
        `by_turn`: for each turn number its mean and in how many conversations there is one; `slopes`: the
        least-squares slope per turn of every conversation of two turns or more (transcript index → slope);
        `mean_slope`, and its `standard_error` over conversations: None where there are none, or only one.
    """
    from scipy import stats

    by_turn: dict[int, list[float]] = {}
    of_conversation: dict[int, list[tuple[int, float]]] = {}
    for value, turn in zip(values, turns, strict=True):
        if math.isfinite(value):
            by_turn.setdefault(turn.turn, []).append(value)
            of_conversation.setdefault(turn.transcript, []).append((turn.turn, value))
    slopes = {
        index: float(stats.linregress(*zip(*points, strict=True)).slope)
        for index, points in of_conversation.items()
        if len(points) > 1
    }
    found = list(slopes.values())
    return {
        "by_turn": [
            {"turn": turn, "n": len(some), "mean": math.fsum(some) / len(some)}
            for turn, some in sorted(by_turn.items())
        ],
        "slopes": slopes,
        "mean_slope": math.fsum(found) / len(found) if found else None,
        "standard_error": float(stats.sem(found)) if len(found) > 1 else None,
        "conversations": len(found),
    }


def against_scores(
    values: Sequence[float], turns: Sequence[Turn], transcripts: Sequence[Transcript]
) -> OfScores | None:
    """The correlation of a projection with the scores of a file; None if the file has none.

    Where messages have scores, a point is a turn that has one; else a point is a row that has one, with the
    mean projection of its turns.
    """
    if any(turn.score is not None for turn in turns):
        points = [(value, turn.score) for value, turn in zip(values, turns, strict=True)]
        return {"unit": "turn", **correlation(*_known(points))}
    if all(transcript.score is None for transcript in transcripts):
        return None
    rows: list[list[float]] = [[] for _ in transcripts]
    for value, turn in zip(values, turns, strict=True):
        if math.isfinite(value):
            rows[turn.transcript].append(value)
    means = [math.fsum(some) / len(some) if some else math.nan for some in rows]
    points = [(mean, transcript.score) for mean, transcript in zip(means, transcripts, strict=True)]
    return {"unit": "row", **correlation(*_known(points))}


def _known(points: Iterable[tuple[float, float | None]]) -> tuple[list[float], list[float]]:
    known = [(value, score) for value, score in points if score is not None and math.isfinite(value)]
    return [value for value, _ in known], [score for _, score in known]
