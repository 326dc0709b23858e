"""One experiment among those that train together, and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import torch

from subvene.runner.data.examples import Answers, Example, examples_sha256
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import digest
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.identity import model_sha256
from subvene.runner.training.multiplex import EditShape
from subvene.specs import SubveneError
from subvene.specs.recipes.localized_edit import LocalizedEditSpec

# Changes whenever the same job gives other numbers.
_VERSION = 3
# A loss that is smaller by less, relatively, is as small: which batch a row stood in must choose no step.
_ROUNDING = 1e-4


class TrainingError(SubveneError, ValueError):
    """Training cannot begin, or cannot go on; the message says where it stood."""


@dataclass(frozen=True)
class Experiment:
    """One edit to train.

    Attributes:
        name: what progress and errors call it; unique in a job.
        spec: objective, learning rate, epochs and so on; its `data` and `heads` have been resolved into the
            fields below.
        shape: the edit.
        seed: of the order of its pairs.
        train: indices of the examples that it is trained on.
        validation: indices of those that choose its best step; empty: the last step is kept.
    """

    name: str
    spec: LocalizedEditSpec
    shape: EditShape
    seed: int
    train: tuple[int, ...]
    validation: tuple[int, ...] = ()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that go through all pairs once; the last may have fewer pairs."""
        return math.ceil(len(self.train) / self.spec.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps in all, unless it stops early."""
        return self.spec.epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """The learning rate of a step (0-based): transformers' schedule with warm-up."""
        highest = self.spec.learning_rate
        rising = math.ceil(self.spec.warmup * self.steps)
        if step < rising:
            return highest * step / rising
        if self.spec.schedule == "constant":
            return highest
        return highest * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising)))

    def evaluates_after(self, done: int) -> bool:
        """Whether the validation pairs are looked at when so many steps are done."""
        if not self.validation:
            return False
        return done == self.steps or done % (self.spec.evaluate_every or self.steps_per_epoch) == 0


class ProgressRecord(TypedDict):
    """What has happened to one experiment, JSON values: the fields of `Progress`."""

    losses: list[float]
    accuracies: list[float]
    grad_norms: list[float]
    evaluations: list[dict[str, float]]
    best_step: int
    stale: int
    stopped_early: bool
    passes: dict[str, Json]


@dataclass
class Progress:
    """What has happened to one experiment so far; JSON values."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    stale: int = 0
    stopped_early: bool = False
    passes: dict[str, Json] = field(default_factory=dict)

    def record(self) -> ProgressRecord:
        """As a checkpoint keeps it."""
        return {
            "losses": self.losses,
            "accuracies": self.accuracies,
            "grad_norms": self.grad_norms,
            "evaluations": self.evaluations,
            "best_step": self.best_step,
            "stale": self.stale,
            "stopped_early": self.stopped_early,
            "passes": self.passes,
        }

    def is_active(self, experiment: Experiment) -> bool:
        """Whether there are steps left to do."""
        return not self.stopped_early and len(self.losses) < experiment.steps

    def look(self, found: dict[str, float], patience: int | None) -> bool:
        """Take down a look at the validation pairs; whether it is the best by more than rounding."""
        kept = [before["loss"] for before in self.evaluations if before["step"] == self.best_step]
        best = kept[0] if kept else math.inf
        self.evaluations.append(found)
        if best == math.inf or best - found["loss"] > _ROUNDING * max(1.0, abs(best)):
            self.best_step, self.stale = int(found["step"]), 0
            return True
        self.stale += 1
        self.stopped_early = patience is not None and self.stale >= patience
        return False


@dataclass(frozen=True)
class Trained:
    """What one experiment came to.

    Attributes:
        name: the experiment's.
        factors: `{layer}.a` and `{layer}.b`, float32 [factors, n_heads*head_dim], zero outside the heads that
            may be read and written; a constant edit has no `a`.
        losses: mean loss of the pairs of each step.
        accuracies: of each step, the share of its pairs with Δ above rounding; empty for `sft`.
        grad_norms: of each step, before clipping.
        evaluations: of each look at the validation pairs: `step` (how many were done), `loss`, and `accuracy`
            unless the objective is `sft`. The first is that of the untrained edit.
        best_step: after how many steps the factors are those that are given.
        stopped_early: whether patience ran out.
        start: whether the training began anew or at which step it was taken up.
        about: what ran: the effective optimizer, where passes began, the reference.
    """

    name: str
    factors: dict[str, torch.Tensor]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    grad_norms: tuple[float, ...]
    evaluations: tuple[dict[str, float], ...]
    best_step: int
    stopped_early: bool
    start: int
    about: dict[str, Json]


def check(experiments: Sequence[Experiment], *, need_heads: bool = True) -> None:
    """Check that the experiments of a job can be trained.

    Args:
        experiments: of one job.
        need_heads: whether each needs heads to write to.

    Raises:
        TrainingError: naming what is missing.
    """
    if not experiments:
        raise TrainingError("there is no experiment to train")
    names = [experiment.name for experiment in experiments]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TrainingError(f"expected experiments of different names, found {', '.join(twice)} twice")
    for experiment in experiments:
        if not experiment.train:
            raise TrainingError(f"{experiment.name}: there is no example to train on")
        if need_heads and not any(experiment.shape.heads.values()):
            raise TrainingError(f"{experiment.name}: there is no head to write to")


def check_answers(experiments: Sequence[Experiment], answers: Answers) -> None:
    """Check that the wanted answers are others than the unwanted ones, where both are read.

    Raises:
        TrainingError: in every pair they are the same.
    """
    for one in experiments:
        pairs = [(answers.chosen[i], answers.rejected[i]) for i in one.train]
        if one.spec.objective.kind != "sft" and all(chosen == rejected for chosen, rejected in pairs):
            raise TrainingError(
                f"{one.name}: in every pair the wanted answer is the unwanted one, so that there is "
                "nothing to train; look at `fit.data`"
            )


def job_sha256(
    anatomy: Anatomy, examples: Sequence[Example], experiments: Sequence[Experiment], of: str = ""
) -> str:
    """A hash of all that a training depends on; how often it writes checkpoints is not part of that.

    `of` names what is trained where that is not the edits of the shapes.
    """
    about = [
        {
            "name": experiment.name,
            "spec": experiment.spec.model_dump(mode="json", exclude={"data", "heads", "checkpoint_every"}),
            "shape": {
                "heads": [[layer, list(experiment.shape.heads[layer])] for layer in experiment.shape.layers],
                "form": [
                    experiment.shape.read_heads,
                    experiment.shape.rank,
                    experiment.shape.per,
                    experiment.shape.gate,
                    experiment.shape.seed,
                ],
            },
            "seed": experiment.seed,
            "train": list(experiment.train),
            "validation": list(experiment.validation),
        }
        for experiment in experiments
    ]
    return digest(
        [_VERSION, model_sha256(anatomy.model), examples_sha256(examples), about, *([of] if of else [])]
    )
