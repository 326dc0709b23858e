"""Reading activations at sites: batched by length, up to the last layer needed, without the LM head.

Reductions happen on the fly; what leaves here is one vector per text, or a running sum over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subvene.runner.anatomy import Anatomy
from subvene.runner.progress import track
from subvene.runner.text import Batch, pad


@dataclass(frozen=True)
class Text:
    """A tokenised text and the span of it that is read.

    Attributes:
        ids: token ids.
        start: first token of the span, 0-based.
        end: one past its last token.
    """

    ids: tuple[int, ...]
    start: int
    end: int


class _LastLayerRead(Exception):
    """Stops a forward pass whose remaining layers nobody needs."""


def weighted_sums(
    anatomy: Anatomy,
    site: str,
    layers: Sequence[int],
    texts: Sequence[Text],
    weights: Sequence[float],
    *,
    pad_id: int,
    batch_size: int,
    description: str = "reading activations",
) -> dict[int, torch.Tensor]:
    """Σ_i w_i · mean over the span of text i of the activation at `site`, for several layers from one pass.

    Args:
        anatomy: of the model to read.
        site: one of DESIGN's sites.
        layers: 0-based block indices.
        texts: what is read.
        weights: w, one per text.
        pad_id: any token id; padding is masked.
        batch_size: texts per forward pass.
        description: what the progress bar says.

    Returns:
        Layer → vector [width of the site], float32; only the sums are ever held, never the activations.
    """
    sums: dict[int, torch.Tensor] = {}
    for chosen, batch in _batches(texts, batch_size, pad_id, description):
        spans = torch.zeros(batch.input_ids.shape)
        for row, i in enumerate(chosen):
            text = texts[i]
            spans[row, text.start : text.end] = weights[i] / (text.end - text.start)

        def read(layer: int, activation: torch.Tensor, spans: torch.Tensor = spans) -> None:
            h = activation.float()
            h = h.view(*spans.shape, -1)
            total = torch.einsum("bs,bsd->d", spans.to(h.device), h).double().cpu()
            sums[layer] = sums[layer] + total if layer in sums else total

        forward_reading(anatomy, site, layers, batch, read)
    return {layer: sums[layer].float() for layer in layers}


@torch.no_grad()
def forward_reading(
    anatomy: Anatomy, site: str, layers: Sequence[int], batch: Batch, read: Any
) -> None:
    """One pass through the decoder blocks; `read(layer, activation)` is called at each wanted layer.

    The pass ends at the last wanted layer, and the hooks are gone afterwards whatever happens.
    """
    model = anatomy.model
    trunk = model.get_submodule(anatomy.blocks_path.rpartition(".")[0])
    last = max(layers)
    handles = []

    def hook_for(layer: int, is_input: bool) -> Any:
        def hook(_module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any = None) -> None:
            found = (args[0] if args else kwargs["hidden_states"]) if is_input else output
            read(layer, found if isinstance(found, torch.Tensor) else found[0])
            if layer == last:
                raise _LastLayerRead

        return hook

    batch = batch.to(model.device)
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    try:
        for layer in layers:
            path, _, end = anatomy.component(site, layer).rpartition(".")
            module = model.get_submodule(path.replace("[", ".").replace("]", ""))
            register = module.register_forward_pre_hook if end == "input" else module.register_forward_hook
            handles.append(register(hook_for(layer, end == "input"), with_kwargs=True))
        trunk(**inputs, use_cache=False)
    except _LastLayerRead:
        pass
    finally:
        for handle in handles:
            handle.remove()


def _batches(
    texts: Sequence[Text], batch_size: int, pad_id: int, description: str
) -> Iterator[tuple[list[int], Batch]]:
    """Indices and padded rows, texts of like length together, the longest first (so memory fails at once)."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    for chosen in track(chunks, description):
        rows = [texts[i].ids for i in chosen]
        yield chosen, pad(rows, [len(row) for row in rows], pad_id, "right")
