"""What a fitted judge states of itself: each answer as judged by trees that do not know its question.

`accuracy` is small and goes into every run's results; `report` is what `judge.json` holds besides: by length
and category, calibration, what became of answers made by rule, and of models that say one thing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from subvene.runner.files.json_value import Json
from subvene.runner.judges.base import Answer, Aspect
from subvene.runner.judges.scales.yes_no import Judgement
from subvene.runner.judges.training.agreement import Agreement, agreement

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Words of an answer, from and below; the last has no end.
LENGTHS = ((0, 4), (4, 11), (11, 21), (21, None))
_LEAST = 30


@dataclass(frozen=True)
class Judged:
    """Labelled answers and their cross-validated probabilities.

    Attributes:
        answers: the distinct ones.
        place: of each row among them.
        label: of each row.
        p: of each distinct answer, as judged with references.
        alone: the same as judged without any.
        first: which distinct answers lie in the part that is kept out of what ships.
        generated: which are none of their question's references; None where there are no references.
        category: of each distinct answer's question; empty where none is known.
    """

    answers: Sequence[Answer]
    place: NDArray[np.int64]
    label: NDArray[np.bool_]
    p: NDArray[np.float64]
    alone: NDArray[np.float64]
    first: NDArray[np.bool_]
    generated: NDArray[np.bool_] | None
    category: Sequence[str]

    def of(self, rows: NDArray[np.bool_], p: NDArray[np.float64] | None = None) -> dict[str, Json]:
        """The agreement over some rows, without bins."""
        found = asdict(self.agreement(rows, p))
        return {name: value for name, value in found.items() if name not in ("unjudged", "bins")}

    def agreement(self, rows: NDArray[np.bool_], p: NDArray[np.float64] | None = None) -> Agreement:
        """The agreement over some rows."""
        judged = (self.p if p is None else p)[self.place[rows]]
        return agreement(self.label[rows].tolist(), [Judgement(float(x), bool(x >= 0.5)) for x in judged])

    @property
    def own(self) -> NDArray[np.bool_]:
        """Rows whose answer is a model's own."""
        everything = np.ones(len(self.place), dtype=bool)
        return everything if self.generated is None else self.generated[self.place]

    @property
    def distinct(self) -> NDArray[np.bool_]:
        """A row of each distinct answer, without those that people labelled both ways."""
        yes = np.bincount(self.place, self.label, minlength=len(self.answers))
        total = np.bincount(self.place, minlength=len(self.answers))
        agreed = (yes == 0) | (yes == total)
        kept = np.zeros(len(self.place), dtype=bool)
        kept[np.unique(self.place, return_index=True)[1]] = True
        return kept & agreed[self.place]


def stated_accuracy(judged: Judged, parts: int) -> dict[str, Json]:
    """What results tables say of a quality."""
    everything = np.ones(len(judged.place), dtype=bool)
    of_which = {"held_out_of_what_ships": judged.of(judged.first[judged.place])}
    stated: dict[str, Json] = {
        **judged.of(everything),
        "how": f"{parts}-fold cross-validation by question",
        "of_which": of_which,
    }
    if judged.generated is not None:
        of_which["no_reference_answer"] = judged.of(judged.own)
        of_which["reference_answer"] = judged.of(~judged.own)
        stated["without_references"] = {
            **judged.of(everything, judged.alone),
            "no_reference_answer": judged.of(judged.own, judged.alone),
        }
    return stated


def reported(judged: Judged) -> dict[str, Json]:
    """The rest: of models' own answers, distinct ones, by length, by category, and the calibration."""
    rows = judged.own & judged.distinct
    words = np.array([len(judged.answers[i].answer.split()) for i in judged.place])
    contradictory = len(judged.answers) - int(judged.distinct.sum())
    unknown = set(range(len(judged.answers))) - set(judged.place.tolist())
    found: dict[str, Json] = {
        "distinct": judged.of(judged.distinct),
        "labelled_both_ways": contradictory - len(unknown),
        "models_answers_distinct": judged.of(rows),
        "more_than_ten_words": judged.of(rows & (words > 10)),
        "more_than_ten_words_all_rows": judged.of(judged.own & (words > 10)),
        "by_words": {
            f"{low}-{'' if high is None else high - 1}": judged.of(chosen)
            for low, high in LENGTHS
            if (chosen := rows & (words >= low) & (words < (high or np.inf))).any()
        },
        "calibration": [asdict(one) for one in judged.agreement(rows).bins],
    }
    category = np.array([judged.category[i] for i in judged.place])
    found["by_category"] = {
        name: judged.of(chosen)
        for name in sorted(set(category.tolist()) - {""})
        if (chosen := rows & (category == name)).sum() >= _LEAST
    }
    return found


def says_yes(p: NDArray[np.float64], kind: NDArray[np.str_]) -> dict[str, dict[str, float | int]]:
    """Of answers made by rule: by rule how many, and the share to which the judge says yes."""
    return {
        name: {"n": int((kind == name).sum()), "judged_yes_rate": float((p[kind == name] >= 0.5).mean())}
        for name in sorted(set(kind.tolist()) - {""})
    }


def null_rates(
    judge: Callable[[Sequence[Answer]], Mapping[Aspect, NDArray[np.float64]]],
    nulls: Mapping[str, Sequence[Answer]],
) -> dict[str, dict[str, float]]:
    """By null the share of yes to each quality, and to both together."""
    rates: dict[str, dict[str, float]] = {}
    for name, answers in nulls.items():
        yes = {aspect: p >= 0.5 for aspect, p in judge(answers).items()}
        rates[name] = {"n": len(answers)} | {aspect: float(said.mean()) for aspect, said in yes.items()}
        if len(yes) > 1:
            rates[name]["both"] = float(np.logical_and.reduce(list(yes.values())).mean())
    return rates
