"""Any class of pyvene's own interventions, from the allow-list of its spec, at any site.

pyvene's classes swap, add or rotate in a source activation. Here the source is constant (a stored tensor) or
what the runner read from another run, the class is applied to each token (and head) on its own, and the
tokens that are not selected keep their activation. How it is made of a spec, `pyvene_declared` says.
"""

from __future__ import annotations

from typing import Any, Self

import torch

from subvene.interventions.base import ActivationIntervention, unpack
from subvene.interventions.positions import Tokens
from subvene.interventions.pyvene_declared import declared_class
from subvene.interventions.pyvene_inner import make_inner
from subvene.interventions.rotation import stored_state
from subvene.interventions.tensors import Sizes, TensorError, TensorTable, stored_name
from subvene.specs import PyveneSpec, is_cell_key

# Classes that put the source's part of a space in the place of the base's: of equal vectors they change none.
# Autoencoders and principal components give back their reconstruction.
_INTERCHANGES = frozenset(
    {
        "VanillaIntervention",
        "RotatedSpaceIntervention",
        "LowRankRotatedSpaceIntervention",
        "BoundlessRotatedSpaceIntervention",
        "SigmoidMaskRotatedSpaceIntervention",
        "SigmoidMaskIntervention",
    }
)


class PyveneIntervention(ActivationIntervention):
    """h ← h + s·(f(h, source) − h), f being the wrapped pyvene class.

    Args:
        inner: the pyvene intervention; see `make_inner`.
        source: constant source activation, shape [width]; None for classes without one.
        **kwargs: see `ActivationIntervention`; `options` describe `inner` so that it can be rebuilt.
    """

    kind = "pyvene"
    buffer_names = ("source",)

    def __init__(
        self, inner: torch.nn.Module | None = None, source: torch.Tensor | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.inner = inner
        self.register_buffer("source", torch.zeros(0) if source is None else source.detach().float())

    @classmethod
    def build(cls, spec: PyveneSpec, table: TensorTable, sizes: Sizes) -> list[tuple[str, int | None, Self]]:
        declared = declared_class(spec, table, sizes)
        edit = cls(
            declared.inner,
            declared.source,
            strength=torch.tensor(spec.strength),
            positions=spec.positions,
            options=declared.options,
        )
        site = declared.part.site
        return [(site, None if site != spec.site else spec.layer, edit)]

    def stored(self, key: str, site: str, layer: int | None) -> dict[str, torch.Tensor]:
        parameters = stored_state(self._made())
        prefix = key if is_cell_key(key) else f"{key}.state"
        stored = {f"{prefix}.{name}": value for name, value in parameters.items()}
        if self.source.numel():
            stored[stored_name(key, site, layer)] = self.source
        return stored

    def forward(
        self,
        base: torch.Tensor,
        source: torch.Tensor | None = None,
        subspaces: Any = None,
        *,
        tokens: Tokens | None = None,
        positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if source is not None and tokens is None:
            # Stock pyvene has gathered the tokens of a call's `unit_locations` from both runs, whole width.
            source = self.part(source)
            positions = torch.ones(base.shape[:2], dtype=torch.bool, device=base.device)
        return super().forward(base, source, subspaces, tokens=tokens, positions=positions, **kwargs)

    def edit(
        self,
        h: torch.Tensor,
        scale: torch.Tensor,
        *,
        module_input: torch.Tensor | None = None,
        source: torch.Tensor | None = None,
        **context: Any,
    ) -> torch.Tensor:
        if self.collects:
            return h
        base = self.part(h)
        source = self._source_for(base, source)
        if self.needs_module_input:
            if module_input is None:
                raise ValueError(
                    "SkipIntervention needs the module's input, which only subvene's runner passes on"
                )
            source = self.part(module_input.to(h.dtype))
        # pyvene's classes mix dtypes only by accident: those with parameters work in theirs.
        inner, width = self._made(), self.options["width"]
        if width is not None and self._unit(base) != width:
            raise TensorError(
                f"{self.options['class']} was made for vectors of {width}, and here they have "
                f"{self._unit(base)}; name another module"
            )
        dtype = next((p.dtype for p in inner.parameters() if p.is_floating_point()), h.dtype)
        edited = self._applied(inner, base.to(dtype), None if source is None else source.to(dtype))
        edited = edited.to(h.dtype)
        if source is not None and self.options["class"] in _INTERCHANGES:
            # A change of basis and back would leave its rounding where there is nothing to exchange.
            same = (source == base).view(*base.shape[:-1], -1, self._unit(base)).all(-1, keepdim=True)
            shape = (*base.shape[:-1], same.shape[-2], self._unit(base))
            edited = torch.where(same, base.view(shape), edited.view(shape)).view_as(base)
        # lerp returns either end exactly, so that strength 1 is pyvene's own result bit for bit.
        edited = torch.lerp(base, edited, scale.expand_as(base))
        if (columns := self._columns(h)) is None:
            return edited
        return h.index_copy(-1, columns, edited)

    def part(self, h: torch.Tensor) -> torch.Tensor:
        """The columns of `h` [batch, tokens, width] that are edited, and that a source is put into."""
        columns = self._columns(h)
        return h if columns is None else h.index_select(-1, columns)

    def _columns(self, h: torch.Tensor) -> torch.Tensor | None:
        columns = self.options.get("columns")
        return None if columns is None else torch.tensor(columns, device=h.device)

    def _unit(self, base: torch.Tensor) -> int:
        """How wide the vectors are that the class is applied to, one after the other."""
        return int(self.options.get("unit") or base.shape[-1])

    def _applied(
        self, inner: torch.nn.Module, base: torch.Tensor, source: torch.Tensor | None
    ) -> torch.Tensor:
        """What the class makes of `base` [batch, tokens, width], as pyvene does: one unit a row."""
        subspaces = self.options["subspaces"]
        if not _is_by_row(subspaces):
            return self._rows(inner, base, source, subspaces)
        if len(base) % len(subspaces):
            raise ValueError(
                f"subspaces has {len(subspaces)} lists, one per row, and the batch {len(base)} rows"
            )
        repeat = len(base) // len(subspaces)
        edited = [
            self._rows(
                inner,
                base[row : row + 1],
                None if source is None else source[row : row + 1],
                subspaces[row // repeat],
            )
            for row in range(len(base))
        ]
        return torch.cat(edited)

    def _rows(
        self, inner: torch.nn.Module, base: torch.Tensor, source: torch.Tensor | None, subspaces: Any
    ) -> torch.Tensor:
        unit = self._unit(base)
        # pyvene's classes write into their argument.
        rows = base.reshape(-1, unit).clone()
        given = None if source is None else source.reshape(-1, unit)
        return inner(rows, given, None if subspaces is None else [subspaces] * len(rows)).view_as(base)

    def set_source_representation(self, source_representation: torch.Tensor) -> None:
        """Put another constant source in the place of the declared one.

        Args:
            source_representation: shape [width], as the declared one has.

        Raises:
            TypeError: the class takes no source.
            ValueError: another shape, or not finite.
        """
        if not self.source.numel():
            raise TypeError(f"{self.options['class']} takes no source")
        if source_representation.shape != self.source.shape or not source_representation.isfinite().all():
            shape = list(source_representation.shape)
            raise ValueError(
                f"source_representation has shape {shape}, expected {list(self.source.shape)} finite numbers"
            )
        self.source.copy_(source_representation.detach())

    def _source_for(self, base: torch.Tensor, source: torch.Tensor | None) -> torch.Tensor | None:
        if self.reads is not None:
            if source is None:
                raise ValueError(
                    f"{self.options['class']} takes what the run of {self.reads!r} computed, which only "
                    "subvene's runner reads and passes on"
                )
        elif not self.source.numel():
            return None
        else:
            source = self.source
        # A source of one number would be spread over any width.
        if source.shape[-1] != base.shape[-1]:
            raise TensorError(
                f"the source has shape [{source.shape[-1]}], and the activation that it is put into is "
                f"{base.shape[-1]} wide; store a source of that width, or name another module"
            )
        return source.to(base.dtype).expand_as(base)

    def _read_settings(self) -> None:
        super()._read_settings()
        # Stock pyvene saves it, and by it decides whether the source of a call is handed on.
        self.is_source_constant = self.reads is None

    @property
    def reads(self) -> str | None:
        """The source whose run it reads; None for a constant one, and for classes without."""
        return self.options.get("reads")

    def _made(self) -> torch.nn.Module:
        if self.inner is None:
            raise ValueError("this intervention has no pyvene class yet; load its state first")
        return self.inner

    def collected(self, h: torch.Tensor) -> torch.Tensor:
        """What a class that only reads keeps of `h` [batch, tokens, width]: all of it, or its subspaces."""
        h, subspaces = self.part(h), self.options["subspaces"]
        if subspaces is None:
            return h
        unit, inner = self._unit(h), self._made()
        by_row = _is_by_row(subspaces)
        kept = []
        for row, activation in enumerate(h):
            chosen = subspaces[row * len(subspaces) // len(h)] if by_row else subspaces
            units = activation.reshape(-1, unit)
            kept.append(inner(units, None, [chosen] * len(units)).view(len(activation), -1))
        return torch.stack(kept)

    @property
    def collects(self) -> bool:  # type: ignore[override]
        """Whether the class only reads (`CollectIntervention`)."""
        return self.options.get("class") == "CollectIntervention"

    @property
    def needs_module_input(self) -> bool:  # type: ignore[override]
        """Whether the source is the input of the module whose output is edited (`SkipIntervention`)."""
        return self.options.get("class") == "SkipIntervention"

    @property
    def instead(self) -> str | None:
        if self.options.get("class") == "AdditionIntervention":
            return "`kind: steering`, which adds a vector as AdditionIntervention does"
        return None

    @property
    def acts_alone(self) -> bool:  # type: ignore[override]
        return not self.needs_module_input and self.reads is None

    @property
    def expects_change(self) -> bool:
        return not self.collects

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The inner class is made before its parent is loaded, which would take its state for a stranger's.
        if (settings := state_dict.get(f"{prefix}settings")) is not None:
            inner_prefix = f"{prefix}inner."
            inner = {n: t for n, t in state_dict.items() if n.startswith(inner_prefix)}
            state = {n.removeprefix(inner_prefix): t for n, t in inner.items()}
            shapes = {n: t.shape for n, t in state.items()}
            options = unpack(settings)["options"]
            made_for = None if self.inner is None else self.options
            if made_for != options or {n: t.shape for n, t in self._made().state_dict().items()} != shapes:
                self.inner = make_inner(options, state)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _is_by_row(subspaces: Any) -> bool:
    return subspaces is not None and not isinstance(subspaces[0], int)
