"""Activations that a request has collected: what it may ask for, and how they travel.

A request that collects is a text that is given in full. It is read as the untouched model has it, at sites
that the engine was started for, and gets the mean over one span of its tokens.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, NotRequired, Self, TypedDict

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from subvene.interventions import Sizes
from subvene.runner.engines.errors import EngineError, RequestError
from subvene.specs import CORE_SITES

_PLACE = re.compile(r"(\w+)\[(\d+)\]")


class Collect(BaseModel):
    """What a request has collected: the mean over [start, end) of its tokens, at each of some sites."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: Annotated[tuple[str, ...], Field(min_length=1)]
    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=1)]

    def check(self, tokens: int, there: Collection[str]) -> None:
        """Refuse what is not there.

        Args:
            tokens: of the text.
            there: the sites that the engine collects at.

        Raises:
            RequestError: naming what there is.
        """
        if not self.start < self.end <= tokens:
            raise RequestError(
                f"subvene.collect: expected a span within the {tokens} tokens given, found {self.start} to "
                f"{self.end}"
            )
        if missing := sorted(set(self.sites) - set(there)):
            raise RequestError(
                f"subvene.collect.sites: this engine was not started to collect at {', '.join(missing)}; it "
                f"does at: {', '.join(there) or 'none'}"
            )


@dataclass(frozen=True)
class Collected:
    """The means of one text at one site.

    Attributes:
        mean: of the activations, float32 [width].
        norm: of ‖h‖.
    """

    mean: np.ndarray
    norm: float

    def to_json(self) -> CollectedRecord:
        """As JSON values: the mean as base64 of its float32s, little-endian."""
        data = base64.b64encode(self.mean.astype("<f4").tobytes()).decode()
        return {"mean": data, "norm": self.norm}

    @classmethod
    def from_json(cls, record: CollectedRecord) -> Self:
        """What `to_json` wrote."""
        return cls(np.frombuffer(base64.b64decode(record["mean"]), "<f4"), record["norm"])


class CollectedRecord(TypedDict):
    """`Collected` as JSON values."""

    mean: str
    norm: float


class Sums(TypedDict):
    """What a rank has added up for a request.

    Attributes:
        tokens: how many of the span it has seen, by site.
        sums: by site Σ h and Σ ‖h‖, float32 [width here + 1] as bytes.
        problem: why there is nothing.
    """

    tokens: dict[str, int]
    sums: dict[str, bytes]
    problem: NotRequired[str | None]


def joined(collect: Collect, ranks: Sequence[Sums]) -> dict[str, Collected]:
    """What ranks have added up, by site; heads lie in parts on ranks, in their order.

    Raises:
        EngineError: a token of the span was not seen, or seen twice.
    """
    n, found = collect.end - collect.start, {}
    for site in collect.sites:
        parts = [np.frombuffer(rank["sums"][site], "<f4") for rank in ranks if site in rank["sums"]]
        seen = [rank["tokens"][site] for rank in ranks if site in rank["tokens"]]
        if not parts or set(seen) != {n}:
            raise EngineError(f"collect: {site}: expected {n} tokens of the span, found {seen or 'none'}")
        split = site.startswith("attention_heads[")
        mean = np.concatenate([part[:-1] for part in (parts if split else parts[:1])]) / np.float32(n)
        found[site] = Collected(mean, float(parts[0][-1]) / n)
    return found


def check_places(places: Sequence[str], sizes: Sizes) -> None:
    """Refuse sites that an engine does not collect at.

    Raises:
        EngineError: naming the first.
    """
    for place in places:
        named = _PLACE.fullmatch(place)
        if named is None or named[1] not in CORE_SITES or int(named[2]) >= sizes.n_layers:
            raise EngineError(
                f"collect: expected SITE[LAYER], of {', '.join(CORE_SITES)} and layers 0 to "
                f"{sizes.n_layers - 1}, found {place!r}"
            )


def told(collected: Mapping[str, Collected]) -> dict[str, CollectedRecord]:
    """By site, as JSON values."""
    return {site: one.to_json() for site, one in collected.items()}
