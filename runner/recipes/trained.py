"""What recipes share that train an edit: their data, what they hold out, and how a training is told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from subvene.runner.data.examples import Example, Keyed, split
from subvene.runner.data.preference_rows import Preference, PreferenceError, preferences_of
from subvene.runner.data.preferences import Data, Preferences, preferences_sha256, read_data, used
from subvene.runner.data.truthfulqa.questions import Question, given_questions
from subvene.runner.data.truthfulqa.splits import validation_keys
from subvene.runner.files.json_value import Json
from subvene.runner.training.experiments import Experiment, Trained
from subvene.specs import SubveneError
from subvene.specs.preferences import TruthfulPairsSpec
from subvene.specs.recipes.trained import TrainedRecipe
from subvene.specs.rows import given_rows, tuples_named


def held_out_keys(spec: TrainedRecipe, questions: Sequence[Question], seed: int) -> frozenset[str]:
    """Keys of the questions that an edit is validated with and not trained on.

    Args:
        spec: the recipe.
        questions: those that it may see.
        seed: the experiment's.
    """
    return validation_keys(used(spec.data, questions), spec.validation or 0.0, spec.own_seed(seed))


def read_trained(spec: TrainedRecipe, folder: Path) -> Data:
    """The data that a spec names."""
    return read_data(spec.data, folder, completions=spec.objective.kind == "sft")


def given_trained(spec: TrainedRecipe, data: Any) -> Data:
    """Data that were handed over: rows in any form, or tuples (prompt, wanted answer, unwanted answer)."""
    if isinstance(spec.data, TruthfulPairsSpec):
        return given_questions(data)
    if isinstance(data, Sequence) and all(isinstance(one, Preference) for one in data):
        return data
    names = (spec.data.prompt, spec.data.chosen, spec.data.rejected)
    rows = given_rows(tuples_named(data, names, PreferenceError), PreferenceError)
    return preferences_of(rows, spec.data, "data", completions=spec.objective.kind == "sft")


def check_sides(spec: TrainedRecipe, data: Data, seed: int, error: type[SubveneError]) -> None:
    """Check that there are questions on every side of the split.

    Raises:
        SubveneError: the `error`, where a share leaves none.
    """
    questions = [one for one in data if isinstance(one, Question)]
    seen: Sequence[Keyed] = used(spec.data, questions) if questions else data
    count = len({one.key for one in seen})
    train, held_out = split(seen, spec.validation, spec.own_seed(seed))
    if not train or (spec.validation is not None and not held_out):
        raise error(
            f"fit.validation: {spec.validation} of {count} questions leaves nothing to "
            f"{'validate with' if train else 'train on'}; give more questions, another share, or "
            "`validation: null`"
        )


def refuse_zero(
    written: Sequence[torch.Tensor], provenance: Mapping[str, Json], error: type[SubveneError]
) -> None:
    """Refuse an edit that training has left where it began.

    Raises:
        SubveneError: the `error`, if all that the edit writes is zero.
    """
    if not any(tensor.any() for tensor in written):
        raise error(
            "fit: the trained edit is zero and would do nothing: "
            + (
                "no step lowered the loss on the validation questions; lower the learning rate, give more "
                "data, or set `validation: null` to keep the last step"
                if provenance["best_step"] == 0
                else "training left it where it began; raise the learning rate, or look at the data"
            )
        )


def epoch_losses(trained: Trained, experiment: Experiment) -> list[float]:
    """The mean loss of the steps of each epoch."""
    per_epoch = experiment.steps_per_epoch
    epochs = [trained.losses[i : i + per_epoch] for i in range(0, len(trained.losses), per_epoch)]
    return [round(sum(losses) / len(losses), 6) for losses in epochs]


def provenance_of(
    spec: TrainedRecipe,
    site: str,
    data: Data,
    experiment: Experiment,
    examples: Sequence[Example],
    trained: Trained,
) -> dict[str, Json]:
    """How a trained edit came about, as far as it does not depend on what was trained."""
    about: dict[str, Json] = {
        "recipe": spec.recipe,
        "key": spec.key,
        "site": site,
        "data_sha256": preferences_sha256(data),
        "questions": len({example.key for example in examples}),
        "pairs": len(experiment.train),
        "validation_pairs": len(experiment.validation),
        "validation_questions": len({examples[i].key for i in experiment.validation}),
        "seed": experiment.seed,
        "objective": spec.objective.model_dump(mode="json"),
        "learning_rate": spec.learning_rate,
        "schedule": spec.schedule,
        "warmup": spec.warmup,
        "epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "max_grad_norm": spec.max_grad_norm,
        "steps": len(trained.losses),
        "best_step": trained.best_step,
        "stopped_early": trained.stopped_early,
        "epoch_losses": epoch_losses(trained, experiment),
        "evaluations": [
            {name: value if name == "step" else round(value, 6) for name, value in one.items()}
            for one in trained.evaluations
        ],
        **trained.about,
    }
    return about | ({"columns": data.used.to_dict()} if isinstance(data, Preferences) else {})
