"""What is on the screen, as the spec that it is: what runs is what is exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from subvene.runner.artifacts.packing import TENSORS, with_file
from subvene.runner.edits.compile import entry_name
from subvene.runner.engines.admission import Wish, Wishes
from subvene.runner.engines.errors import RequestError
from subvene.runner.engines.in_process import strengths_of
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import (
    ConditionSpec,
    ExperimentSpec,
    InterventionSpec,
    ModelSpec,
    PyveneSpec,
    SamplesSpec,
    dump_spec,
    parse_spec,
)
from subvene.specs.interventions import BaseIntervention

BASELINE, STEERED = "baseline", "steered"
LONGEST = 1024
"""Tokens of an answer at most."""
_HEAD = """\
# What the playground showed: the untouched model beside the steered one, greedy.
# `subvene run` on this file gives these answers again. The tensors stay where the artifacts are.
"""


class Screen(BaseModel):
    """What the controls of the page say.

    Attributes:
        prompt: the user's turn.
        system: a system prompt; empty: none.
        max_new_tokens: longest answer.
        artifacts: those that are on, in the order in which they act.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, Field(min_length=1)]
    system: str = ""
    max_new_tokens: Annotated[int, Field(ge=1, le=LONGEST)] = 64
    artifacts: tuple[Wish, ...] = ()

    @property
    def wishes(self) -> Wishes:
        """What is to be done to the steered answer."""
        return Wishes(artifacts=self.artifacts)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt with its system prompt."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class Shown:
    """An artifact of the page.

    Attributes:
        m: its model and interventions.
        folder: where its tensors are.
    """

    m: IntervenedModel
    folder: Path


def exported(screen: Screen, shown: Mapping[str, Shown]) -> str:
    """The screen as an experiment in YAML that `subvene run` runs, checked.

    Raises:
        RequestError: no artifact is on, there is none of that name, or several cannot be one file.
        SpecError: a strength or a prompt is not what a spec may say.
    """
    spec = _spec(screen, shown)
    text = _HEAD + dump_spec(spec)
    parse_spec(text, "what is on the screen")
    return text


def _spec(screen: Screen, shown: Mapping[str, Shown]) -> ExperimentSpec:
    edited = steering(screen, shown)
    system = screen.system or None
    return ExperimentSpec(
        **{name: getattr(edited, name) for name in edited.model_fields_set},
        conditions=(
            ConditionSpec(name=BASELINE, interventions=(), system=system),
            ConditionSpec(name=STEERED, system=system),
        ),
        evaluate=(
            SamplesSpec(kind="samples", prompts=(screen.prompt,), max_new_tokens=screen.max_new_tokens),
        ),
    )


def steering(screen: Screen, shown: Mapping[str, Shown]) -> InterventionSpec:
    """The interventions of all artifacts that are on, in one spec whose tensors lie in their folders.

    Raises:
        RequestError: no artifact is on, there is none of that name, or several cannot be one file.
        SpecError: a strength is not what a spec may say.
    """
    if not screen.artifacts:
        raise RequestError("no artifact is on: switch one on")
    for wish in screen.artifacts:
        if wish.artifact not in shown:
            raise RequestError(f"no artifact is called {wish.artifact!r}; there are: {', '.join(shown)}")
    specs = [shown[wish.artifact].m.spec for wish in screen.artifacts]
    if len(specs) > 1 and any(map(_stands_alone, specs)):
        raise RequestError(
            "an artifact that reads sources, or whose interventions share parameters, stands alone: switch "
            "the others off"
        )
    declared = _named([one for wish in screen.artifacts for one in _changed(wish, shown[wish.artifact])])
    update = {"model": _placed(specs[0].model), "interventions": tuple(declared)}
    return parse_spec(dump_spec(specs[0].model_copy(update=update)), "what is on the screen")


def _stands_alone(spec: InterventionSpec) -> bool:
    shares = any(isinstance(one, PyveneSpec) and one.share is not None for one in spec.interventions)
    return bool(spec.sources) or shares


def _changed(wish: Wish, artifact: Shown) -> list[BaseIntervention]:
    """An artifact's interventions at the strengths and positions asked for, their tensors by a path."""
    spec = artifact.m.spec
    strengths = strengths_of(wish, artifact.m)
    found: list[BaseIntervention] = []
    for i, declared in enumerate(with_file(spec, str((artifact.folder / TENSORS).absolute())).interventions):
        name = entry_name(spec, i)
        update: dict[str, object] = {"name": name}
        if isinstance(declared.strength, tuple) and name not in strengths:
            raise RequestError(f"{wish.artifact}: {name!r} declares one strength a row: give one")
        if name in strengths:
            update[declared.strength_field()] = strengths[name]
        if wish.positions is not None:
            update["positions"] = wish.positions
        found.append(declared.model_copy(update=update))
    return found


def _named(declared: list[BaseIntervention]) -> list[BaseIntervention]:
    """The interventions, those that share a name with another numbered."""
    times = Counter(one.name for one in declared)
    taken = {one.name for one in declared if times[one.name] == 1}
    found = []
    for one in declared:
        name = one.name
        if times[name] > 1:
            numbers = (f"{name}_{n}" for n in range(1, len(declared) + len(taken) + 2))
            name = next(number for number in numbers if number not in taken)
            taken.add(name)
        found.append(one.model_copy(update={"name": name}))
    return found


def _placed(model: ModelSpec) -> ModelSpec:
    """The model, its folder by a path that holds wherever the file is put."""
    folder = Path(model.name)
    return model.model_copy(update={"name": str(folder.resolve())}) if folder.is_dir() else model
