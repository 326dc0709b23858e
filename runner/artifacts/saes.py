"""From an SAE that a spec names, on the Hub or in a folder, to the tensors that are used of it.

It happens once, before a model is loaded, of all specs that an experiment stands for: from then on a spec
names tensors that it has, as an artifact's does, and what an artifact keeps needs neither the Hub nor the
folder. Of an SAE's weights nothing is kept but what is used.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from subvene.runner.artifacts.sae_releases import fetched_release
from subvene.runner.artifacts.saelens import SaeConfig, SaeError, SaeLensFolder
from subvene.runner.edits.compile import entry_name
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import InterventionSpec, SaeFeatureSpec, Site, tensor_name
from subvene.specs.gates import Gate, MeasuredGate, SaeFeatureGate
from subvene.specs.saes import SaeFolder, SaeRelease, StoredSae

_Declared = TypeVar("_Declared", SaeFeatureSpec, SaeFeatureGate)
_NORMED_AFTER = re.compile(r"post_(feedforward|mlp|self_attn)_layernorm")
"""Norms between what a part of a block gives and the stream, as blocks of transformers call them."""


@dataclass(frozen=True)
class Resolved:
    """A spec all of whose SAEs are tensors.

    Attributes:
        spec: the same, but that every SAE is a `StoredSae`.
        tensors: what these name, by full name.
        places: (what names it, site, layer) of every SAE that was read.
    """

    spec: InterventionSpec
    tensors: Mapping[str, torch.Tensor]
    places: Sequence[tuple[str, Site, int]]

    @property
    def origins(self) -> dict[str, str]:
        """Of every SAE that was read, by the key of its tensors, what it was read as: commit and hash."""
        if not self.tensors:
            return {}
        refs = [ref for _, ref in self.spec.tensor_refs() if isinstance(ref, StoredSae)]
        return {ref.key: ref.origin for ref in refs if ref.origin is not None}

    def check(self, model: torch.nn.Module) -> None:
        """Refuse SAEs of what this model adds to the stream, where a norm stands between.

        Raises:
            SaeError: TransformerLens reads behind that norm, and the site is before it.
        """
        for named, site, layer in self.places:
            if site not in ("attention_output", "mlp_output"):
                continue
            block = Anatomy.of(model).blocks[layer]
            if normed := [name for name, _ in block.named_children() if _NORMED_AFTER.fullmatch(name)]:
                raise SaeError(
                    f"{named}: the SAE reads what {normed[0]} gives, and the site {site} is before that norm"
                )


def with_saes(spec: InterventionSpec, folder: Path | None) -> Resolved:
    """Read the SAEs that a spec names on the Hub or in folders.

    Args:
        spec: the spec.
        folder: its own, to which folders of SAEs are relative.

    Raises:
        SaeError: an SAE is not what it should be, or reads another place than the spec says.
        HubError: the Hub does not give it.
    """
    return Saes.of([spec], folder or Path()).resolved(spec)


_Named = SaeFolder | SaeRelease


@dataclass(frozen=True)
class _Kept:
    """What is kept of an SAE that was read: its config, and the tensors of the latents that are used.

    Attributes:
        sae: what was read, without its weights.
        origin: where, as receipts and errors say it.
        features: the latents, 0-based.
        parts: their tensors, as `SaeLensFolder.tensors` gives them.
    """

    sae: SaeLensFolder
    origin: str
    features: tuple[int, ...]
    parts: Mapping[str, torch.Tensor]

    def tensors(self, features: Sequence[int]) -> dict[str, torch.Tensor]:
        """The tensors of some of these latents.

        Raises:
            SaeError: the SAE has no such latent.
        """
        if missing := set(features) - set(self.features):
            latents = self.sae.config.latents
            raise SaeError(f"{self.origin}: expected latents from 0 to {latents - 1}, found {max(missing)}")
        rows = torch.tensor([self.features.index(feature) for feature in features])
        whole = {"shift"} if self.sae.config.architecture != "topk" else self.parts.keys() - {"decoder"}
        return {
            part: tensor if part in whole else tensor[rows].contiguous()
            for part, tensor in self.parts.items()
        }


@dataclass(frozen=True)
class Saes:
    """The SAEs that some specs name on the Hub or in folders, each read once.

    Attributes:
        kept: what is used of each.
    """

    kept: Mapping[_Named, _Kept]

    @classmethod
    def of(cls, specs: Iterable[InterventionSpec], folder: Path) -> Saes:
        """Read every SAE that specs name.

        Args:
            specs: such as all variants of an experiment, which may name other latents of one SAE each.
            folder: to which folders of SAEs are relative.

        Raises:
            SaeError: an SAE is not what it should be.
            HubError: the Hub does not give it.
        """
        wanted: dict[_Named, set[int]] = {}
        for spec in specs:
            for declared in _named(spec):
                if not isinstance(declared.sae, StoredSae):
                    wanted.setdefault(declared.sae, set()).update(_features(declared))
        kept = {}
        for named, features in wanted.items():
            sae, origin = _opened(named, folder)
            # A point that is chosen later may pair an SAE with latents that a file names beside another one.
            others = {one for of in wanted.values() for one in of if one < sae.config.latents}
            chosen = tuple(sorted(features | others))
            kept[named] = _Kept(replace(sae, weights={}), origin, chosen, sae.tensors(chosen))
        return cls(kept)

    def resolved(self, spec: InterventionSpec) -> Resolved:
        """One of the specs, its SAEs as they were read.

        Raises:
            SaeError: an SAE reads another place than the spec says.
        """
        resolver = _Resolver(self.kept)
        interventions = []
        for i, declared in enumerate(spec.interventions):
            where, key = f"interventions[{i}]", f"sae.{entry_name(spec, i)}"
            if isinstance(declared, SaeFeatureSpec):
                declared = resolver.stored(declared, f"{where}.sae", key)
            if declared.when is not None:
                when = resolver.gate(declared.when, f"{where}.when", key)
                declared = declared.model_copy(update={"when": when})
            interventions.append(declared)
        if not resolver.tensors:
            return Resolved(spec, {}, ())
        return Resolved(
            spec.model_copy(update={"interventions": tuple(interventions)}),
            resolver.tensors,
            resolver.places,
        )


class _Resolver:
    """Puts tensors that were read where a spec names their SAEs."""

    def __init__(self, kept: Mapping[_Named, _Kept]) -> None:
        self.kept = kept
        self.tensors: dict[str, torch.Tensor] = {}
        self.places: list[tuple[str, Site, int]] = []

    def gate(self, when: Gate, where: str, key: str) -> Gate:
        """A gate, the SAEs of its measurements as they were read."""
        number = itertools.count()

        def stored(gate: MeasuredGate) -> MeasuredGate:
            of = f"{key}.gate{next(number)}"
            return self.stored(gate, f"{where}.sae", of) if isinstance(gate, SaeFeatureGate) else gate

        return when.mapped(stored)

    def stored(self, declared: _Declared, where: str, key: str) -> _Declared:
        """The same, its SAE and its place as they were read; as it is, where its tensors are stored."""
        if isinstance(declared.sae, StoredSae):
            return declared
        kept = self.kept[declared.sae]
        config = kept.sae.config
        _check_place(declared, config, f"{where} ({kept.origin})")
        for part, tensor in kept.tensors(_features(declared)).items():
            self.tensors[tensor_name(key, config.site, config.layer, part)] = tensor
        self.places.append((f"{where} ({kept.origin})", config.site, config.layer))
        update = {"sae": kept.sae.stored(key, kept.origin), "site": config.site, "layer": config.layer}
        return declared.model_copy(update=update)


def _named(spec: InterventionSpec) -> Iterator[SaeFeatureSpec | SaeFeatureGate]:
    """All of a spec that names an SAE."""
    for declared in spec.interventions:
        if isinstance(declared, SaeFeatureSpec):
            yield declared
        for _, gate in declared.when.measured() if declared.when is not None else ():
            if isinstance(gate, SaeFeatureGate):
                yield gate


def _features(declared: SaeFeatureSpec | SaeFeatureGate) -> tuple[int, ...]:
    return tuple(declared.features) if isinstance(declared, SaeFeatureSpec) else (declared.feature,)


def _opened(named: _Named, folder: Path) -> tuple[SaeLensFolder, str]:
    if isinstance(named, SaeFolder):
        return SaeLensFolder.read(folder / Path(named.folder).expanduser()), named.folder
    path, origin, overrides = fetched_release(named)
    return SaeLensFolder.read(path, overrides), origin


def _check_place(declared: SaeFeatureSpec | SaeFeatureGate, config: SaeConfig, where: str) -> None:
    given = declared.model_fields_set
    site = declared.site if "site" in given else config.site
    layer = config.layer if declared.layer is None else declared.layer
    if (site, layer) != (config.site, config.layer):
        raise SaeError(
            f"{where}: it was trained on {config.site}[{config.layer}], and the spec puts it at "
            f"{site}[{layer}]; leave site and layer out, or name these"
        )
