"""The artifacts that an engine holds, and where in its buffers each of them lies.

The front end and every worker keep one and do the same to it in the same order, so that a number means the
same everywhere. What is compiled into an engine are sites, columns and stages; which artifact fills them may
change while it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.served import ServedArtifact
from subvene.runner.engines.stages import stages

ADVICE = "start the engine with room to spare (`reserve`)"


@dataclass(frozen=True)
class Reserve:
    """Room that an engine keeps for artifacts that come later, and for requests that name several.

    Attributes:
        sites: `site[layer]` that can be edited beside those of the artifacts it starts with.
        columns: free columns at each site; a steering vector or a cap takes one, an edit of rank r takes r.
        interventions: how many more interventions there may be at one time.
        stages: how many edits that do not commute can follow each other at one site in one request.
    """

    sites: tuple[str, ...] = ()
    columns: int = 0
    interventions: int = 0
    stages: int = 2

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From what a setting says.

        Raises:
            EngineError: it says something else.
        """
        if unknown := sorted(set(given) - set(cls.__dataclass_fields__)):
            known = ", ".join(cls.__dataclass_fields__)
            raise EngineError(f"reserve: expected {known}, found {', '.join(unknown)}")
        counts = {name: value for name, value in given.items() if name != "sites"}
        for name, value in counts.items():
            if not isinstance(value, int) or value < (name == "stages"):
                raise EngineError(f"reserve: {name}: expected a whole number, found {value!r}")
        return cls(sites=tuple(given.get("sites", ())), **counts)


@dataclass
class Room:
    """The room at one site.

    Attributes:
        depth: stages.
        reads: whether a column may depend on the activation.
        columns: for each column the group (the intervention's number) that has it; None: free.
    """

    depth: int
    reads: bool
    columns: list[int | None] = field(default_factory=list)

    def free(self) -> list[int]:
        """The columns that nobody has."""
        return [i for i, group in enumerate(self.columns) if group is None]


@dataclass(frozen=True)
class Held:
    """An artifact that is held.

    Attributes:
        artifact: what it does.
        groups: the number of each of its interventions.
        columns: site → the columns that it has there, in the order of its interventions and their columns.
    """

    artifact: ServedArtifact
    groups: tuple[int, ...]
    columns: Mapping[str, tuple[int, ...]]


class Catalogue:
    """What is held, and the room there is.

    Args:
        artifacts: what the engine starts with; there is room for them.
        reserve: room beside.
    """

    def __init__(self, artifacts: Iterable[ServedArtifact], reserve: Reserve | None = None) -> None:
        reserve = reserve or Reserve()
        self.held: dict[str, Held] = {}
        self.rooms: dict[str, Room] = {site: Room(reserve.stages, reads=True) for site in reserve.sites}
        first = list(artifacts)
        self.groups: list[str | None] = []
        for artifact in first:
            depth = _depths(artifact)
            for site, width in _widths(artifact).items():
                room = self.rooms.setdefault(site, Room(reserve.stages, reads=reserve.columns > 0))
                room.depth = max(room.depth, depth[site])
                room.columns += [None] * width
                room.reads |= _reads(artifact, site)
            self.groups += [None] * len(artifact.interventions)
        self.groups += [None] * reserve.interventions
        for room in self.rooms.values():
            room.columns += [None] * reserve.columns
        for artifact in first:
            self.add(artifact)

    @property
    def depth(self) -> int:
        """The most stages at any site."""
        return max((room.depth for room in self.rooms.values()), default=1)

    def add(self, artifact: ServedArtifact) -> Held:
        """Give an artifact its place.

        Raises:
            EngineError: one of its name is held already, or there is no room; nothing has changed then.
        """
        if artifact.name in self.held:
            raise EngineError(f"an artifact called {artifact.name!r} is held already; remove it first")
        self._check_room(artifact)
        free = [i for i, owner in enumerate(self.groups) if owner is None]
        groups = tuple(free[: len(artifact.interventions)])
        columns: dict[str, list[int]] = {}
        for group, intervention in zip(groups, artifact.interventions, strict=True):
            self.groups[group] = artifact.name
            for edit in intervention.edits:
                room = self.rooms[edit.site]
                taken = room.free()[: edit.width]
                for column in taken:
                    room.columns[column] = group
                columns.setdefault(edit.site, []).extend(taken)
        held = Held(artifact, groups, {site: tuple(taken) for site, taken in columns.items()})
        self.held[artifact.name] = held
        return held

    def remove(self, name: str) -> Held:
        """Free an artifact's place.

        Raises:
            EngineError: none of that name is held.
        """
        if name not in self.held:
            raise EngineError(f"no artifact is called {name!r}; there are: {self.names}")
        held = self.held.pop(name)
        for group in held.groups:
            self.groups[group] = None
        for site, taken in held.columns.items():
            for column in taken:
                self.rooms[site].columns[column] = None
        return held

    @property
    def names(self) -> str:
        """Every name, in words."""
        return ", ".join(self.held) or "none"

    def _check_room(self, artifact: ServedArtifact) -> None:
        depths, name = _depths(artifact), artifact.name
        for site, width in _widths(artifact).items():
            if (room := self.rooms.get(site)) is None:
                raise EngineError(
                    f"{name}: this engine was not built to edit {site}; {ADVICE}: sites: [{site}]"
                )
            if (free := len(room.free())) < width:
                raise EngineError(f"{name}: {site} has {free} free columns, and it needs {width}; {ADVICE}")
            if not room.reads and _reads(artifact, site):
                raise EngineError(
                    f"{name}: this engine was built for constant edits at {site}, and one of its edits "
                    f"reads the activation; {ADVICE}: columns: {width}"
                )
            if room.depth < depths[site]:
                raise EngineError(
                    f"{name}: {depths[site]} of its edits follow each other at {site}, and this engine does "
                    f"{room.depth}; {ADVICE}: stages: {depths[site]}"
                )
        if (free := self.groups.count(None)) < len(artifact.interventions):
            raise EngineError(f"{name}: room for {free} more interventions; {ADVICE}")


def _widths(artifact: ServedArtifact) -> dict[str, int]:
    """Site → columns of all interventions there."""
    widths: dict[str, int] = {}
    for intervention in artifact.interventions:
        for edit in intervention.edits:
            widths[edit.site] = widths.get(edit.site, 0) + edit.width
    return widths


def _reads(artifact: ServedArtifact, site: str) -> bool:
    return any(edit.reads for one in artifact.interventions for edit in one.edits if edit.site == site)


def _depths(artifact: ServedArtifact) -> dict[str, int]:
    """Site → stages that the artifact needs there by itself."""
    depths: dict[str, int] = {}
    for stage, intervention in zip(stages(artifact.interventions), artifact.interventions, strict=True):
        for edit in intervention.edits:
            depths[edit.site] = max(depths.get(edit.site, 1), stage + 1)
    return depths
