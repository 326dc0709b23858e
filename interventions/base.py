"""The base of every intervention: what is common to all kinds, and nothing about files or models."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Self

import torch

from subvene.interventions._pyvene import pyvene
from subvene.interventions.positions import FirstCallIsPrompt, Tokens, parse_positions
from subvene.interventions.tensors import Sizes, TensorTable
from subvene.specs import Positions


class ActivationIntervention(
    pyvene.SourcelessIntervention, pyvene.TrainableIntervention, pyvene.DistributedRepresentationIntervention
):
    """h ← h + s·Δ(h) at the selected tokens; a kind says what Δ is.

    The whole state is in buffers and parameters (the position rule and the kind's options too, as JSON in a
    uint8 buffer), so that stock pyvene, which keeps a state dict and drops constructor arguments, saves and
    reloads it exactly.

    Args:
        strength: the scalar s that multiplies the edit, or one value per row of the batch, shape [batch].
        positions: which tokens are edited (see `subvene.specs.Positions`).
        options: further settings of the kind, JSON values.
        **kwargs: what pyvene passes when it builds a class by name; accepted and ignored.
    """

    kind: ClassVar[str]
    #: Names of the kind's state in the order it is documented; parameters are trained, buffers are not.
    buffer_names: ClassVar[tuple[str, ...]] = ()
    parameter_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        strength: float | torch.Tensor = 1.0,
        positions: Positions = "all",
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # pyvene would register `embed_dim` as state, and a state dict without it would then fail to load.
        super().__init__(keep_last_dim=True)
        self.register_buffer("strength", torch.as_tensor(strength, dtype=torch.float32))
        settings = {"positions": _jsonable(parse_positions(positions)), "options": options or {}}
        self.register_buffer("settings", _pack(settings))
        self._read_settings()
        self._fallback = FirstCallIsPrompt()

    @classmethod
    def build(cls, spec: Any, table: TensorTable | None, sizes: Sizes) -> list[tuple[str, int | None, Self]]:
        """The interventions that one spec entry declares, as (site, layer, intervention).

        Raises:
            TensorError: a tensor is missing or has another shape than this model needs.
        """
        raise NotImplementedError

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        """What an artifact keeps of this intervention: full tensor name → tensor."""
        raise NotImplementedError

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        """Δ(h), broadcastable to `h` [batch, tokens, width]; `h` is float32 (float64 for a float64 model)."""
        raise NotImplementedError

    @property
    def expects_change(self) -> bool:
        """Whether a run in which this edit changed no activation was silently not steered."""
        return True

    @property
    def is_additive(self) -> bool:
        """Whether Δ does not depend on h; additive edits at one site commute with each other."""
        return False

    def forward(
        self,
        base: torch.Tensor,
        source: None = None,
        subspaces: None = None,
        *,
        tokens: Tokens | None = None,
        positions: torch.Tensor | None = None,
        strength: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Edit `base` [batch, tokens, width] and return it in its own dtype.

        Args:
            tokens: where these tokens stand in their sequences; subvene's runner passes it.
            positions: for stock pyvene, Bool[batch, tokens] of the tokens to edit
                (`intervention_additional_kwargs={"positions": mask}`).
            strength: replaces the stored strength for this call; scalar or [batch].
        """
        if positions is None:
            if tokens is None:
                tokens = self._fallback.next(base)
            positions = tokens.mask(self.positions, base.device)
        scale = per_row(self.strength if strength is None else strength, base) * positions.unsqueeze(-1)
        # One operation precision for every model: half-precision activations are widened, edited, cast once.
        wide = torch.promote_types(base.dtype, torch.float32)
        h = base.to(wide)
        return self.edit(h, scale.to(wide), **kwargs).to(base.dtype)

    def edit(self, h: torch.Tensor, scale: torch.Tensor, **context: Any) -> torch.Tensor:
        """h + scale·Δ(h); `scale` [batch, tokens, 1] is the strength, 0 at tokens that are not selected.

        `context` is what the caller passed beside positions; most kinds need none of it.
        """
        return torch.addcmul(h, scale, self.delta(h).to(h.dtype))

    def _read_settings(self) -> None:
        settings = json.loads(bytes(self.settings.tolist()))
        self.positions: Positions = parse_positions(settings["positions"])
        self.options: dict[str, Any] = settings["options"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # pyvene builds the class without arguments, so shapes are known only now.
        for name in ("strength", "settings", *self.buffer_names):
            if (value := state_dict.get(prefix + name)) is not None:
                self.register_buffer(name, torch.empty_like(value))
        for name in self.parameter_names:
            if (value := state_dict.get(prefix + name)) is not None:
                self.register_parameter(name, torch.nn.Parameter(torch.empty_like(value)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._read_settings()

    def __str__(self) -> str:
        return f"{type(self).__name__}(positions={self.positions!r}, strength={self.strength.tolist()})"


def per_row(strength: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """`strength` (scalar or [rows]) as [batch or 1, 1, 1] for `base` [batch, tokens, width].

    A batch that generation has widened (beams, several sequences a prompt) repeats each row's value.
    """
    strength = strength.to(base.device)
    if strength.ndim == 0:
        return strength.view(1, 1, 1)
    rows, batch = strength.shape[0], base.shape[0]
    if batch % rows:
        raise ValueError(f"strength has {rows} values, one per row, and the batch has {batch} rows")
    if batch != rows:
        strength = strength.repeat_interleave(batch // rows)
    return strength.view(-1, 1, 1)


def unit(vector: torch.Tensor) -> torch.Tensor:
    """`vector` scaled to unit length along its last dimension.

    Raises:
        ValueError: a vector of length zero has no direction.
    """
    norm = torch.linalg.vector_norm(vector.float(), dim=-1, keepdim=True)
    if (norm == 0).any():
        raise ValueError("a vector of length zero has no direction")
    return vector / norm


def _jsonable(positions: Positions) -> Any:
    return positions if isinstance(positions, str) else positions.model_dump(mode="json")


def _pack(settings: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(list(json.dumps(settings, sort_keys=True).encode()), dtype=torch.uint8)
