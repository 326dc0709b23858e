"""What was measured of an arm, question by question and text by text, and what resampling these gives.

The bootstrap is the percentile bootstrap (Efron and Tibshirani 1993, chapter 13). All arms are resampled with
the same questions, so that differences of arms are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from subvene.runner.experiments.comparison.measures import Measured

BY_TEXT = ("ce", "kl")

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One arm's values.

    Attributes:
        questions: metric → a value for each test question, in an order that all arms share; NaN where a judge
            gave no verdict.
        texts: `ce` and `kl` of each text, with `tokens`; empty where none were read.
    """

    questions: Mapping[str, _Array]
    texts: Mapping[str, _Array]

    @classmethod
    def of(cls, measured: Sequence[Measured], keys: Sequence[str]) -> Sample:
        """The values of what was measured of an arm.

        Args:
            measured: on the same questions for every arm.
            keys: of the test questions.
        """
        by_question: dict[str, dict[str, float | bool | None]] = {key: {} for key in keys}
        texts: dict[str, _Array] = {}
        for found in measured:
            for key, marks in found.questions.items():
                by_question[key].update(marks.scores)
            texts |= {name: np.asarray(values, dtype=np.float64) for name, values in found.texts.items()}
        columns = {
            metric: np.array([_number(by_question[key].get(metric)) for key in keys])
            for metric in ("mc1", "mc2", "mc3", "true", "info")
        }
        columns = {metric: column for metric, column in columns.items() if not np.isnan(column).all()}
        return cls(columns, texts)

    def metrics(self) -> list[str]:
        """What can be resampled."""
        both = ["true_info", "true_and_info"] if {"true", "info"} <= set(self.questions) else []
        return [*self.questions, *both, *(name for name in BY_TEXT if name in self.texts)]

    def value(self, metric: str, index: NDArray[np.intp] | None = None) -> _Array:
        """The metric, on all questions or texts, or on those of every row of `index`; shape [] or [rows]."""
        if metric in BY_TEXT:
            weights, values = self.texts["tokens"] - (metric == "ce"), self.texts[metric]
            if index is not None:
                weights, values = weights[index], values[index]
            return np.asarray((weights * values).sum(-1) / weights.sum(-1))
        if metric == "true_info":
            return np.asarray(self.value("true", index) * self.value("info", index))
        if metric == "true_and_info":
            column = self.questions["true"] * self.questions["info"]
        else:
            column = self.questions[metric]
        return np.asarray(_mean(column if index is None else column[index]))


@dataclass(frozen=True)
class Resamples:
    """The questions and the texts of every bootstrap sample, [samples, n] each."""

    questions: NDArray[np.intp]
    texts: NDArray[np.intp]

    @classmethod
    def drawn(cls, count: int, questions: int, texts: int, seed: int) -> Resamples:
        """Samples with replacement, the same for the same seed."""
        rng = np.random.default_rng([seed, 3])
        return cls(
            rng.integers(0, max(questions, 1), (count, questions)),
            rng.integers(0, max(texts, 1), (count, texts)),
        )

    def of(self, sample: Sample, metric: str) -> _Array:
        """The metric in every bootstrap sample; shape [samples]."""
        return sample.value(metric, self.texts if metric in BY_TEXT else self.questions)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _mean(values: _Array) -> Any:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(-1) / known.sum(-1)
