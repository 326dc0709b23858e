"""Reading activations at sites: batched by length, up to the last layer needed, without the LM head.

Reductions happen on the fly; what leaves `weighted_sums` is a running sum over all texts, and what leaves
`pooled` one vector a text. Activations of single tokens, and how they are kept, are `collector`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from subvene.runner.data.limits import refuse_batch_beyond_context
from subvene.runner.data.span import Text
from subvene.runner.data.text import Batch, by_length, pad
from subvene.runner.edits.hooks import on_input, on_output
from subvene.runner.files.progress import track
from subvene.runner.models.anatomy import Anatomy, component_module
from subvene.runner.models.devices import input_device
from subvene.runner.models.evaluating import evaluating
from subvene.runner.models.vocabulary import refuse_without_row
from subvene.runner.passes.elsewhere import ReadElsewhere, SpanMeans

# A sum that is smaller than this part of what it was added up from holds nothing but rounding.
_ROUNDING = 1e-6


def is_rounding(norm: float, scale: float) -> bool:
    """Whether a sum is nothing but the rounding of what it was added up from, which is as long as `scale`."""
    return norm <= _ROUNDING * scale


@dataclass(frozen=True)
class WeightedSums:
    """Sums over texts, some of which may add and others subtract.

    Attributes:
        vectors: layer → float32 [width of the site].
        scales: layer → Σ_i |w_i| · mean ‖h‖ over the span of text i: what a sum is small or large against.
    """

    vectors: dict[int, torch.Tensor]
    scales: dict[int, float]

    def degenerate(self) -> dict[int, str]:
        """Layer → why its sum is no direction; layers where it is one are not in it."""
        found = {}
        for layer, vector in self.vectors.items():
            norm = float(vector.double().norm())
            if not math.isfinite(norm):
                found[layer] = "its activations are not finite"
            elif is_rounding(norm, self.scales[layer]):
                found[layer] = "zero, up to rounding: both sides have the same activations there"
        return found


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
) -> WeightedSums:
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
        The sums of each layer; nothing else is ever held, never the activations.
    """
    if isinstance(anatomy, ReadElsewhere):
        return WeightedSums(*anatomy.weighted(site, layers, texts, weights))
    sums: dict[int, torch.Tensor] = {}
    scales: dict[int, float] = dict.fromkeys(layers, 0.0)
    for chosen in track(by_length([len(text.ids) for text in texts], batch_size), description):
        rows = [texts[i].ids for i in chosen]
        batch = pad(rows, [len(row) for row in rows], pad_id, "right")
        spans = torch.zeros(batch.input_ids.shape)
        for row, i in enumerate(chosen):
            text = texts[i]
            spans[row, text.start : text.end] = weights[i] / (text.end - text.start)

        def read(layer: int, activation: torch.Tensor, spans: torch.Tensor = spans) -> None:
            h = activation.float()
            h = h.view(*spans.shape, -1)
            total = torch.einsum("bs,bsd->d", spans.to(h.device), h).cpu().double()  # MPS has no float64
            sums[layer] = sums[layer] + total if layer in sums else total
            scales[layer] += float((spans.abs().to(h.device) * h.norm(dim=-1)).sum())

        forward_reading(anatomy, site, layers, batch, read)
    return WeightedSums({layer: sums[layer].float() for layer in layers}, scales)


def pooled(
    anatomy: Anatomy,
    site: str,
    layers: Sequence[int],
    texts: Sequence[Text],
    how: Literal["mean", "max"],
    *,
    pad_id: int,
    batch_size: int,
    description: str = "reading activations",
) -> dict[int, torch.Tensor]:
    """Each text's activation at `site`, over its span, for several layers from one pass.

    Args:
        anatomy: of the model to read.
        site: one of DESIGN's sites.
        layers: 0-based block indices.
        texts: what is read.
        how: the mean over the span, or the maximum of every column by itself.
        pad_id: any token id; padding is masked.
        batch_size: texts per forward pass.
        description: what the progress bar says.

    Returns:
        Layer → float32 [texts, width], on the CPU: of 1,000 texts, 32 layers and a width of 4,096, 0.5 GB.
    """
    if isinstance(anatomy, ReadElsewhere):
        return anatomy.pooled(site, layers, texts, how)
    found: dict[int, torch.Tensor] = {}
    for chosen in track(by_length([len(text.ids) for text in texts], batch_size), description):
        rows = [texts[i].ids for i in chosen]
        batch = pad(rows, [len(row) for row in rows], pad_id, "right")
        outside = torch.ones(*batch.input_ids.shape, 1, dtype=torch.bool)
        for row, i in enumerate(chosen):
            outside[row, texts[i].start : texts[i].end] = False

        def read(
            layer: int,
            activation: torch.Tensor,
            outside: torch.Tensor = outside,
            chosen: Sequence[int] = chosen,
        ) -> None:
            h = activation.float().view(*outside.shape[:2], -1)
            masked = outside.to(h.device)
            if how == "max":
                of_texts = h.masked_fill(masked, -torch.inf).amax(1)
            else:
                of_texts = h.masked_fill(masked, 0).sum(1) / (~masked).sum(1)
            kept = found.setdefault(layer, torch.empty(len(texts), h.shape[-1]))
            kept[list(chosen)] = of_texts.cpu()

        forward_reading(anatomy, site, layers, batch, read)
    return found


