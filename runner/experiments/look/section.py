"""What only a look at coefficients knows: its evaluations, and whether what was saved reloads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import JsonValue

from subvene.runner.experiments.results import Condition, Item, Metric, Record, Results
from subvene.specs import SubveneError

SECTION = "look"
ARTIFACT = "artifact"
"""Where the edited model is kept, in the run's folder."""


class Evaluation(Record):
    """One entry of `evaluate:`.

    Attributes:
        kind: of the entry.
        name: what conditions call its numbers and its unit: the kind, and a number from the second of a kind
            on (`contrast_2`).
        coefficients: in the file's order.
        keys: of its prompts or pairs, in the file's order, as items have them.
        receipt: what the interventions did, all coefficients together, as they are one batch
            (`Receipt.to_dict`).
        tokens_edited: how many tokens of the scored texts were edited; None of samples.
    """

    kind: Literal["samples", "contrast"]
    name: str
    coefficients: tuple[float, ...]
    keys: tuple[str, ...]
    receipt: tuple[dict[str, JsonValue], ...] = ()
    tokens_edited: int | None = None

    @property
    def preferred(self) -> str:
        """What conditions call the share of pairs whose positive answer is the likelier one."""
        return f"{self.name}_preferred"


class LookSection(Record):
    """What a look at coefficients knows beyond its conditions.

    Attributes:
        evaluations: in the file's order.
        dtype: that the model ran in; None where it was not recorded.
        reload_difference: max |Δ logit| between this process and a fresh one that loaded the artifact; None
            where the logits were not finite, or no fresh process could load it.
        reload_failure: why no fresh process could load the artifact; None where one could.
    """

    evaluations: tuple[Evaluation, ...] = ()
    dtype: str | None = None
    reload_difference: float | None = None
    reload_failure: str | None = None


def look_of(results: Results) -> LookSection:
    """The section of a look's results; an empty one where there is none.

    Raises:
        ResultsError: it is not of that type.
    """
    return results.section(SECTION, LookSection) or LookSection()


def check_reloaded(results: Results) -> None:
    """Check that a fresh process could load what a look has saved; nothing of other studies.

    Raises:
        SubveneError: it could not.
    """
    if (failure := look_of(results).reload_failure) is not None:
        raise SubveneError(failure)


def coefficient_of(condition: Condition) -> float:
    """The coefficient that a condition has, the same for all of its interventions.

    Raises:
        ValueError: its point holds no number.
    """
    value = next(iter(condition.point.values()), None)
    if not isinstance(value, int | float):
        raise ValueError(f"{condition.label}: expected a coefficient, found {condition.point}")
    return float(value)


def coefficient_title(coefficient: float) -> str:
    """`+1.5`, `-1.5`, and `0 (baseline)` for the untouched model."""
    return f"{coefficient:+g}" if coefficient else "0 (baseline)"


def conditions_of(results: Results, evaluation: Evaluation) -> Iterator[Condition]:
    """The conditions of one evaluation, in the order of its coefficients."""
    by_coefficient = {coefficient_of(condition): condition for condition in results.conditions}
    for coefficient in evaluation.coefficients:
        yield by_coefficient[coefficient]


def item_of(condition: Condition, key: str) -> Item | None:
    """What a condition has of one prompt or pair; None where it has nothing."""
    return next((item for item in condition.items if item.key == key), None)


def standard_error(metric: Metric) -> float | None:
    """Of a mean over pairs; None for one pair."""
    return None if metric.sd is None else metric.sd / math.sqrt(metric.n)
