"""A vector at several layers and coefficients: what is written and what is preferred at each, in few batches.

Every point is a row of its own in a batch that all points share, so that a sweep costs little more than its
tokens. Nothing is judged and nothing is kept here; a study with judges, seeds and intervals is `subvene run`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from subvene.runner.data.text import Messages, prompt_ids, reply_ids
from subvene.runner.edits.finite_points import over_finite_points
from subvene.runner.intervened.loaded import LoadedModel
from subvene.runner.intervened.rollouts import Row, rollouts
from subvene.runner.intervened.scoring import log_probs
from subvene.specs import InterventionSpec, ModelSpec, SteeringSpec, SubveneError

if TYPE_CHECKING:
    import pandas as pd

_Model = TypeVar("_Model", bound=LoadedModel)

Point = tuple[int, float]
UNEDITED: Point = (-1, 0.0)
"""The model without an edit, which is the same at every layer."""

Contrast = tuple[str | Messages, str, str]
"""A prompt, an answer that shows what the vector is for, and one that does not."""


@dataclass(frozen=True)
class SweptCell:
    """One layer and coefficient.

    Attributes:
        layer: 0-based.
        coefficient: 0 is the untouched model.
        answers: to the prompts, in their order; empty where the model is not finite.
        preference: mean over contrasts of log p(positive) − log p(negative), nats; None without contrasts.
        not_finite: why there are no numbers, in words; None where there are.
    """

    layer: int
    coefficient: float
    answers: tuple[str, ...]
    preference: float | None
    not_finite: str | None


@dataclass(frozen=True)
class LayerSweep(Generic[_Model]):
    """What a sweep gave.

    Attributes:
        swept: the model whose vector was swept.
        prompts: that were answered.
        cells: by layer, then by coefficient.
    """

    swept: _Model
    prompts: tuple[str | Messages, ...]
    cells: tuple[SweptCell, ...]

    def __getitem__(self, point: Point) -> SweptCell:
        """The cell of a layer and a coefficient."""
        for cell in self.cells:
            if (cell.layer, cell.coefficient) == point:
                return cell
        raise KeyError(point)

    def to_pandas(self) -> pd.DataFrame:
        """A row for each layer, coefficient and prompt."""
        import pandas as pd

        rows = [
            {
                "layer": cell.layer,
                "coefficient": cell.coefficient,
                "prompt": prompt,
                "answer": cell.answers[i] if cell.answers else None,
                "preference": cell.preference,
                "not_finite": cell.not_finite,
            }
            for cell in self.cells
            for i, prompt in enumerate(self.prompts)
        ]
        return pd.DataFrame(rows)

    def choose(self) -> SweptCell:
        """The cell with the highest preference; of equals the smallest change.

        Raises:
            SubveneError: nothing was preferred: no `contrasts` were given, or no cell is finite.
        """
        able = [cell for cell in self.cells if cell.preference is not None]
        if not able:
            raise SubveneError(
                "sweep: nothing to choose by; pass contrasts=[(prompt, positive, negative), …]"
            )
        return max(able, key=lambda cell: (cell.preference, -abs(cell.coefficient)))

    def at(self, layer: int, coefficient: float) -> _Model:
        """The model with its vector at a layer and a coefficient of the sweep, to be used or saved."""
        cell, m = self[layer, coefficient], self.swept
        entry = steering_of(m).model_copy(update={"layer": cell.layer, "coefficient": cell.coefficient})
        spec = m.spec.model_copy(update={"interventions": (entry,)})
        return type(m).from_spec(
            spec, model=m.model, tokenizer=m.tokenizer, tensors=m.tensors, provenance=m.provenance
        )

    def _repr_html_(self) -> str:
        """A heat map: layers by coefficients, coloured by preference, the first answer in each cell."""
        coefficients = list(dict.fromkeys(cell.coefficient for cell in self.cells))
        layers = list(dict.fromkeys(cell.layer for cell in self.cells))
        values = [cell.preference for cell in self.cells if cell.preference is not None]
        head = "".join(f"<th>{coefficient:g}</th>" for coefficient in coefficients)
        body = "".join(
            f"<tr><th>{layer}</th>{''.join(_html(self[layer, c], values) for c in coefficients)}</tr>"
            for layer in layers
        )
        return f"<table><tr><th>layer \\ coefficient</th>{head}</tr>{body}</table>"


def _html(cell: SweptCell, values: Sequence[float]) -> str:
    if cell.not_finite is not None:
        return f"<td title='{escape(cell.not_finite, quote=True)}'>not finite</td>"
    words, colour = escape(cell.answers[0]) if cell.answers else "", ""
    if cell.preference is not None:
        part = (cell.preference - min(values)) / (max(values) - min(values) or 1.0)
        colour = f" style='background:rgba(49,130,189,{0.6 * part:.2f})'"
        words = f"<b>{cell.preference:+.2f}</b> {words}"
    return f"<td{colour}>{words}</td>"


def panel(
    steering: SteeringSpec,
    layers: Sequence[int],
    tensors: Mapping[str, torch.Tensor],
    plain: _Model,
) -> _Model:
    """A model with one steering intervention per layer, all off; a row turns on the one that it needs."""
    entries = [
        steering.model_copy(update={"name": layer_name(layer), "layer": layer, "coefficient": 0.0})
        for layer in layers
    ]
    spec = InterventionSpec(subvene=1, model=ModelSpec(name="swept"), interventions=tuple(entries))
    return type(plain).from_spec(spec, model=plain.model, tokenizer=plain.tokenizer, tensors=tensors)


def layer_name(layer: int) -> str:
    """What the intervention at a layer is called."""
    return f"layer_{layer}"


def strengths_at(point: Point) -> dict[str, float]:
    """The strengths of a row: one layer's coefficient, everything else off."""
    layer, coefficient = point
    return {layer_name(layer): coefficient} if coefficient else {}