def span_means(
    anatomy: Anatomy,
    site: str,
    layers: Sequence[int],
    texts: Sequence[Text],
    *,
    pad_id: int,
    batch_size: int,
    description: str = "reading activations",
) -> SpanMeans:
    """The mean activation and the mean ‖h‖ over the span of each text; arguments as for `pooled`."""
    vectors: dict[int, torch.Tensor] = {}
    norms = {layer: torch.zeros(len(texts), dtype=torch.float64) for layer in layers}
    for chosen in track(by_length([len(text.ids) for text in texts], batch_size), description):
        rows = [texts[i].ids for i in chosen]
        batch = pad(rows, [len(row) for row in rows], pad_id, "right")
        weights = torch.zeros(batch.input_ids.shape)
        for row, i in enumerate(chosen):
            weights[row, texts[i].start : texts[i].end] = 1 / (texts[i].end - texts[i].start)

        def read(
            layer: int,
            activation: torch.Tensor,
            weights: torch.Tensor = weights,
            chosen: Sequence[int] = chosen,
        ) -> None:
            h = activation.float().view(*weights.shape, -1)
            w = weights.to(h.device)
            kept = vectors.setdefault(layer, torch.empty(len(texts), h.shape[-1]))
            kept[list(chosen)] = torch.einsum("bs,bsd->bd", w, h).cpu()
            norms[layer][list(chosen)] = (w * h.norm(dim=-1)).sum(-1).cpu().double()

        forward_reading(anatomy, site, layers, batch, read)
    return SpanMeans(vectors, norms)


@torch.no_grad()
def forward_reading(
    anatomy: Anatomy,
    site: str,
    layers: Sequence[int],
    batch: Batch,
    read: Callable[[int, torch.Tensor], None],
    *,
    cache: Any = None,
    **inputs: torch.Tensor,
) -> None:
    """One pass through the decoder blocks; `read(layer, activation)` is called at each wanted layer.

    The pass ends at the last wanted layer. Dropout is off while it runs, and afterwards the model's mode and
    hooks are what they were, whatever happens.

    Args:
        anatomy: of the model to read.
        site: one of DESIGN's sites.
        layers: 0-based block indices.
        batch: the tokens, padded on the right.
        read: called with a layer and its activation of this pass's tokens.
        cache: a transformers cache that holds what precedes the batch, equally long in every row, and takes
            up the keys and values of this pass; None: there is none, and none is kept.
        **inputs: what the blocks are given beside the tokens, or in place of the batch's own mask.

    Raises:
        TooLongError: a text has more tokens than the model reads.
        TokenError: the model has no row for one of the tokens.
    """
    if isinstance(anatomy, ReadElsewhere):
        raise RuntimeError("an engine reads this model, and nothing is read in this process instead")
    model: Any = anatomy.model
    refuse_without_row(model, batch.input_ids)
    if "position_ids" not in inputs:  # rows that hold several texts are not as long as they look
        before = 0 if cache is None else cache.get_seq_length()
        refuse_batch_beyond_context(
            model, batch.input_ids, None if before else batch.attention_mask, before=before
        )
    trunk = model.get_submodule(anatomy.blocks_path.rpartition(".")[0])
    batch = batch.to(input_device(model))
    handles = []

    def attach(layer: int) -> None:
        module, is_input = component_module(model, anatomy.component(site, layer))
        columns = anatomy.columns(site, layer)

        def see(activation: torch.Tensor) -> None:
            read(layer, activation if columns is None else activation[..., list(columns)])
            if layer == max(layers):
                raise _LastLayerRead

        handles.append((on_input if is_input else on_output)(module, see))

    try:
        for layer in layers:
            attach(layer)
        mask, held = batch.attention_mask, {}
        if cache is not None:
            before = mask.new_ones(len(batch.input_ids), cache.get_seq_length())
            mask, held = torch.cat([before, mask], dim=1), {"past_key_values": cache}
        further = {name: value.to(batch.input_ids.device) for name, value in inputs.items()}
        with evaluating(model):
            trunk(
                input_ids=batch.input_ids,
                **{"attention_mask": mask, "use_cache": cache is not None, **held, **further},
            )
    except _LastLayerRead:
        pass
    finally:
        for handle in handles:
            handle.remove()
