"""Head directions: inference-time intervention (Li et al. 2023, arXiv:2306.03341, equation 2)."""

from __future__ import annotations

from typing import Any, Self

import torch

from subvene.interventions.affine import Affine
from subvene.interventions.base import ActivationIntervention
from subvene.interventions.columns import Columns
from subvene.interventions.formula import DirectionFormula
from subvene.interventions.gate import Gates
from subvene.interventions.tensors import Sizes, TensorError, TensorTable, stored_name
from subvene.specs import HeadDirectionSpec, tensor_name

PROBE_WEIGHT, PROBE_BIAS = "probe_weight", "probe_bias"


class HeadDirectionIntervention(ActivationIntervention):
    """o_h ← o_h + α·σ_h·θ_h for the chosen heads of one layer, at the input of the output projection.

    With probes the strength is α·(1 − p_h) in place of α, where p_h = sigmoid(⟨w_h, o_h⟩ + b_h) is read from
    the activation before this edit, for each token and head. It falls as the probe says that the activation
    is on the wanted side already. p_h does not depend on the sign of α. No paper's rule.

    Args:
        directions: σ_h·θ̂_h by head, shape [n_heads, head_dim]; zero rows are heads that are left alone.
        sigma: σ_h, shape [n_heads], where it is kept beside the directions rather than folded in.
        probe_weight: w_h, shape [n_heads, head_dim]; None for a constant strength.
        probe_bias: b_h, shape [n_heads]; zero if None.
        **kwargs: see `ActivationIntervention`; `strength` is α.
    """

    kind = "head_direction"
    buffer_names = ("directions", "sigma", "shift", PROBE_WEIGHT, PROBE_BIAS)
    linear_in_strength = True
    acts_alone = True

    def __init__(
        self,
        directions: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
        probe_weight: torch.Tensor | None = None,
        probe_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        directions = torch.zeros(0, 0) if directions is None else directions.detach().float()
        sigma = torch.ones(directions.shape[0]) if sigma is None else sigma.detach().float()
        probe_weight = torch.zeros(0, 0) if probe_weight is None else probe_weight.detach().float()
        if probe_bias is None:
            probe_bias = torch.zeros(probe_weight.shape[0])
        self.register_buffer("directions", directions)
        self.register_buffer("sigma", sigma)
        # All heads of the layer in one vector, so that the edit costs one operation however many there are.
        self.register_buffer("shift", (sigma.unsqueeze(-1) * directions).flatten())
        self.register_buffer(PROBE_WEIGHT, probe_weight)
        self.register_buffer(PROBE_BIAS, probe_bias.detach().float())

    @classmethod
    def build(
        cls, spec: HeadDirectionSpec, table: TensorTable, sizes: Sizes
    ) -> list[tuple[str, int | None, Self]]:
        key = spec.directions.key
        layers = sorted(spec.heads) if spec.heads is not None else table.layers(key, spec.site)
        if not layers:
            raise TensorError(
                f"{table.origin}: no directions under the key {key!r}; "
                f"they are stored one a layer, as {tensor_name(key, spec.site, 0)!r} [n_heads, head_dim]"
            )
        built: list[tuple[str, int | None, Self]] = []
        strength = torch.tensor(spec.strength)
        for layer in layers:
            directions = table.get(key, spec.site, layer, shape=(sizes.n_heads, sizes.head_dim))
            sigma = None
            if table.find(key, spec.site, layer, "sigma") is not None:
                sigma = table.get(key, spec.site, layer, part="sigma", shape=(sizes.n_heads,))
            if spec.heads is not None:
                chosen = torch.zeros(sizes.n_heads, 1)
                chosen[list(spec.heads[layer])] = 1.0
                if zero := [head for head in spec.heads[layer] if not directions[head].any()]:
                    name = table.find(key, spec.site, layer)
                    raise TensorError(
                        f"{table.origin}: tensor {name!r} is zero at the chosen heads {zero}, "
                        "so they have no direction"
                    )
                directions = directions * chosen
            elif not directions.any():
                # A fit may store every layer and leave those without a chosen head zero: nothing to do there.
                continue
            if flat := _without_spread(directions, sigma):
                name = stored_name(key, spec.site, layer, "sigma")
                raise TensorError(
                    f"{table.origin}: tensor {name!r} is zero at the heads {flat}, so nothing would move "
                    "them: activations do not spread along their directions; choose other heads, or more data"
                )
            probes = _probes(spec, table, sizes, layer) if spec.adaptive == "one_minus_p" else (None, None)
            edit = cls(directions, sigma, *probes, strength=strength, positions=spec.positions)
            built.append((spec.site, layer, edit))
        if not built:
            raise TensorError(f"{table.origin}: the directions {key!r} are zero at every layer and head")
        return built

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        tensors = {
            stored_name(key, site, layer): self.directions,
            stored_name(key, site, layer, "sigma"): self.sigma,
        }
        if self.is_adaptive:
            tensors[stored_name(key, site, layer, PROBE_WEIGHT)] = self.probe_weight
            tensors[stored_name(key, site, layer, PROBE_BIAS)] = self.probe_bias
        return tensors

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        if not self.is_adaptive:
            return self.shift
        n_heads, head_dim = self.probe_weight.shape
        shift = self.shift.to(h.dtype).view(n_heads, head_dim)
        return (self._one_minus_p(h).unsqueeze(-1) * shift).flatten(-2)

    def constant_delta(self) -> torch.Tensor | None:
        return None if self.is_adaptive else self.shift

    @torch.no_grad()
    def strength_factors(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        if not self.is_adaptive:
            return None
        # Multiplied rather than indexed by the mask: an index would wait for the device.
        edited = self.edited_heads
        factors = self._one_minus_p(h.to(torch.promote_types(h.dtype, torch.float32)))
        return (factors * edited).sum(-1), edited.sum()

    @property
    def is_adaptive(self) -> bool:
        """Whether the strength is read from the activation."""
        return self.probe_weight.numel() > 0

    @property
    def edited_heads(self) -> torch.Tensor:
        """Bool[n_heads], true at the heads that are shifted."""
        return self.shift.view(self.sigma.shape[0], -1).any(-1)

    def affine(self) -> Affine | None:
        return None if self.is_adaptive else Affine.constant(self.shift)

    def direction_formula(self) -> DirectionFormula | None:
        if self.is_adaptive:
            return None
        return DirectionFormula("add", self.shift.detach().cpu().float())

    def gates(self) -> Gates | None:
        if not self.is_adaptive:
            return None
        n_heads, head_dim = self.probe_weight.shape
        rows = torch.zeros(2, n_heads, n_heads, head_dim, dtype=torch.float64)
        index = torch.arange(n_heads)
        rows[0, index, index] = self.probe_weight.detach().cpu().double()
        rows[1, index, index] = self.shift.detach().cpu().double().view(n_heads, head_dim)
        readers, writers = rows[:, self.edited_heads.cpu()].flatten(2)
        return Gates(readers, writers, "α·(1 − p)")

    def columns(self) -> tuple[Columns, ...] | None:
        if (gates := self.gates()) is None:
            return super().columns()
        bias = self.probe_bias[self.edited_heads]
        return (Columns.of("gate", gates.readers, gates.writers, bias=bias),)

    @property
    def instead(self) -> str | None:
        return "`adaptive: none`, which is another intervention" if self.is_adaptive else None

    @property
    def expects_change(self) -> bool:
        # Where every probe is sure of the wanted side, nothing has to happen; the mean strength says so.
        return not self.is_adaptive

    def _one_minus_p(self, h: torch.Tensor) -> torch.Tensor:
        """1 − p_h, shape [batch, tokens, n_heads], at an activation [batch, tokens, n_heads*head_dim]."""
        heads = h.unflatten(-1, self.probe_weight.shape)
        logit = (heads * self.probe_weight.to(h.dtype)).sum(-1) + self.probe_bias.to(h.dtype)
        # Not 1 − sigmoid(logit), which has no digits left where p is near 1.
        return torch.sigmoid(-logit)


def _without_spread(directions: torch.Tensor, sigma: torch.Tensor | None) -> list[int]:
    """The heads that have a direction and σ = 0."""
    if sigma is None:
        return []
    return [int(head) for head in ((sigma == 0) & directions.any(-1)).nonzero().flatten()]


def _probes(
    spec: HeadDirectionSpec, table: TensorTable, sizes: Sizes, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights and biases of a layer's probes.

    Raises:
        TensorError: they are not stored, or do not fit the model.
    """
    key, site = spec.directions.key, spec.site
    parts = (PROBE_WEIGHT, PROBE_BIAS)
    if missing := [part for part in parts if table.find(key, site, layer, part) is None]:
        names = " and ".join(repr(tensor_name(key, site, layer, part)) for part in missing)
        raise TensorError(
            f"{table.origin}: no tensor {names}; `adaptive: one_minus_p` reads each head's linear probe "
            "([n_heads, head_dim] and [n_heads]) from beside its directions: fit them with the recipe iti "
            "and `probe: linear`, which stores both, or leave `adaptive` out"
        )
    weight = table.get(key, site, layer, part=PROBE_WEIGHT, shape=(sizes.n_heads, sizes.head_dim))
    bias = table.get(key, site, layer, part=PROBE_BIAS, shape=(sizes.n_heads,))
    return weight, bias
