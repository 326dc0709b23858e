"""What persona vectors are made of: mean activations of responses, and how long activations are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from subvene.runner.data.span import Text
from subvene.runner.data.text import by_length, pad
from subvene.runner.files.progress import track
from subvene.runner.measures.responses import Response
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import forward_reading
from subvene.runner.passes.elsewhere import ReadElsewhere
from subvene.specs import PersonaSpec, Site

SITE: Site = "block_output"


def means_and_norms(
    spec: PersonaSpec, sides: Sequence[Response], anatomy: Anatomy, pad_id: int, description: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean activations [responses, layers, width], and the mean norm of response tokens by layer."""
    if isinstance(anatomy, ReadElsewhere):
        return _read_elsewhere(spec, sides, anatomy)
    layers = range(anatomy.sizes.n_layers)
    means = torch.zeros(len(sides), len(layers), anatomy.sizes.width)
    norms = torch.zeros(len(layers), dtype=torch.float64)
    rows = [[*side.prompt, *side.tokens] for side in sides]
    for chosen in track(by_length([len(row) for row in rows], spec.batch_size), description):
        batch = pad([rows[i] for i in chosen], [len(rows[i]) for i in chosen], pad_id, "right")
        shape = batch.input_ids.shape
        weights, answers = torch.zeros(shape), torch.zeros(shape)
        for row, i in enumerate(chosen):
            start, end = _span(spec.tokens, sides[i])
            weights[row, start:end] = 1.0 / (end - start)
            begin = len(sides[i].prompt) + sides[i].start
            answers[row, begin : len(rows[i])] = 1.0 / ((len(rows[i]) - begin) * len(sides))

        def read(
            layer: int,
            activation: torch.Tensor,
            chosen: Sequence[int] = chosen,
            weights: torch.Tensor = weights,
            answers: torch.Tensor = answers,
        ) -> None:
            h = activation.float().view(*weights.shape, -1)
            means[chosen, layer] = torch.einsum("bs,bsd->bd", weights.to(h.device), h).cpu()
            norms[layer] += (h.norm(dim=-1).cpu().double() * answers).sum()

        forward_reading(anatomy, SITE, list(layers), batch, read)
    return means, norms.float()


def _read_elsewhere(
    spec: PersonaSpec, sides: Sequence[Response], anatomy: ReadElsewhere
) -> tuple[torch.Tensor, torch.Tensor]:
    layers, answers = range(anatomy.sizes.n_layers), [side.span for side in sides]
    texts = [Text(text.ids, *_span(spec.tokens, side)) for side, text in zip(sides, answers, strict=True)]
    found = anatomy.read(SITE, layers, texts)
    norms = found.norms if texts == answers else anatomy.read(SITE, layers, answers).norms
    means = torch.stack([found.vectors[layer] for layer in layers], 1)
    return means, torch.stack([norms[layer].mean() for layer in layers]).float()


def _span(tokens: str, side: Response) -> tuple[int, int]:
    """Where the tokens whose activation is compared begin and end, in prompt and response together."""
    length = len(side.prompt)
    if tokens == "response_avg":
        return length + side.start, length + len(side.tokens)
    # The first token of a sequence is an attention sink, whose activation says nothing and drowns a mean.
    starts = {"prompt_avg": min(1, length - 1), "prompt_avg_all": 0, "prompt_last": length - 1}
    return starts[tokens], length
