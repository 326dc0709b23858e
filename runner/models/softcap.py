"""The softcap of attention logits (Gemma 2, section 2 of arXiv:2408.00118), which some code leaves out."""

from __future__ import annotations

from typing import Any

_LEAVE_IT_OUT = ("sdpa", "paged|sdpa")
"""Implementations of attention in transformers that take a softcap and do nothing with it."""


def has_softcap(config: Any) -> bool:
    """Whether the logits of a model's attention are capped."""
    return bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))


def softcap_flaw(config: Any) -> str | None:
    """Why the attention of a loaded model would not be the model's, or None."""
    implementation = getattr(config.get_text_config(), "_attn_implementation", None)
    if implementation not in _LEAVE_IT_OUT or not has_softcap(config):
        return None
    return (
        f"attn_implementation {implementation!r} leaves out the softcap of this model's attention, so its "
        "numbers would be another model's; load it with attn_implementation: eager (or flash_attention_2)"
    )
