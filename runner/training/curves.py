"""What trackers are told of a training: its settings before, and the values of every step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import JsonValue

from subvene.runner.training.experiments import Experiment, Progress


def values_at(
    experiments: Sequence[Experiment], progress: Sequence[Progress], which: Iterable[int], step: int
) -> dict[str, float]:
    """The values of a step by name; of several experiments each under a name of its own, `loss/NAME`.

    Args:
        experiments: that are trained together.
        progress: of each.
        which: those that took the step.
        step: how many are done; 0 before the first.
    """
    values: dict[str, float] = {}
    for e in which:
        own = f"/{experiments[e].name}" if len(experiments) > 1 else ""
        values |= {f"{name}{own}": value for name, value in _values(experiments[e], progress[e], step)}
    return values


def _values(experiment: Experiment, progress: Progress, step: int) -> Iterable[tuple[str, float]]:
    if step:
        yield "loss", progress.losses[-1]
        yield "learning_rate", experiment.rate(step - 1)
        yield "grad_norm", progress.grad_norms[-1]
        if progress.accuracies:
            yield "accuracy", progress.accuracies[-1]
    if progress.evaluations and progress.evaluations[-1]["step"] == step:
        for name, value in progress.evaluations[-1].items():
            if name != "step":
                yield f"validation_{name}", value


def settings_of(experiments: Sequence[Experiment]) -> dict[str, JsonValue]:
    """The fields of the recipes, and seeds, that all experiments have alike; not the data."""
    first, *others = [
        experiment.spec.model_dump(mode="json", exclude={"data"}) | {"seed": experiment.seed}
        for experiment in experiments
    ]
    return {name: value for name, value in first.items() if all(one[name] == value for one in others)}
