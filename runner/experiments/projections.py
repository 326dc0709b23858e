"""Projections of responses, as the untouched model reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch

from subvene.runner.data.span import Text
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.monitor.projection import SITE, Axes, project
from subvene.runner.passes.elsewhere import Read


class Projections(TypedDict):
    """What a unit of projections gives, JSON values: one of each text, None where its span is empty."""

    values: list[float | None]


def mean_projections(
    plain: IntervenedModel,
    texts: Sequence[Text],
    vector: torch.Tensor,
    layer: int,
    *,
    description: str,
    read: Read | None = None,
) -> list[float | None]:
    """⟨mean of block_output[layer] over the span, v⟩/‖v‖ of each text; None where its span is empty.

    Args:
        plain: the untouched model.
        texts: token ids with the span that is read.
        vector: v, [width].
        layer: 0-based.
        description: what the progress bar says.
        read: what reads the texts instead of the model here.
    """
    if read is not None:
        filled = [i for i, text in enumerate(texts) if text.end > text.start]
        means = read(SITE, [layer], [texts[i] for i in filled]).vectors[layer] if filled else vector[:0]
        along = Axes(plain.model, {"v": {layer: vector}}).values(layer, means) if filled else means
        by_text = dict(zip(filled, along.flatten().tolist(), strict=True))
        return [by_text.get(i) for i in range(len(texts))]
    found = project(plain, texts, {"v": {layer: vector}}, description=description)
    return [None if value != value else value for value in found.before["v"][layer].tolist()]