def steering_of(m: LoadedModel) -> SteeringSpec:
    """The one steering intervention of a model.

    Raises:
        SubveneError: it has another, or several.
    """
    entries = m.spec.interventions
    if len(entries) == 1 and isinstance(entries[0], SteeringSpec):
        return entries[0]
    kinds = ", ".join(entry.kind for entry in entries) or "none"
    raise SubveneError(f"sweep: expected one intervention of kind steering, found {kinds}")


def sweep(
    m: _Model,
    prompts: Sequence[str | Messages],
    *,
    layers: Sequence[int],
    coefficients: Sequence[float],
    contrasts: Sequence[Contrast] = (),
    max_new_tokens: int = 32,
    batch_size: int = 32,
) -> LayerSweep[_Model]:
    """Answer prompts, and score contrasts, at every layer and coefficient; see `IntervenedModel.sweep`."""
    steering = steering_of(m)
    layers, coefficients = list(layers), list(coefficients)
    _check_asked(prompts, layers, coefficients, contrasts)
    layers = [int(layer) for layer in dict.fromkeys(layers)]
    _check_layers(m, steering, layers)
    coefficients = sorted({float(c) for c in coefficients})
    points = [(layer, c) if c else UNEDITED for layer in layers for c in coefficients]
    points = list(dict.fromkeys(points))
    edited = panel(steering, layers, m.tensors, m)
    answers, broken = _answers(edited, prompts, points, max_new_tokens, batch_size)
    scored = [point for point in points if point not in broken]
    preferences, overflown = _preferences(edited, contrasts, scored, batch_size)
    broken |= overflown
    cells = []
    for layer in layers:
        for c in coefficients:
            point = (layer, c) if c else UNEDITED
            why = broken.get(point)
            said = () if why is not None else tuple(answers.get(point, ()))
            preference = None if why is not None else preferences.get(point)
            cells.append(SweptCell(layer, c, said, preference, why))
    return LayerSweep(m, tuple(prompts), tuple(cells))


