"""What imported edits are compared with: the plain model and torch's own hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from subvene.runner.intervened.model import IntervenedModel

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
LENGTHS = [3, 2]


@torch.no_grad()
def logits(m: IntervenedModel) -> torch.Tensor:
    return m(IDS, torch.ones_like(IDS), prompt_lengths=LENGTHS).logits


@torch.no_grad()
def by_hooks(model: Any, *hooks: tuple[str, str, Callable[[torch.Tensor], torch.Tensor]]) -> torch.Tensor:
    """Logits of the plain model with functions at modules' inputs or outputs: nothing of ours."""
    handles = []
    for path, end, change in hooks:
        module = model.get_submodule(path)
        if end == "input":
            handles.append(
                module.register_forward_pre_hook(lambda _m, args, f=change: (f(args[0]), *args[1:]))
            )
        else:
            handles.append(module.register_forward_hook(lambda _m, _a, out, f=change: _changed(out, f)))
    try:
        return model(IDS).logits
    finally:
        for handle in handles:
            handle.remove()


def _changed(out: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)


def response_mask() -> torch.Tensor:
    """The cursor and what follows, [batch, tokens, 1]."""
    return (torch.arange(IDS.shape[1]) >= torch.tensor(LENGTHS).unsqueeze(1) - 1).unsqueeze(-1).float()
