"""What stands in for an edit that a format cannot express: the mean of what it added."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from subvene.interventions import ActivationIntervention, Tokens
from subvene.runner.exchange.exports.base import ExportError
from subvene.runner.exchange.exports.texts import CALIBRATION, Text, encoded
from subvene.runner.intervened.model import IntervenedModel

MEAN_SHIFT = "the mean of what it adds, over the tokens that it edits in six short texts"


@torch.no_grad()
def mean_shifts(m: IntervenedModel, texts: Sequence[Text] = CALIBRATION) -> dict[str, torch.Tensor]:
    """The mean of what every edit added, at the tokens that it edited, its strength included.

    Every other intervention of `m` acts meanwhile.

    Returns:
        By pyvene key, float64 [width of the site].

    Raises:
        ExportError: an edit acts on no token of these texts.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for key, edit in m.intervenable.interventions.items():
            stack.enter_context(_watched(edit, key, sums, counts))
        for ids, prompt_length in encoded(m, texts):
            m(ids, prompt_lengths=[prompt_length], must_act=False, use_cache=False)
    if idle := [key for key in m.intervenable.interventions if not counts.get(key)]:
        raise ExportError(
            f"an approximation is a mean over edited tokens, and {', '.join(idle)} edits no token of the "
            f"{len(texts)} texts that it is taken over"
        )
    return {key: sums[key] / counts[key] for key in sums}


@contextlib.contextmanager
def _watched(
    edit: ActivationIntervention, key: str, sums: dict[str, torch.Tensor], counts: dict[str, int]
) -> Iterator[None]:
    def see(_edit: Any, args: tuple[Any, ...], kwargs: dict[str, object], edited: torch.Tensor) -> None:
        chosen = cast(Tokens, kwargs["tokens"]).mask(edit.positions, edited.device)
        added = (edited.double() - args[0].double())[chosen].cpu()
        sums[key] = sums.get(key, 0) + added.sum(0)
        counts[key] = counts.get(key, 0) + len(added)

    handle = edit.register_forward_hook(see, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
