"""An artifact as an engine runs it: every edit made of columns, or refused with the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from subvene.interventions import REGISTRY, ActivationIntervention, Columns, Sizes, TensorTable
from subvene.interventions.columns import added
from subvene.runner.artifacts.artifact import Artifact
from subvene.runner.edits.compile import check_sizes, entry_name, place
from subvene.runner.engines.errors import EngineError
from subvene.specs import CORE_SITES, InterventionSpec, Positions
from subvene.specs.interventions import BaseIntervention

_DRAWS, _TOLERANCE = 16, 1e-4
# What every kind has and this file carries out. Another field of them all would be passed over in silence.
_KNOWN_FIELDS = {"name", "positions"}


@dataclass(frozen=True)
class SiteEdit:
    """What an intervention does at one site.

    Attributes:
        site: `site[layer]`.
        columns: what it adds, the strength left out.
        expects_change: whether a run in which nothing changed here was silently not steered.
    """

    site: str
    columns: tuple[Columns, ...]
    expects_change: bool

    @property
    def reads(self) -> bool:
        """Whether what it adds depends on what was there."""
        return any(one.reads for one in self.columns)

    @property
    def width(self) -> int:
        """Columns, all forms together."""
        return sum(len(one.b) for one in self.columns)


@dataclass(frozen=True)
class ServedIntervention:
    """One declared intervention.

    Attributes:
        name: as receipts call it.
        kind: its kind.
        strength: the declared one; None where one a row is declared, so that a request has to say.
        positions: the declared rule.
        edits: what it does, in the order of sites.
    """

    name: str
    kind: str
    strength: float | None
    positions: Positions
    edits: tuple[SiteEdit, ...]


@dataclass(frozen=True)
class ServedArtifact:
    """An artifact's interventions in the file's order.

    Attributes:
        name: as requests call it.
        digest: of all its files that count; two artifacts of one digest do the same.
        interventions: what it does.
    """

    name: str
    digest: str
    interventions: tuple[ServedIntervention, ...]


def serve(name: str, artifact: Artifact, sizes: Sizes) -> ServedArtifact:
    """Make an artifact's edits of columns.

    Args:
        name: as requests are to call it.
        artifact: what was read and checked.
        sizes: of the model that is served.

    Raises:
        EngineError: an intervention cannot be run by an engine; every one is listed.
        CompileError: the artifact is of another model.
    """
    spec, problems, served = artifact.spec, [], []
    if artifact.sizes is not None:
        check_sizes(spec, sizes)
    for i, declared in enumerate(spec.interventions):
        where = f"{artifact.folder}: interventions[{i}] ({declared.kind})"
        if problem := undeclared(declared):
            problems.append(f"{where}: {problem}")
            continue
        try:
            table = TensorTable(artifact.tensors, str(artifact.folder))
            built = REGISTRY[declared.kind].build(declared, table, sizes)
            edits = tuple(_site_edit(site, layer, edit) for site, layer, edit in built)
            if len({edit.site for edit in edits}) < len(edits):
                raise EngineError(
                    "it edits one site twice, and an engine does all that it does there at once"
                )
        except EngineError as error:
            problems.append(f"{where}: {error}")
            continue
        served.append(_intervention(spec, i, edits))
    if problems:
        raise EngineError("\n".join(problems))
    return ServedArtifact(name, digest_of(artifact), tuple(served))


def digest_of(artifact: Artifact) -> str:
    """What tells an artifact from any that does something else."""
    hashes = sorted(artifact.fingerprint["sha256"].items())
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]


def columns_of(edit: ActivationIntervention) -> tuple[Columns, ...]:
    """An edit's columns, held against what its class does.

    Raises:
        EngineError: its class states none, or others than it adds.
    """
    if (columns := edit.columns()) is None:
        raise EngineError(
            f"the class {type(edit).__name__} does not say what it adds as columns (`columns()`), and an "
            "engine runs nothing else"
        )
    if not _is_what_it_adds(edit, columns):
        raise EngineError(f"`columns()` of {type(edit).__name__} is not what the class adds")
    return columns


def _intervention(spec: InterventionSpec, i: int, edits: tuple[SiteEdit, ...]) -> ServedIntervention:
    declared = spec.interventions[i]
    strength = declared.strength
    return ServedIntervention(
        name=entry_name(spec, i),
        kind=declared.kind,
        strength=None if isinstance(strength, tuple) else float(strength),
        positions=declared.positions,
        edits=edits,
    )


def undeclared(declared: Any) -> str | None:
    """What this intervention declares that no engine carries out; None: nothing."""
    if declared.module_path is not None:
        return f"it edits {declared.module_path}, and an engine knows the sites {', '.join(CORE_SITES)} only"
    if declared.site is not None and declared.site not in CORE_SITES:
        return f"it edits {declared.site}, and this engine knows the sites {', '.join(CORE_SITES)} only"
    for name, field in BaseIntervention.model_fields.items():
        if name not in _KNOWN_FIELDS and getattr(declared, name) != field.get_default(
            call_default_factory=True
        ):
            instead = "; `subvene serve` without `--engine vllm` does" if declared.is_gated else ""
            return f"`{name}` is not carried out by this engine{instead}"
    return None


def _site_edit(site: str, layer: int | None, edit: ActivationIntervention) -> SiteEdit:
    return SiteEdit(place(site, layer), columns_of(edit), edit.expects_change)


@torch.no_grad()
def _is_what_it_adds(edit: ActivationIntervention, columns: tuple[Columns, ...]) -> bool:
    for h in _drawn(columns):
        for strength in (1.0, 2.0):
            found = edit.edit(h, torch.full((1, 1, 1), strength, dtype=torch.float64)) - h
            expected = strength * added(columns, h)
            scale = max(1e-12, float(expected.abs().max()), _TOLERANCE * float(h.abs().max()))
            if not (found - expected).abs().max() <= _TOLERANCE * scale:
                return False
    return True


def _drawn(columns: tuple[Columns, ...]) -> Iterator[torch.Tensor]:
    """Activations [1, draws, width], float64; along the readers, within the bounds of a cap and beyond."""
    generator = torch.Generator().manual_seed(0)
    width = columns[0].b.shape[1]
    h = torch.randn(1, _DRAWS, width, dtype=torch.float64, generator=generator)
    yield h
    for one in columns:
        bounds = torch.cat([one.low, one.high])
        size = 1 + float(bounds[torch.isfinite(bounds)].abs().max()) if torch.isfinite(bounds).any() else 1.0
        along = one.a.sum(0) / one.a.sum(0).norm().clamp_min(1e-30)
        yield h + 2 * size * torch.linspace(-1, 1, _DRAWS, dtype=torch.float64).view(1, -1, 1) * along
