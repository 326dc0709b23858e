"""How far what was written is from what was declared: its consumer's logits against the intervened model's.

Rounding explains a small difference, and how small depends on the dtype: a full-precision model is compared
as it is, one in half precision by a float32 copy, whose export goes through the same code. Where no copy can
be made, the difference is held against what the edit itself does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NotRequired, TypedDict

import torch
from pydantic import JsonValue

from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.exchange.exports.base import Consumer, ExportError
from subvene.runner.exchange.exports.texts import Text, encoded
from subvene.runner.intervened.model import IntervenedModel

#: What rounding never explains in full precision: more than a part of the largest logit, or of what the edit
#: itself does where that is more than rounding.
TOLERANCE, OF_EFFECT, ROUNDING = 1e-3, 0.05, 2e-5
#: In half precision: of the mean effect on a logit.
OF_MEAN_EFFECT = 0.25


class Reader(TypedDict):
    """Who read an export: name and version, and how where a name does not say it."""

    name: str
    version: str | None
    how: NotRequired[str]


class _Divergences(TypedDict, total=False):
    mean_kl: float
    mean_kl_untouched: float


class Measurement(_Divergences):
    """How far an export is from the intervened model; mean KL, in nats a token, of approximations only."""

    prompts: list[dict[str, JsonValue]]
    tokens: int
    max_logit_difference: float
    max_logit_effect: float
    consumer: Reader
    dtype: str


class Equivalence(Measurement):
    """What `equivalence.json` holds, beside what a format adds."""

    format: str
    exactness: str
    approximations: NotRequired[list[str]]
    in_float32: NotRequired[dict[str, float]]
    versions: dict[str, str]
    files: list[str]


def is_half(m: IntervenedModel) -> bool:
    """Whether the model's arithmetic is coarser than float32."""
    return bool(m.model.dtype.itemsize < 4)


@torch.no_grad()
def float32_copy(m: IntervenedModel) -> IntervenedModel | None:
    """The same edits on a float32 copy of the model, on the CPU; None where its weights cannot be widened.

    Takes four bytes a weight, beside the model.
    """
    parameters = list(m.model.parameters())
    if any(p.is_meta or not p.is_floating_point() or p.dtype.itemsize < 2 for p in parameters):
        return None
    if len(set((getattr(m.model, "hf_device_map", None) or {}).values())) > 1:
        return None
    # torch's own: transformers refuses it for GGUF weights, which it has dequantised.
    model = torch.nn.Module.to(copy.deepcopy(m.model), device="cpu", dtype=torch.float32)
    _restore_buffers(m.model, model)
    own = m.intervenable
    representations = [
        {
            "component": own.representations[key].component,
            "intervention": copy.deepcopy(own.interventions[key]).cpu(),
        }
        for entry in own.entries
        for key in entry.keys
    ]
    intervenable = IntervenableModel(representations, model, [(e.name, e.sites) for e in own.entries])
    return IntervenedModel(
        m.spec, model, m.tokenizer, intervenable=intervenable, tensors=m.tensors, provenance=m.provenance
    )


def _restore_buffers(model: Any, copied: Any) -> None:
    """Give the copy the buffers that no checkpoint keeps (rotary frequencies) as its config makes them.

    `model.to(bfloat16)` rounds them, and whoever loads the export computes them anew.
    """
    stored = model.state_dict().keys()
    rounded = [
        name
        for name, buffer in model.named_buffers()
        if name not in stored and buffer.is_floating_point() and buffer.dtype.itemsize < 4
    ]
    if not rounded:
        return
    fresh = dict(type(model)(copy.deepcopy(model.config)).named_buffers())
    buffers = dict(copied.named_buffers())
    for name in rounded:
        if name in fresh and fresh[name].shape == buffers[name].shape:
            buffers[name].copy_(fresh[name])


@torch.no_grad()
def measured(
    m: IntervenedModel, consumer: Consumer, texts: Sequence[Text], exactness: str, *, is_proven: bool = False
) -> Measurement:
    """The record of the measurement.

    Args:
        m: the intervened model.
        consumer: reads what was written.
        texts: what is measured on.
        exactness: of the export; an exact one is judged.
        is_proven: the float32 copy of this model has been judged, and this one's rounding is only recorded.

    Raises:
        ExportError: the consumer's logits are not finite, of another shape, or another edit's.
    """
    differences, effects, kls, kls_untouched, largest = [], [], [], [], 0.0
    means = torch.zeros(2, dtype=torch.float64)
    rows = encoded(m, texts)
    for ids, prompt_length in rows:
        output = m(ids, prompt_lengths=[prompt_length], must_act=False, use_cache=False)
        expected = output.logits.detach().cpu().double()
        with m.disabled():
            untouched = m(ids, use_cache=False).logits.detach().cpu().double()
        found = consumer.logits(ids, prompt_length).detach().cpu().double()
        if found.shape != expected.shape or not torch.isfinite(found).all():
            raise ExportError(
                f"{consumer.name} gives logits of shape {list(found.shape)} with this export, expected "
                f"{list(expected.shape)} finite numbers; nothing was written"
            )
        difference, effect = (found - expected).abs(), (untouched - expected).abs()
        differences.append(float(difference.max()))
        effects.append(float(effect.max()))
        means += torch.stack([difference.mean(), effect.mean()])
        kls.append(_kl(expected, found))
        kls_untouched.append(_kl(expected, untouched))
        largest = max(largest, float(expected.abs().max()))
    worst, dtype = max(differences), m.model.dtype
    if exactness == "exact" and not is_half(m):
        scale = max(1.0, largest)
        allowed = min(TOLERANCE * scale, max(ROUNDING * scale, OF_EFFECT * max(effects)))
        if worst > allowed:
            raise ExportError(
                f"{consumer.name} gives logits that differ by up to {worst:.3g} (they reach {largest:.3g}) "
                "from those of the intervened model, though this export should be exact; nothing was "
                "written. Please report this with the model's name and the spec"
            )
    elif exactness == "exact" and not is_proven and means[0] > OF_MEAN_EFFECT * means[1]:
        raise ExportError(
            f"{consumer.name} gives logits that differ by {means[0] / len(rows):.3g} on average from "
            f"those of the intervened model, whose edits change them by {means[1] / len(rows):.3g}: in "
            f"{str(dtype).removeprefix('torch.')} it cannot be told whether this export is exact; nothing "
            "was written. Load the model with `dtype: float32`, unquantised and on one device"
        )
    texts_used = [asdict(text) for text in texts]
    if m.tokenizer is None:
        texts_used = [{"token_ids": ids[0].tolist(), "prompt_tokens": n} for ids, n in rows]
    kl: _Divergences = {}
    if exactness == "approximate":
        kl = {
            "mean_kl": float(torch.cat(kls).mean()),
            "mean_kl_untouched": float(torch.cat(kls_untouched).mean()),
        }
    reader: Reader = {"name": consumer.name, "version": consumer.version}
    if consumer.how:
        reader["how"] = consumer.how
    return {
        "prompts": texts_used,
        "tokens": sum(ids.shape[1] for ids, _ in rows),
        "max_logit_difference": worst,
        "max_logit_effect": max(effects),
        **kl,
        "consumer": reader,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of every token, in nats, from logits [1, tokens, vocabulary]."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).flatten()
