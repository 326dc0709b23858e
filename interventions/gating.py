"""How far an intervention is open at a token, from what its gate has read: tensors in, tensors out.

Who reads, and keeps what earlier calls have read, is the runner's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from subvene.interventions.measurements import Measurement
from subvene.interventions.tensors import stored_name
from subvene.specs.gates import Moment
from subvene.specs.sites import Site

Side = Literal["above", "below"]


def threshold_part(measure: str, tokens: str) -> str:
    """The part of a tensor's name under which a fitted threshold stands, for what it was fitted on alone."""
    return f"{measure}_{tokens}_threshold"


def side_part(measure: str, tokens: str) -> str:
    """Likewise its side: 1 above, -1 below."""
    return f"{measure}_{tokens}_side"


@dataclass(frozen=True)
class Rule:
    """What opens a measured gate.

    Attributes:
        site: where it is read.
        layer: 0-based.
        threshold: of the measurement.
        side: on which side of it the gate is open.
        ramp: how far beyond the threshold it is wholly open; 0: a step.
        decide: when.
        of_mean: whether the mean activation of the prompt is measured, rather than a token's own.
        is_fitted: whether threshold and side are stored, and no field of the spec.
    """

    site: Site
    layer: int
    threshold: float
    side: Side
    ramp: float
    decide: Moment
    of_mean: bool
    is_fitted: bool

    def opening(self, value: torch.Tensor) -> torch.Tensor:
        """From 0 (closed) to 1 (open); NaN, which lies on no side, is closed."""
        beyond = value - self.threshold if self.side == "above" else self.threshold - value
        if self.ramp:
            return (beyond / self.ramp).clamp(0, 1).nan_to_num(0.0)
        return (beyond > 0).to(value.dtype)


class Reading(torch.nn.Module):
    """A measured gate: what is measured, where, and what opens it.

    Args:
        measurement: what is measured.
        rule: what opens it.

    Attributes:
        component: the module's input or output that is read; compilation says it.
        columns: of that tensor the site has; None: all of them.
    """

    settings: torch.Tensor

    def __init__(self, measurement: Measurement, rule: Rule) -> None:
        super().__init__()
        self.measurement, self.rule = measurement, rule
        self.component = ""
        self.columns: tuple[int, ...] | None = None
        # State, so that what is known by its state is known with its gate.
        self.register_buffer("settings", _packed(asdict(rule) | measurement.told))

    def of_site(self, whole: torch.Tensor) -> torch.Tensor:
        """The part of a module's activation [..., width] that is read, float32 or wider."""
        if self.columns is not None:
            whole = whole[..., list(self.columns)]
        return whole.detach().to(torch.promote_types(whole.dtype, torch.float32))

    def stored(self, key: str) -> dict[str, torch.Tensor]:
        """What an artifact keeps of it: full tensor name → tensor."""
        rule = self.rule
        kept = self.measurement.stored(key, rule.site, rule.layer)
        if rule.is_fitted:
            side = 1.0 if rule.side == "above" else -1.0
            told = self.measurement.measure, "mean" if rule.of_mean else "last"
            for part, value in ((threshold_part(*told), rule.threshold), (side_part(*told), side)):
                kept[stored_name(key, rule.site, rule.layer, part)] = torch.tensor(value)
        return kept


@dataclass(frozen=True)
class Node:
    """A gate: a reading by its number, or several gates together.

    Attributes:
        place: where it stands in the spec, `when.any[0]`.
        how: what it is.
        parts: the gates that it is made of.
        reading: of `measure`, its number.
        must_open: whether a run in which it never opens has failed.
    """

    place: str
    how: Literal["measure", "any", "all", "not"]
    parts: tuple[Node, ...] = ()
    reading: int = -1
    must_open: bool = False

    def walk(self) -> Iterator[Node]:
        """This one and all that are in it, the outer ones first."""
        yield self
        for part in self.parts:
            yield from part.walk()

    def openings(self, of_readings: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """How far each of `walk` is open, from how far the readings are."""
        parts = [part.openings(of_readings) for part in self.parts]
        if self.how == "measure":
            own = of_readings[self.reading]
        elif self.how == "not":
            own = 1 - parts[0][0]
        else:
            own = parts[0][0]
            for part in parts[1:]:
                own = torch.maximum(own, part[0]) if self.how == "any" else torch.minimum(own, part[0])
        return [own, *(opening for part in parts for opening in part)]


@dataclass(frozen=True)
class Schedule:
    """The part of the response for which an intervention acts.

    Attributes:
        begin: the first token of the response whose choice is steered; 0 is chosen at the cursor.
        end: the first whose choice no longer is; None: none.
        decay: what the strength is multiplied by at every further token.
        most: how many tokens of a sequence are edited at most; None: all.
    """

    begin: int
    end: int | None
    decay: float
    most: int | None

    def factor(self, index: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """What the strength is multiplied by at positions `index` [batch, tokens]; float32.

        Args:
            index: 0-based positions.
            prompt: [batch], tokens of the prompts.
        """
        n = index - (prompt.unsqueeze(1) - 1) - self.begin
        inside = n >= 0
        if self.end is not None:
            inside &= n < self.end - self.begin
        faded = torch.pow(torch.tensor(self.decay, device=n.device), n.clamp_min(0).float())
        return torch.where(inside, faded, 0.0)


class Gating(torch.nn.Module):
    """When one declared intervention acts: its gate, and its part of the response.

    Args:
        gate: None where only the schedule decides.
        readings: that the gate is made of, in the order of their numbers.
        schedule: None: everywhere.
    """

    settings: torch.Tensor

    def __init__(self, gate: Node | None, readings: Sequence[Reading], schedule: Schedule | None) -> None:
        super().__init__()
        self.gate, self.schedule = gate, schedule
        self.readings = torch.nn.ModuleList(readings)
        told = {"gate": None if gate is None else asdict(gate)}
        told["schedule"] = None if schedule is None else asdict(schedule)
        self.register_buffer("settings", _packed(told))

    def read(self) -> list[Reading]:
        """The readings."""
        return [reading for reading in self.readings if isinstance(reading, Reading)]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its gate and all that are in it, the outer ones first."""
        return () if self.gate is None else tuple(self.gate.walk())

    @property
    def most(self) -> int | None:
        """How many tokens of a sequence are edited at most; None: all."""
        return None if self.schedule is None else self.schedule.most

    @property
    def needs_prompt(self) -> bool:
        """Whether it cannot be decided without knowing where the prompt ends."""
        return self.schedule is not None or any(r.rule.decide != "token" for r in self.read())

    @property
    def is_by_turn(self) -> bool:
        """Whether something in it is decided at every turn."""
        return any(reading.rule.decide == "turn" for reading in self.read())

    @property
    def looks_back(self) -> bool:
        """Whether what it says of a token depends on what it said of other tokens of the response."""
        return self.most is not None and any(reading.rule.decide == "token" for reading in self.read())

    @property
    def is_graded(self) -> bool:
        """Whether it opens by degrees."""
        fades = self.schedule is not None and self.schedule.decay != 1
        return fades or any(reading.rule.ramp for reading in self.read())


def _packed(told: Mapping[str, object]) -> torch.Tensor:
    return torch.tensor(list(json.dumps(told, sort_keys=True).encode()), dtype=torch.uint8)
