"""The base of every intervention: what is common to all kinds, and nothing about files or models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch

from subvene.interventions._pyvene import pyvene
from subvene.interventions.affine import Affine
from subvene.interventions.columns import Columns
from subvene.interventions.constant import Constant
from subvene.interventions.formula import DirectionFormula
from subvene.interventions.gate import Gates
from subvene.interventions.gating import Gating
from subvene.interventions.positions import FirstCallIsPrompt, Tokens, parse_positions, plain_positions
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
    #: Whether what is added is the strength times Δ(h). None: the kind does not say.
    linear_in_strength: bool | None = None
    #: Whether stock pyvene, which passes the activation and nothing else, gets the same edit. None: the kind
    #: does not say.
    acts_alone: bool | None = None
    #: Whether it only reads, and changes nothing.
    collects: bool = False
    #: Whether its edit depends on where tokens stand, and not only on which are selected.
    needs_tokens: ClassVar[bool] = False
    #: Whether the runner has to hand it the input of the module whose output it edits.
    needs_module_input: bool = False
    settings: torch.Tensor
    _index: torch.Tensor | None

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
        settings = {"positions": plain_positions(parse_positions(positions)), "options": options or {}}
        self.register_buffer("settings", _pack(settings))
        self._read_settings()
        self._fallback = FirstCallIsPrompt()
        #: When it acts; None: wherever its positions say. Only the runner, which reads for it, heeds it.
        self.gating: Gating | None = None

    @classmethod
    def build(cls, spec: Any, table: TensorTable, sizes: Sizes) -> list[tuple[str, int | None, Self]]:
        """The interventions that one spec entry declares, as (site, layer, intervention).

        Raises:
            TensorError: a tensor is missing or has another shape than this model needs.
        """
        raise NotImplementedError

    def act_on(self, columns: Sequence[int]) -> None:
        """Let it edit these columns alone of the activation that it is given: a site that shares a module."""
        self.settings = _pack(unpack(self.settings) | {"columns": list(columns)})
        self._read_settings()

    def of_site(self, activation: torch.Tensor) -> torch.Tensor:
        """The part of a module's activation [..., width] that is the site."""
        if self.site_columns is None:
            return activation
        return activation.index_select(-1, self._site_index(activation.device))

    def _site_index(self, device: torch.device) -> torch.Tensor:
        # Kept, since making it on a device would wait for that.
        if self._index is None or self._index.device != device:
            self._index = torch.tensor(self.site_columns, device=device)
        return self._index

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        """What an artifact keeps of this intervention: full tensor name → tensor."""
        raise NotImplementedError

    def delta(self, h: torch.Tensor) -> torch.Tensor:
        """Δ(h), broadcastable to `h` [batch, tokens, width]; `h` is float32 (float64 for a float64 model)."""
        raise NotImplementedError

    def strength_factors(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What the edit multiplies its strength by at `h`; None for a strength that is what it is.

        Returns:
            The sum of the factors of each token's parts (heads), [batch, tokens], and the number of parts.
        """
        return None

    @property
    def reads(self) -> str | None:
        """The source whose run it reads; None for what edits with its own tensors alone."""
        return None

    def set_source_representation(self, source_representation: torch.Tensor) -> None:
        """Refused: pyvene would keep it beside the edit, which does not look at it.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{type(self).__name__} has no source; what it edits with are its own tensors")

    @property
    def expects_change(self) -> bool:
        """Whether a run in which this edit changed no activation was silently not steered."""
        return True

    # What a kind says of itself. Exports and the order of edits ask this and nothing else, and what a kind
    # does not say is refused: nothing is known of it.

    def affine(self) -> Affine | None:
        """Δ as a linear map and a constant, the strength left out; None: no such map, or not said."""
        return None

    def direction_formula(self) -> DirectionFormula | None:
        """Δ by one vector and a formula, the strength left out; None: no such formula, or not said."""
        return None

    def gates(self) -> Gates | None:
        """Δ as vectors with a gate each, the strength left out; None: no such gates, or not said."""
        return None

    def columns(self) -> tuple[Columns, ...] | None:
        """Δ as columns, the strength left out, for engines that run nothing else.

        None: the kind states no map and no formula that are so, or not that Δ is multiplied by the strength.
        """
        if not self.linear_in_strength:
            return None
        if (affine := self.affine()) is not None:
            linear = () if affine.is_constant else (Columns.of("linear", affine.a, affine.b),)
            constant = Columns.of("constant", None, affine.d.unsqueeze(0))
            return (*linear, constant) if affine.d.any() or not linear else linear
        formula = self.direction_formula()
        if formula is None or formula.form != "bound":
            return None
        v = formula.vector.unsqueeze(0)
        return (Columns.of("bound", v, v, low=formula.floor, high=formula.ceiling),)

    @property
    def instead(self) -> str | None:
        """A declaration near this one that more formats hold, in words; None: the kind names none."""
        return None

    @property
    def depends_on_activation(self) -> bool | None:
        """Whether Δ depends on h, as its map, formula or gates say; None: the kind states none of them."""
        if (affine := self.affine()) is not None:
            return not affine.is_constant
        if (formula := self.direction_formula()) is not None:
            return formula.form != "add"
        return None if self.gates() is None else True

    @property
    def is_additive(self) -> bool:
        """Whether Δ does not depend on h; additive edits at one site commute with each other."""
        return self.depends_on_activation is False

    def forward(
        self,
        base: torch.Tensor,
        source: torch.Tensor | None = None,
        subspaces: None = None,
        *,
        tokens: Tokens | None = None,
        positions: torch.Tensor | None = None,
        strength: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Edit `base` [batch, tokens, width] and return it in its own dtype.

        Args:
            base: the activation.
            source: what another run computed, [batch, tokens, columns that are edited]; for kinds that read
                one. pyvene passes None.
            subspaces: not used; pyvene passes None.
            tokens: where these tokens stand in their sequences; subvene's runner passes it.
            positions: for stock pyvene, Bool[batch, tokens] of the tokens to edit
                (`intervention_additional_kwargs={"positions": mask}`): this call's tokens if it is as wide as
                the call; else column j is token j of the sequence, and what lies beyond is not edited.
            strength: replaces the stored strength for this call; scalar or [batch].
            gate: multiplies the strength, [batch, tokens]; one object for all that share `tokens`.
            **kwargs: passed on to `edit`.
        """
        if tokens is None:
            # Also where a mask was given: it has to be known where a decoding step stands in it.
            tokens = self._fallback.next(base)
        # One operation precision for every model: half-precision activations are widened, edited, cast once.
        whole, base = base, self.of_site(base)
        strength = self.strength if strength is None else strength
        constant = self._constant(tokens)
        scale, where = self._scale_and_where(
            base, strength, tokens, positions, gate, is_constant=constant is not None
        )
        if source is not None:
            kwargs["source"] = source.to(_wide(base))
        if self.needs_tokens:
            kwargs["tokens"] = tokens
        if constant is not None:
            edited = constant.added(base, scale)
        else:
            edited = self.edit(base.to(_wide(base)), scale, **kwargs).to(base.dtype)
        if where is not None:
            # Not left to h + 0·Δ(h): where Δ overflows, 0·inf would put NaN into a token outside.
            edited = torch.where(where, edited, base)
        if self.site_columns is None:
            return edited
        return whole.index_copy(-1, self._site_index(whole.device), edited)

    def _scale_and_where(
        self,
        base: torch.Tensor,
        strength: torch.Tensor,
        tokens: Tokens,
        positions: torch.Tensor | None,
        gate: torch.Tensor | None,
        *,
        is_constant: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Each token's strength, [batch or 1, tokens or 1, 1], and where it is not 0; None: everywhere."""
        wide = _wide(base)

        def masked() -> tuple[torch.Tensor, torch.Tensor | None]:
            if positions is None:
                mask = tokens.mask(self.positions, base.device)
            else:
                mask = _of_call(positions, base, tokens)
            scale = (per_row(strength, base) * mask.unsqueeze(-1)).to(wide)
            if gate is not None:
                scale = scale * gate.to(scale).unsqueeze(-1)
            return scale, scale != 0

        def everywhere() -> torch.Tensor | None:
            return per_row(strength, base).to(wide) if bool((strength != 0).all()) else None

        if positions is not None:
            return masked()
        # The layers of one declared intervention have the same strength tensor and share the result.
        key = (self.positions, id(strength), id(gate), base.device, wide)
        selects_all = tokens.selects_all(self.positions)
        if gate is None and (selects_all or is_constant):
            scale = tokens.shared_by_run((*key, base.shape[0]), everywhere)
            if scale is not None:
                # What the mask leaves out is not multiplied by 0 but put back, and strengths share one mask.
                return scale, None if selects_all else tokens.mask(self.positions, base.device).unsqueeze(-1)
        return tokens.shared(key, masked)

    def constant_delta(self) -> torch.Tensor | None:
        """Δ as one vector [width], whatever the activation and the token; None: it is none, or not said."""
        return None

    def _constant(self, tokens: Tokens) -> Constant | None:
        buffers = [getattr(self, name) for name in self.buffer_names]

        def made() -> Constant | None:
            return Constant.of(self.constant_delta(), buffers)

        # Kept for a run and no longer: what is written through `.data` between two runs leaves no trace.
        kept = tokens.shared_by_run(("constant", id(self)), made)
        return kept if kept is not None and kept.is_of(buffers) else made()

    def edit(self, h: torch.Tensor, scale: torch.Tensor, **context: Any) -> torch.Tensor:
        """Returns h + scale·Δ(h); `scale` [batch, tokens, 1] is the strength, 0 at unselected tokens.

        `context` is what the caller passed beside positions; most kinds need none of it.
        """
        return torch.addcmul(h, scale, self.delta(h).to(h.dtype))

    def _read_settings(self) -> None:
        settings = unpack(self.settings)
        self._index = None
        self.positions: Positions = parse_positions(settings["positions"])
        self.options: dict[str, Any] = settings["options"]
        #: The columns of the module's activation that are the site; None: all of them.
        self.site_columns: list[int] | None = settings.get("columns")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # pyvene builds the class without arguments, so shapes are known only now. A tensor that fits
        # stays the object that it is, because an optimizer may hold it.
        for name in ("strength", "settings", *self.buffer_names, *self.parameter_names):
            value, present = state_dict.get(prefix + name), getattr(self, name)
            if value is None or value.shape == present.shape:
                continue
            fitting = torch.empty_like(value, device=present.device)
            if name in self.parameter_names:
                self.register_parameter(name, torch.nn.Parameter(fitting, present.requires_grad))
            else:
                self.register_buffer(name, fitting)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._read_settings()

    def __str__(self) -> str:
        return f"{type(self).__name__}(positions={self.positions!r}, strength={self.strength.tolist()})"


def _wide(base: torch.Tensor) -> torch.dtype:
    return base.dtype if base.dtype in (torch.float32, torch.float64) else torch.float32


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
    # float64, so that the squares of very small or large entries neither vanish nor overflow.
    norm = torch.linalg.vector_norm(vector, dim=-1, keepdim=True, dtype=torch.float64)
    if (norm == 0).any():
        raise ValueError("a vector of length zero has no direction")
    return (vector / norm).to(vector.dtype)


def _of_call(mask: torch.Tensor, base: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """The columns of a mask [rows, columns] that are this call's, as Bool[batch or 1, tokens]."""
    batch, count = base.shape[:2]
    mask = torch.atleast_2d(mask.to(base.device, torch.bool))
    if mask.shape[1] != count:
        # One column more, never selected, stands for everything beyond the mask.
        index = tokens.index[0].clamp_max(mask.shape[1])
        mask = torch.nn.functional.pad(mask, (0, 1))[:, index]
    if mask.shape[0] in (1, batch):
        return mask
    if batch % mask.shape[0]:
        raise ValueError(f"positions has {mask.shape[0]} rows, and the batch has {batch}")
    return mask.repeat_interleave(batch // mask.shape[0], 0)


def unpack(settings: torch.Tensor) -> dict[str, Any]:
    """What a `settings` buffer says: the position rule and the kind's options."""
    return dict(json.loads(bytes(settings.tolist())))


def _pack(settings: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(list(json.dumps(settings, sort_keys=True).encode()), dtype=torch.uint8)
