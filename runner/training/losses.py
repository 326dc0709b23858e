"""The objectives, as functions of answers' log-probabilities under the edited and the original model."""

from __future__ import annotations

import torch

from subvene.specs.recipes.trained import DPOSpec, IPOSpec, SFTSpec


def token_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log p of each target in nats, [tokens]; `logits` [tokens, vocabulary] of any floating-point type."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -torch.nn.functional.cross_entropy(wide, targets, reduction="none")


def margin(
    chosen: torch.Tensor, rejected: torch.Tensor, base_chosen: torch.Tensor, base_rejected: torch.Tensor
) -> torch.Tensor:
    """Δ: how much more the edit favours y⁺ than y⁻, in nats.

    Args:
        chosen: log π(y⁺|x), [pairs].
        rejected: log π(y⁻|x).
        base_chosen: log π₀(y⁺|x) of the original model.
        base_rejected: log π₀(y⁻|x).
    """
    return (chosen - base_chosen) - (rejected - base_rejected)


def pair_losses(
    objective: IPOSpec | DPOSpec | SFTSpec, chosen: torch.Tensor, delta: torch.Tensor | None
) -> torch.Tensor:
    """The loss of each pair, [pairs].

    Args:
        objective: which one.
        chosen: log π(y⁺|x), reduced over tokens as the objective says.
        delta: Δ of log-probabilities that are reduced so; None for `sft`, which needs none.
    """
    if isinstance(objective, SFTSpec):
        return -chosen
    if delta is None:
        raise ValueError(f"{objective.kind} needs the margin Δ")
    if isinstance(objective, IPOSpec):
        return (delta - 1 / (2 * objective.tau)) ** 2
    return -torch.nn.functional.logsigmoid(objective.beta * delta)
