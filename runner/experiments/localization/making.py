"""The fits of a localization experiment: probes, directions, edits that train together, the LoRA."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypedDict

import torch

from subvene.runner.data.preferences import encode, preferences_sha256
from subvene.runner.data.text import pad_id_of
from subvene.runner.data.truthfulqa.questions import Question, data_sha256
from subvene.runner.experiments.comparison.arms import Arm, Arms, Fits
from subvene.runner.experiments.localization.plan import Candidate, Planned, declared_of, edits_of
from subvene.runner.experiments.results import Point
from subvene.runner.files.json_value import Json, as_read
from subvene.runner.files.ledger import Ledger
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes import Fitted
from subvene.runner.recipes.localized_edit import Request, fit_localized_edits, lora_experiment
from subvene.runner.recipes.localized_heads import Probed, probe_heads, probe_unseen
from subvene.runner.recipes.trained import epoch_losses
from subvene.runner.training.experiments import Experiment, Trained
from subvene.runner.training.lora import trained_lora
from subvene.specs import ExperimentSpec, LocalizedEditSpec

Told = Callable[[str, bool], None]
"""Told of a unit of work: what was done, and whether before."""


class _ProbesFound(TypedDict):
    accuracy: list[list[float]]
    chance: float


class _Told(TypedDict):
    provenance: dict[str, Json]


class Making:
    """Makes arms, their fits done once and recorded.

    Args:
        spec: the experiment.
        arms: makes arms on the loaded model.
        ledger: where fits are recorded.
        tuning: the questions that fits may see.
        told: told of every unit.
    """

    def __init__(
        self, spec: ExperimentSpec, arms: Arms, ledger: Ledger, tuning: Sequence[Question], told: Told
    ) -> None:
        self.spec, self.arms, self.ledger, self.tuning, self.told = spec, arms, ledger, tuning, told
        _, self.recipe, self.rule = declared_of(spec)

    def probe(self) -> Probed:
        """What every head's probe gives; ITI's own fits and the choice of heads use the same."""
        arms = self.arms
        identity = arms.base | {
            "unit": "probes",
            "heads": self.rule.model_dump(mode="json", exclude={"k", "batch_size"}),
            "data": data_sha256(self.tuning, periods=True),
            "seed": self.spec.seed,
        }

        def work() -> _ProbesFound:
            examples = encode(self.recipe.data, self.tuning, arms.tokenizer)
            anatomy, seed = Anatomy.of(arms.model), self.spec.seed
            return _found(
                probe_heads(
                    self.rule, self.tuning, examples, anatomy, arms.tokenizer, seed=seed, work=arms.work
                )
            )

        return self._probed("probes of every head", identity, work)

    def probe_unseen(self, questions: Sequence[Question]) -> Probed:
        """What the probes give on answers to questions that no probe has seen and no head was chosen by.

        Args:
            questions: the test's.
        """
        arms = self.arms
        identity = arms.base | {
            "unit": "probes_unseen",
            "heads": self.rule.model_dump(mode="json", exclude={"k", "batch_size"}),
            "data": data_sha256(self.tuning, periods=True),
            "unseen": data_sha256(questions, periods=True),
            "seed": self.spec.seed,
        }

        def work() -> _ProbesFound:
            anatomy, seed = Anatomy.of(arms.model), self.spec.seed
            return _found(
                probe_unseen(
                    self.rule, self.tuning, questions, anatomy, arms.tokenizer, seed=seed, work=arms.work
                )
            )

        return self._probed("probes on answers that chose no head", identity, work)

    def train(self, planned: Sequence[Planned], probed: Probed) -> None:
        """Train those of the arms' edits that no run has trained yet, together."""
        arms = self.arms
        names = {c.recipe.model_dump_json(): arm.name for arm in reversed(planned) for c in arm.candidates}
        missing: list[tuple[Mapping[str, Json], Request]] = []
        for candidate in edits_of(planned):
            recipe = _edit(candidate)
            name = named(names[recipe.model_dump_json()], candidate.point)
            identity = arms.fit_identity(recipe, self.spec.seed, self.tuning)
            if arms.is_fitted(identity):
                self.told(f"{name}: training", True)
            else:
                missing.append((identity, Request(name, recipe, self.spec.seed)))
        if not missing:
            return
        trained = fit_localized_edits(
            [request for _, request in missing],
            self.tuning,
            Anatomy.of(arms.model),
            arms.tokenizer,
            work=arms.work,
            probed=probed,
        )
        for (key, request), fitted in zip(missing, trained, strict=True):
            about = {"model": self.spec.model.name, **fitted.provenance}
            arms.keep_fit(key, Fitted(fitted.tensors, about))
            self.told(f"{request.name}: training", False)

    def arm(self, planned: Planned, candidate: Candidate, unseen: frozenset[str] = frozenset()) -> Arm:
        """An arm at one of its points.

        Args:
            planned: the arm.
            candidate: the point.
            unseen: keys of questions that it is to be chosen on: ITI's directions come from the others.
                Trained edits hold out their validation questions by themselves.
        """
        if planned.family == "lora":
            return self._lora(candidate)
        kept_back = unseen if planned.family == "iti" else frozenset()
        tuning = {self.recipe.key: [q for q in self.tuning if q.key not in kept_back]}
        return self.arms.make(candidate.variant, self.spec.seed, tuning, bake=False)

    def _lora(self, candidate: Candidate) -> Arm:
        """The model with an adapter on all output projections; its training is kept as a checkpoint."""
        recipe, arms, ledger = _edit(candidate), self.arms, self.ledger
        identity = arms.base | {
            "unit_of": "lora",
            "recipe": recipe.model_dump(mode="json", exclude={*recipe.immaterial, "heads"}),
            "data": preferences_sha256(self.tuning),
            "seed": self.spec.seed,
        }

        @contextlib.contextmanager
        def opened() -> Iterator[IntervenedModel]:
            anatomy = Anatomy.of(arms.model)
            examples = encode(recipe.data, self.tuning, arms.tokenizer)
            experiment = lora_experiment(Request("lora", recipe, self.spec.seed), examples, anatomy.sizes)
            pad_id, work = pad_id_of(arms.tokenizer), arms.work / "training"
            with trained_lora(anatomy, examples, experiment, pad_id=pad_id, folder=work) as trained:
                ledger.do(fit, lambda: _told_of(trained, experiment))
                yield IntervenedModel.plain(arms.model, arms.tokenizer, name="lora")

        fit = identity | {"unit": "fit"}
        was_done = ledger.has(fit)
        if not was_done:
            with opened():
                pass
        self.told(f"{named('lora', candidate.point)}: training", was_done)
        recorded = ledger.recorded(fit, _Told)
        fits = None if recorded is None else Fits((), (), (as_read(recorded["provenance"]),))
        return Arm(None, False, identity, fits, opened)

    def _probed(self, what: str, identity: Mapping[str, Json], work: Callable[[], _ProbesFound]) -> Probed:
        was_done = self.ledger.has(identity)
        result = self.ledger.do(identity, work)
        self.told(what, was_done)
        return Probed(torch.tensor(result["accuracy"], dtype=torch.float64), result["chance"])


def named(name: str, point: Point) -> str:
    """`edit_random_3, tau=0.1`."""
    values = (
        f"{field}={value if isinstance(value, str) else format(value, 'g')}" for field, value in point.items()
    )
    return ", ".join([name, *values])


def _edit(candidate: Candidate) -> LocalizedEditSpec:
    recipe = candidate.recipe
    if not isinstance(recipe, LocalizedEditSpec):
        raise TypeError("edits and LoRAs are trained by the recipe localized_edit")
    return recipe


def _found(probed: Probed) -> _ProbesFound:
    return {"accuracy": probed.accuracy.tolist(), "chance": probed.chance}


def _told_of(trained: Trained, experiment: Experiment) -> _Told:
    """What is recorded of a LoRA's training, as edits have it in their provenance."""
    return {
        "provenance": {
            "steps": len(trained.losses),
            "best_step": trained.best_step,
            "pairs": len(experiment.train),
            "epoch_losses": epoch_losses(trained, experiment),
            "evaluations": list(trained.evaluations),
        }
    }
