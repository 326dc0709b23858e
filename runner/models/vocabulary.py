"""Whether a model has a row for every token that its tokenizer writes, and for those that it is given."""

from __future__ import annotations

from typing import Any

import torch

from subvene.specs import SubveneError

_SHOWN = 5
_OWN = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "cls_token_id", "sep_token_id")


class TokenError(SubveneError, IndexError):
    """A model is given a token that its embedding has no row for."""


def refuse_without_row(model: Any, ids: torch.Tensor, tokenizer: Any = None) -> None:
    """Refuse token ids that a model's embedding has no row for.

    A text may spell a special token that is harmless because nobody writes it: one of another modality.

    Args:
        model: a model of transformers.
        ids: of any shape.
        tokenizer: names the token, where there is one.

    Raises:
        TokenError: naming the token.
    """
    rows = _rows(model)
    if rows is None or not ids.numel() or (largest := int(ids.max())) < rows:
        return
    token = None if tokenizer is None else tokenizer.convert_ids_to_tokens(largest)
    named = str(largest) if token is None else f"{token!r} ({largest})"
    raise TokenError(
        f"the tokens hold {named}, and the model's embedding has {rows} rows, ids 0 to {rows - 1}: leave "
        "it out of the text (it belongs to another modality or another model)"
    )


def beyond(model: Any, tokenizer: Any) -> str | None:
    """What is wrong, in words, where a tokenizer writes ids that a model's embedding has no row for.

    More rows than tokens are padding. Special tokens beyond the rows that neither the tokenizer nor its chat
    template ever writes (of another modality) are harmless, as nobody's text may hold special tokens.

    Args:
        model: a model of transformers.
        tokenizer: one of transformers', or None.
    """
    rows = _rows(model)
    if tokenizer is None or rows is None or not hasattr(tokenizer, "get_vocab"):
        return None
    above = {token: id for token, id in tokenizer.get_vocab().items() if id >= rows}
    if not above:
        return None
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    written = {getattr(tokenizer, name, None) for name in _OWN} | {*tokenizer("a")["input_ids"]}
    template = str(tokenizer.chat_template or "")
    wrong = {t: i for t, i in above.items() if i not in special or i in written or t in template}
    if not wrong:
        return None
    first = sorted(wrong, key=lambda token: wrong[token])[:_SHOWN]
    shown = ", ".join(f"{token!r} ({wrong[token]})" for token in first)
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return (
        f"its embedding has {rows} rows, ids 0 to {rows - 1}, and its tokenizer writes {shown}{more}; the "
        "two belong to different models, or the embedding was not resized (`model.resize_token_embeddings("
        "len(tokenizer))`, with rows that somebody trained)"
    )


def _rows(model: Any) -> int | None:
    try:
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:  # transformers' word for a model that reads no tokens
        return None
    rows = getattr(embedding, "num_embeddings", None)
    if rows is None and (weight := getattr(embedding, "weight", None)) is not None:
        rows = weight.shape[0]
    return None if rows is None else int(rows)