def _check_asked(
    prompts: Sequence[str | Messages],
    layers: Sequence[int],
    coefficients: Sequence[float],
    contrasts: Sequence[Contrast],
) -> None:
    """Refuse what would be swept as something else: a text by its letters, an answer as another's."""
    if isinstance(prompts, str) or not (prompts or contrasts):
        raise SubveneError(f"sweep: prompts: expected a non-empty list, or contrasts=, found {prompts!r}")
    if not layers or not all(isinstance(layer, numbers.Integral) for layer in layers):
        raise SubveneError(f"sweep: layers: expected a non-empty list of integers >= 0, found {layers!r}")
    if not coefficients or not all(
        isinstance(c, numbers.Real) and math.isfinite(float(c)) for c in coefficients
    ):
        raise SubveneError(
            f"sweep: coefficients: expected a non-empty list of finite numbers, found {coefficients!r}"
        )
    for i, one in enumerate(contrasts):
        if isinstance(one, str) or len(one) != 3 or not all(isinstance(side, str) for side in one[1:]):
            raise SubveneError(
                f"sweep: contrasts[{i}]: expected (prompt, positive answer, negative answer), found {one!r}"
            )


def _check_layers(m: LoadedModel, steering: SteeringSpec, layers: Sequence[int]) -> None:
    key, site = steering.vector.key, steering.site
    there = [layer for layer in range(m.model.config.get_text_config().num_hidden_layers)
             if f"{key}.{site}[{layer}]" in m.tensors]  # fmt: skip
    if lacking := [layer for layer in layers if layer not in there]:
        raise SubveneError(
            f"sweep: layers: {key} has no vector of {site} at {', '.join(map(str, lacking))}; it has: "
            f"{', '.join(map(str, there)) or 'none (fit it, or pass tensors=)'}"
        )


def _answers(
    edited: LoadedModel,
    prompts: Sequence[str | Messages],
    points: Sequence[Point],
    max_new_tokens: int,
    batch_size: int,
) -> tuple[dict[Point, list[str]], dict[Point, str]]:
    """The likeliest answers by point, and the points that are not finite."""
    of_rows = [point for point in points for _ in prompts]
    rows = [
        Row(
            tuple(prompt_ids(edited.tokenizer, prompt)),
            strengths=strengths_at(point),
            temperature=0.0,
            max_new_tokens=max_new_tokens,
        )
        for point in points
        for prompt in prompts
    ]

    def run(which: list[int]) -> list[str]:
        given = rollouts(edited, [rows[i] for i in which], batch_size=batch_size, description="sweep")[0]
        return [rollout.text for rollout in given]

    kept, texts, broken = over_finite_points(of_rows, run)
    answers: dict[Point, list[str]] = {}
    for i, text in zip(kept, texts or (), strict=True):
        answers.setdefault(of_rows[i], []).append(text)
    return answers, broken


def _preferences(
    edited: LoadedModel, contrasts: Sequence[Contrast], points: Sequence[Point], batch_size: int
) -> tuple[dict[Point, float], dict[Point, str]]:
    """Mean log-ratio of the contrasts' answers by point, and the points that are not finite."""
    pairs = []
    for prompt, *sides in contrasts:
        before = prompt_ids(edited.tokenizer, prompt)
        pairs += [reply_ids(edited.tokenizer, before, side) for side in sides]
    rows = [(point, pair) for point in points for pair in pairs]

    def run(which: list[int]) -> torch.Tensor:
        strengths = {
            entry.name: [strengths_at(rows[i][0]).get(entry.name, 0.0) for i in which]
            for entry in edited.intervenable.entries
        }
        return log_probs(edited, [rows[i][1] for i in which], strengths=strengths, batch_size=batch_size)[0]

    kept, totals, broken = over_finite_points([point for point, _ in rows], run)
    sums: dict[Point, float] = {}
    for i, total in zip(kept, [] if totals is None else totals.tolist(), strict=True):
        sign = 1 if i % 2 == 0 else -1
        sums[rows[i][0]] = sums.get(rows[i][0], 0.0) + sign * total / len(contrasts)
    return sums, broken
