"""Admission: what a request asks for, resolved and checked before anything of it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from subvene.runner.engines.catalogue import ADVICE, Catalogue, Held
from subvene.runner.engines.collecting import Collect
from subvene.runner.engines.errors import RequestError
from subvene.runner.engines.intervals import intervals
from subvene.runner.engines.plan import Plan, PlannedEdit
from subvene.runner.engines.served import ServedIntervention
from subvene.runner.engines.stages import stages
from subvene.specs import Positions

MOST_INTERVALS = 64
"""Of all edits of a request together: the width of the tables in which workers keep them."""


class Wish(BaseModel):
    """One artifact that a request asks for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifact: Annotated[str, Field(min_length=1)]
    strength: FiniteFloat | None = None
    strengths: dict[str, FiniteFloat] | None = None
    positions: Positions | None = None


class Wishes(BaseModel):
    """Everything that a request asks for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    artifacts: tuple[Wish, ...]
    prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    collect: Collect | None = None


@dataclass(frozen=True)
class Asked:
    """One intervention that a request asks for.

    Attributes:
        artifact: the artifact's name.
        digest: the artifact's digest.
        index: the intervention's place in the artifact's file.
        group: its number.
        intervention: what it does.
        strength: in force.
        positions: the rule in force.
    """

    artifact: str
    digest: str
    index: int
    group: int
    intervention: ServedIntervention
    strength: float
    positions: Positions


def parse(asked: object) -> Wishes:
    """Read what a request asks for.

    `"cheerful"`, `"cheerful=1.5"`, `{"artifact": "cheerful", "strength": 1.5, "positions": "response"}`, a
    list of these, `{"artifacts": [...], "prompt_tokens": 7}`, `{"artifacts": [], "collect": {"sites":
    ["block_output[3]"], "start": 4, "end": 9}}`, or any of them as JSON text.

    Raises:
        RequestError: it is none of these.
    """
    if isinstance(asked, str) and asked.lstrip()[:1] in ("[", "{"):
        try:
            asked = json.loads(asked)
        except ValueError as error:
            raise RequestError(f"subvene: expected JSON, found {asked!r:.80} ({error})") from error
    if not (isinstance(asked, Mapping) and "artifacts" in asked):
        asked = {"artifacts": list(asked) if isinstance(asked, list | tuple) else [asked]}
    wishes = [_named(one) if isinstance(one, str) else one for one in _as_list(asked["artifacts"])]
    try:
        return Wishes.model_validate({**asked, "artifacts": wishes})
    except ValidationError as error:
        raise RequestError("; ".join(_problem(one) for one in error.errors())) from error


def admit(
    asked: Wishes, catalogue: Catalogue, prompt: int, *, scores: bool = False
) -> tuple[Plan, list[Asked]]:
    """What is to be done to a request.

    Args:
        asked: what it asks for.
        catalogue: what the engine holds.
        prompt: tokens that the request begins with.
        scores: whether nothing will follow them, so that they are the whole sequence.

    Returns:
        The plan, and every intervention that was asked for, those of strength 0 among them.

    Raises:
        RequestError: with the reason, and what there is instead.
    """
    wanted = [one for wish in asked.artifacts for one in _interventions(wish, catalogue)]
    begins = prompt
    if asked.prompt_tokens is not None:
        if asked.prompt_tokens > prompt:
            raise RequestError(
                f"subvene.prompt_tokens: expected at most {prompt}, all tokens given, found "
                f"{asked.prompt_tokens}"
            )
        begins = asked.prompt_tokens
    known = prompt if scores else None
    acting = [one for one in wanted if one.strength]
    edits = []
    for one, stage in zip(acting, stages([one.intervention for one in acting]), strict=True):
        _check_depth(one, stage, catalogue)
        spans = intervals(one.positions, begins, known)
        edits.append(PlannedEdit(one.group, stage, one.strength, f"{one.digest}.{one.index}", spans))
    for one in wanted:
        intervals(one.positions, begins, known)  # refused at strength 0 too: a sweep is refused as a whole
    if (total := sum(len(edit.positions) for edit in edits)) > MOST_INTERVALS:
        raise RequestError(f"subvene: at most {MOST_INTERVALS} separate runs of positions, found {total}")
    return Plan(begins, tuple(edits)), wanted


def _as_list(given: object) -> list[Any]:
    if isinstance(given, list | tuple):
        return list(given)
    raise RequestError(f"subvene.artifacts: expected a list, found {given!r:.80}")


def _named(text: str) -> dict[str, str | float]:
    """`cheerful` or `cheerful=1.5`."""
    name, equals, strength = text.partition("=")
    if not equals:
        return {"artifact": name}
    try:
        return {"artifact": name, "strength": float(strength)}
    except ValueError:
        raise RequestError(f"{text!r}: expected NAME=NUMBER, found {strength!r}") from None


def _problem(error: Any) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    return f"subvene{path}: {error['msg']}, found {error['input']!r:.80}"


def _interventions(wish: Wish, catalogue: Catalogue) -> list[Asked]:
    held = catalogue.held.get(wish.artifact)
    if held is None:
        raise RequestError(f"no artifact is called {wish.artifact!r}; there are: {catalogue.names}")
    strengths = _strengths(wish, held)
    return [
        Asked(
            wish.artifact,
            held.artifact.digest,
            index,
            group,
            intervention,
            strengths[intervention.name],
            intervention.positions if wish.positions is None else wish.positions,
        )
        for index, (group, intervention) in enumerate(
            zip(held.groups, held.artifact.interventions, strict=True)
        )
    ]


def _strengths(wish: Wish, held: Held) -> dict[str, float]:
    declared = held.artifact.interventions
    names = ", ".join(one.name for one in declared)
    given = dict(wish.strengths or {})
    if wish.strength is not None:
        if wish.strengths is not None:
            raise RequestError(f"{wish.artifact}: give `strength` or `strengths`, not both")
        if len(declared) > 1:
            raise RequestError(
                f"{wish.artifact} has several interventions: give `strengths` by name: {names}"
            )
        given = {declared[0].name: wish.strength}
    if unknown := sorted(set(given) - {one.name for one in declared}):
        raise RequestError(f"{wish.artifact}: no intervention is called {unknown[0]!r}; there are: {names}")
    found = {}
    for one in declared:
        strength = given.get(one.name, one.strength)
        if strength is None:
            raise RequestError(
                f"{wish.artifact}: {one.name!r} declares one strength a row; a request is one row: give one"
            )
        found[one.name] = float(strength)
    return found


def _check_depth(one: Asked, stage: int, catalogue: Catalogue) -> None:
    for edit in one.intervention.edits:
        depth = catalogue.rooms[edit.site].depth
        if stage >= depth:
            raise RequestError(
                f"{one.artifact}: with what comes before it, {stage + 1} edits follow each other at "
                f"{edit.site}, and this engine does {depth}; {ADVICE}: stages: {stage + 1}"
            )
