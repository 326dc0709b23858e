"""Drawing tokens from logits by numbers that are given: the same numbers, the same tokens, in any batch."""

from __future__ import annotations

import torch

# Of a nucleus that holds no more tokens only so many are ordered, not the whole vocabulary.
_LIKELIEST = 1024


def draw(
    logits: torch.Tensor, u: torch.Tensor, *, temperatures: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Token ids [rows], by inverting each row's cumulative distribution at `u`.

    Args:
        logits: [rows, vocabulary].
        u: float64 [rows], uniform in [0, 1).
        temperatures: float64 [rows], above 0.
        top_p: float64 [rows]; the tokens drawn from are the fewest likeliest ones that hold so much.
    """
    device = logits.device
    if device.type == "mps":  # has no float64
        return draw(logits.cpu(), u, temperatures=temperatures, top_p=top_p).to(device)
    p = (logits.double() / temperatures.to(device).unsqueeze(1)).softmax(-1)
    u, top_p = u.to(device).unsqueeze(1), top_p.to(device).unsqueeze(1)
    drawn = torch.empty(len(p), dtype=torch.long, device=device)
    nucleus = top_p.squeeze(1) < 1
    if bool((~nucleus).any()):
        drawn[~nucleus] = _inverted(p[~nucleus], u[~nucleus])
    if bool(nucleus.any()):
        tokens, kept = _nucleus(p[nucleus], top_p[nucleus])
        drawn[nucleus] = tokens.gather(1, _inverted(kept, u[nucleus]).unsqueeze(1)).squeeze(1)
    return drawn


def _nucleus(p: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, ascending, and their probabilities, 0 outside the nucleus; both [rows, tokens]."""
    ordered, tokens = p.topk(min(_LIKELIEST, p.shape[1]))
    if bool((ordered.sum(-1, keepdim=True) < top_p).any()):
        ordered, tokens = p.sort(-1, descending=True)
    # A token stays if those before it hold less than the share; the likeliest always does.
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p, 0.0)
    tokens, places = tokens.sort(-1)
    return tokens, ordered.gather(1, places)


def _inverted(p: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Where each row's cumulative distribution reaches `u` [rows, 1] of its sum, [rows]."""
    cumulative = p.cumsum(-1)
    # `right`: a token of probability 0 is never drawn, not even at u = 0.
    found = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
    return found.squeeze(1).clamp_max(p.shape[1] - 1)
