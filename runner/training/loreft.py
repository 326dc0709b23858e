"""LoReFT edits as the training loop sees them: a rotation and a projection at some tokens of each prompt.

Wu et al. 2024, arXiv:2404.03592, equation 3: h ← h + Rᵀ(W·h + b − R·h), the rows of R orthonormal. R is
pyvene's `LowRankRotateLayer` under torch's orthogonal parametrization, as in the authors' code
(github.com/stanfordnlp/pyreft, pyreft/interventions.py). Its `LoreftIntervention` begins with W and b at
random, its `LoreftIntervention_IdentityInit` with W = R and b = 0, as here: an untrained edit does nothing,
and validation can tell that no step was better. Prefix and suffix share R, W and b (tied, as the paper says),
and there is no dropout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from subvene.interventions._pyvene import pyvene
from subvene.interventions.positions import Tokens
from subvene.runner.edits.hooks import on_output
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import Positions


class _Loreft(torch.nn.Module):
    """R, W [rank, width] and b [rank] of one layer, float32."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        rotate = pyvene.models.layers.LowRankRotateLayer(width, rank)
        self.rotate: Any = torch.nn.utils.parametrizations.orthogonal(rotate, orthogonal_map="householder")
        self.weight = torch.nn.Parameter(torch.as_tensor(self.rotate.weight).detach().T.clone())
        self.bias = torch.nn.Parameter(torch.zeros(rank))

    def parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Readers W − R and writers R [rank, width], and the constant Rᵀb [width]."""
        rotation = torch.as_tensor(self.rotate.weight).T
        return self.weight - rotation, rotation, self.bias @ rotation


class LoreftEdits:
    """One experiment's LoReFT.

    Args:
        anatomy: of the model.
        layers: whose output is edited.
        rank: of every edit.
        positions: the tokens of a prompt that are edited.
        seed: of the first rotations.
    """

    def __init__(
        self, anatomy: Anatomy, layers: Sequence[int], rank: int, positions: Positions, seed: int
    ) -> None:
        model: Any = anatomy.model
        self._blocks = {layer: anatomy.blocks[layer] for layer in sorted(layers)}
        self._positions = positions
        self._edits = torch.nn.ModuleDict()
        for layer in self._blocks:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 100_003 + layer)
                self._edits[str(layer)] = _Loreft(anatomy.sizes.width, rank)
        self._edits.to(model.device)

    def parameters_of(self, experiment: int) -> dict[str, torch.nn.Parameter]:
        """The free parameters of R, W and b at every layer."""
        return dict(self._edits.named_parameters())

    def first_layer(self, experiment: int) -> int:
        """The lowest layer that is edited."""
        return min(self._blocks)

    @torch.no_grad()
    def factors_of(self, experiment: int, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """By `{layer}.{a|b|bias}`, what the kind `affine` of `form: low_rank` is made of."""
        for name, parameter in self._edits.named_parameters():
            parameter.copy_(values[name])
        return {
            f"{layer}.{part}": tensor.detach().cpu().contiguous()
            for layer in self._blocks
            for part, tensor in zip(("a", "b", "bias"), self._of(layer).parts(), strict=True)
        }

    def _of(self, layer: int) -> _Loreft:
        edit = self._edits[str(layer)]
        if not isinstance(edit, _Loreft):
            raise TypeError(f"layer {layer} is edited by a {type(edit).__name__}")
        return edit

    @contextlib.contextmanager
    def acting(self, experiments: Sequence[int], prompts: Sequence[int]) -> Iterator[None]:
        """Within the block, the chosen tokens of each row's prompt are edited."""
        handles = []
        try:
            for layer, block in self._blocks.items():
                handles.append(on_output(block, self._edit(self._of(layer), prompts)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _edit(self, edit: Any, prompts: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
        readers, writers, constant = edit.parts()

        def act(h: torch.Tensor) -> torch.Tensor:
            # Rows begin with their prompt, so that a slot of a prompt is a position.
            index = torch.arange(h.shape[1], device=h.device).expand(h.shape[:2])
            lengths = torch.tensor(prompts, device=h.device)
            mask = Tokens(index, torch.ones_like(index, dtype=torch.bool), lengths).mask(self._positions)
            wide = h[mask].to(torch.promote_types(h.dtype, torch.float32))
            moved = wide + (wide @ readers.to(wide).T) @ writers.to(wide) + constant.to(wide)
            return h.masked_scatter(mask.unsqueeze(-1), moved.to(h.dtype))

        return act
