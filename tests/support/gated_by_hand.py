"""Gates by hand: one row alone, unpadded and uncached, its tokens edited as far as a function says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from oracle import LAYERS, MIDDLE, NEW, WIDTH, batch, blocks, intervened, selected, vector
from torch import nn

from subvene.runner.intervened.model import IntervenedModel

READ = 0
"""The block whose output gates read, unless they say otherwise."""
Opening = Callable[[torch.Tensor, int], float]
"""Of the activations [tokens, width] that a gate reads of one row, and a token: how far it is open there."""


def condition(seed: int = 9) -> torch.Tensor:
    """What gates measure with."""
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def projected(h: torch.Tensor, seed: int = 9) -> torch.Tensor:
    c = condition(seed)
    return (h @ c) / c.norm()


def gate(**fields: Any) -> dict[str, Any]:
    """A gate on the projection on `condition()`."""
    return {"measure": "projection", "vector": {"key": "c"}, "layer": READ} | fields


def conditions() -> dict[str, torch.Tensor]:
    """`condition()` and another one, under `c` and `d` at every block."""
    return {
        f"{key}.block_output[{layer}]": condition(seed)
        for key, seed in (("c", 9), ("d", 10))
        for layer in range(LAYERS)
    }


def gated(model: nn.Module, *entries: dict[str, Any]) -> IntervenedModel:
    return intervened(model, *entries, tensors=conditions())


@torch.no_grad()
def logits_by_hand(
    model: nn.Module,
    row: Sequence[int],
    prompt: int,
    rule: Any,
    opening: Opening,
    *,
    read: int = READ,
    layer: int = MIDDLE,
) -> torch.Tensor:
    """[tokens, vocab] of a row whose tokens have `vector()` added, times how far the gate is open."""
    seen: list[torch.Tensor] = []

    def reads(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    def edits(_module: nn.Module, _args: Any, output: Any) -> Any:
        h = (output[0] if isinstance(output, tuple) else output).clone()
        for token in selected(rule, prompt, len(row)):
            h[0, token] += opening(seen[-1], token) * vector()
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handles = [blocks(model)[read].register_forward_hook(reads)]
    handles.append(blocks(model)[layer].register_forward_hook(edits))
    try:
        return model(torch.tensor([list(row)]), use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def generated(m: IntervenedModel, prompts: Sequence[Sequence[int]], **settings: Any) -> Any:
    """Each row with its greedy response, and log-probabilities [row, new, vocab] of the steps."""
    ids, mask = batch(prompts, "left")
    settings = {"max_new_tokens": NEW, "do_sample": False} | settings
    output = m.generate_ids(ids, mask, output_logits=True, return_dict_in_generate=True, **settings)
    rows = [
        [*prompt, *response]
        for prompt, response in zip(prompts, output.sequences[:, ids.shape[1] :].tolist(), strict=True)
    ]
    return rows, torch.stack(output.logits, 1).log_softmax(-1)


def scored(
    m: IntervenedModel,
    rows: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    side: str,
    **more: Any,
) -> list[torch.Tensor]:
    """Of each row the log-probabilities [tokens, vocab] of a teacher-forced pass over the batch."""
    ids, mask = batch(rows, side)
    with torch.no_grad():
        lengths = [len(prompt) for prompt in prompts]
        logits = m(ids, mask, prompt_lengths=lengths, **more).logits.log_softmax(-1)
    return [logits[i][mask[i].bool()] for i in range(len(rows))]
