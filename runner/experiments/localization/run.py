"""A localization experiment from end to end: train, choose on validation, measure on test, weigh it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch
import transformers

from subvene.interventions import Sizes
from subvene.runner.data.preferences import encode, preferences_sha256, used
from subvene.runner.data.text import pad_id_of
from subvene.runner.data.truthfulqa.questions import Question, about_data, data_sha256
from subvene.runner.data.truthfulqa.splits import held_out, limited
from subvene.runner.experiments.choose import best_of
from subvene.runner.experiments.comparison.arms import Arm, Arms, Fits
from subvene.runner.experiments.comparison.measures import (
    DivergenceMeasure,
    Measured,
    TruthfulQAMeasure,
    check_complete,
)
from subvene.runner.experiments.judged_shares import judged_section
from subvene.runner.experiments.localization import evidence
from subvene.runner.experiments.localization.collection import Collection, arm_record
from subvene.runner.experiments.localization.plan import Candidate, Planned, declared_of, edits_of, plan
from subvene.runner.experiments.localization.samples import Resamples
from subvene.runner.experiments.localization.section import (
    SECTION,
    ArmRecord,
    LocalizationSection,
    Probes,
    Selection,
    Split,
)
from subvene.runner.experiments.localization.verdict import verdict
from subvene.runner.experiments.results import Choice, Point, QuestionText, Results, Tried
from subvene.runner.experiments.study import Step
from subvene.runner.files.json_value import Json, as_read
from subvene.runner.files.ledger import Ledger, Result
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.identity import Manifest, run_manifest
from subvene.runner.recipes import RECIPES, Fitted
from subvene.runner.recipes.fitting import check_reach
from subvene.runner.recipes.localized_edit import (
    Request,
    epoch_losses,
    fit_localized_edits,
    held_out_keys,
    lora_experiment,
)
from subvene.runner.recipes.localized_heads import Probed, probe_heads
from subvene.runner.training.experiments import Experiment, Trained
from subvene.runner.training.lora import check_peft, trained_lora
from subvene.specs import (
    DivergenceSpec,
    ExperimentSpec,
    LocalizedEditSpec,
    SubveneError,
    TruthfulQASpec,
    dump_spec,
)


class _ProbesFound(TypedDict):
    accuracy: list[list[float]]
    chance: float


class _Told(TypedDict):
    provenance: dict[str, Json]


class Localization:
    """The plan, its questions and its measures; and its execution arm by arm."""

    what: ClassVar[str] = "a localization experiment"
    here: ClassVar[str | None] = "its edits are trained together, in passes that they share"

    def __init__(self, spec: ExperimentSpec, folder: Path, sizes: Sizes, step: Step) -> None:
        self.spec, self.folder, self.sizes, self.step = spec, folder, sizes, step
        self.asked, self.recipe, self.probed = declared_of(spec)
        self.arms = plan(spec, sizes)
        read: Sequence[Question] = RECIPES[self.recipe.recipe].read(self.recipe, folder)
        self.fitted_on = read
        test = held_out((question.key for question in read), self.asked.test, f"test {spec.seed}")
        self.tuning = [question for question in read if question.key not in test]
        self.seen = used(self.recipe.data, self.tuning)
        self.held_out = held_out_keys(self.recipe, self.tuning, spec.seed)
        declared = next(e for e in spec.evaluate if isinstance(e, TruthfulQASpec))
        self.measure = TruthfulQAMeasure(declared, folder)
        self.tested = limited([q for q in self.measure.questions if q.key in test], declared.limit)
        self.validation = limited(
            [q for q in self.measure.questions if q.key in self.held_out], self.asked.selection.limit
        )
        self.divergence = next(
            (DivergenceMeasure(e, folder) for e in spec.evaluate if isinstance(e, DivergenceSpec)), None
        )
        for what, questions in (("test on", self.tested), ("choose on", self.validation)):
            if not questions:
                raise SubveneError(
                    f"evaluate: no question of the truthfulqa entry is left to {what}: it needs the same "
                    "questions as `fit.data`, enough of them"
                )

    def check(self) -> None:
        """Find out what is wrong before the model is loaded."""
        if any(arm.family == "lora" for arm in self.arms):
            check_peft()
        for arm in self.arms:
            for candidate in arm.candidates:
                check_reach(candidate.variant, self.sizes)
                RECIPES[candidate.recipe.recipe].check(candidate.recipe, self.tuning, self.spec.seed)

    def manifest(self) -> Manifest:
        """What there is to know about where the numbers come from."""
        asked = about_data(self.measure.questions) | {"prompts_sha256": self.measure.prompts_sha256}
        return run_manifest(
            dump_spec(self.spec),
            self.folder,
            data={"fit": about_data(self.fitted_on), "truthfulqa_0": asked},
            judges=list(self.measure.judge_identities()),
        )

    def units(self) -> int:
        """Units of work to come, those of earlier runs among them."""
        each = self.measure.steps() + (0 if self.divergence is None else self.divergence.steps())
        choosing = self.measure.steps(only=self.asked.selection.by)
        tried = sum(len(arm.candidates) for arm in self.arms if len(arm.candidates) > 1)
        loras = [len(arm.candidates) for arm in self.arms if arm.family == "lora"]
        # A LoRA that is chosen among several is made once more to be measured.
        trained = len(edits_of(self.arms)) + sum(n + (n > 1) for n in loras)
        return 1 + trained + tried * choosing + (1 + len(self.arms)) * each

    def run(
        self, model: transformers.PreTrainedModel, tokenizer: Any, ledger: Ledger, output: Path
    ) -> Results:
        """Do every unit that is not done, and put the results together.

        Edits that are not there yet train together in one job, which keeps checkpoints.
        """
        arms = Arms(model, tokenizer, ledger, output, self.folder)
        transformers.set_seed(self.spec.seed)
        probed = self._probe(arms, ledger)
        self._train(arms, ledger, probed)
        original = IntervenedModel.plain(arms.model, arms.tokenizer)
        collection = Collection([question.key for question in self.tested])
        untouched = arms.make(None, self.spec.seed, None, bake=False)
        measured = self._measured("baseline", untouched, original, ledger)
        collection.add("baseline", measured, ArmRecord(), group="baseline")
        for planned in self.arms:
            candidate = self._chosen(planned, arms, ledger, collection)
            arm = self._arm(planned, candidate, arms, ledger)
            measured = self._measured(planned.name, arm, original, ledger)
            kept = self._keep(planned, arm, arms, output)
            place = {"group": planned.group, "point": candidate.point, "artifact": kept}
            collection.add(planned.name, measured, arm_record(planned, arm, probed), **place)
        return self._results(collection, probed, ledger)

    # Fits --------------------------------------------------------------------------------------------------

    def _probe(self, arms: Arms, ledger: Ledger) -> Probed:
        """What every head's probe gives; ITI's own fits and the choice of heads use the same."""
        identity = arms.base | {
            "unit": "probes",
            "heads": self.probed.model_dump(mode="json", exclude={"k", "batch_size"}),
            "data": data_sha256(self.tuning, periods=True),
            "seed": self.spec.seed,
        }

        def work() -> _ProbesFound:
            anatomy = Anatomy.of(arms.model)
            examples = encode(self.recipe.data, self.tuning, arms.tokenizer)
            found = probe_heads(
                self.probed,
                self.tuning,
                examples,
                anatomy,
                arms.tokenizer,
                seed=self.spec.seed,
                work=arms.work,
            )
            return {"accuracy": found.accuracy.tolist(), "chance": found.chance}

        result = self._done("probes of every head", identity, work, ledger)
        return Probed(torch.tensor(result["accuracy"], dtype=torch.float64), result["chance"])

    def _train(self, arms: Arms, ledger: Ledger, probed: Probed) -> None:
        """Train the edits that no run has trained yet, together."""
        names = {c.recipe.model_dump_json(): arm.name for arm in reversed(self.arms) for c in arm.candidates}
        missing: list[tuple[Mapping[str, Json], Request]] = []
        for candidate in edits_of(self.arms):
            recipe = candidate.recipe
            if not isinstance(recipe, LocalizedEditSpec):
                raise TypeError("an edit is trained by the recipe localized_edit")
            name = _named(names[recipe.model_dump_json()], candidate.point)
            identity = arms.fit_identity(recipe, self.spec.seed, self.tuning)
            if arms.is_fitted(identity):
                self._told(f"{name}: training", was_done=True)
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
            self._told(f"{request.name}: training", was_done=False)

    def _arm(
        self,
        planned: Planned,
        candidate: Candidate,
        arms: Arms,
        ledger: Ledger,
        kept_back: frozenset[str] = frozenset(),
    ) -> Arm:
        """An arm; of ITI with directions that have not seen the questions kept back, to be chosen on."""
        if planned.family == "lora":
            return self._lora(candidate, arms, ledger)
        # Trained edits hold out their validation questions by themselves.
        unseen = kept_back if planned.family == "iti" else frozenset()
        tuning = {self.recipe.key: [q for q in self.tuning if q.key not in unseen]}
        return arms.make(candidate.variant, self.spec.seed, tuning, bake=False)

    def _lora(self, candidate: Candidate, arms: Arms, ledger: Ledger) -> Arm:
        """The model with an adapter on all output projections; its training is kept as a checkpoint."""
        recipe = candidate.recipe
        if not isinstance(recipe, LocalizedEditSpec):
            raise TypeError("a LoRA is trained by the recipe localized_edit")
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
        self._told(f"{_named('lora', candidate.point)}: training", was_done=was_done)
        recorded = ledger.recorded(fit, _Told)
        fits = None if recorded is None else Fits((), (), (as_read(recorded["provenance"]),))
        return Arm(None, False, identity, fits, opened)

    # Choosing and measuring --------------------------------------------------------------------------------

    def _chosen(self, planned: Planned, arms: Arms, ledger: Ledger, collection: Collection) -> Candidate:
        """The candidate that is best on the validation questions; what each gave there is collected."""
        if len(planned.candidates) == 1:
            return planned.candidates[0]
        metric, tried = self.asked.selection.by, []
        for candidate in planned.candidates:
            arm = self._arm(planned, candidate, arms, ledger, self.held_out)
            name = f"{_named(planned.name, candidate.point)} on validation"
            arm = replace(arm, swept=True)
            measured = self.measure.measure(arm, self.validation, ledger, self._progress(name), only=metric)
            check_complete(measured, planned.name)
            tried.append(
                Tried(
                    point=candidate.point,
                    value=measured.value(metric),
                    n=len(self.validation),
                    not_finite=measured.not_finite,
                )
            )
        best = best_of(tried)
        if best is None:
            raise SubveneError(f"{planned.name}: no {metric} was measured to choose by")
        collection.choices.append(
            Choice(condition=planned.name, metric=metric, tried=tuple(tried), chosen=best)
        )
        return next(candidate for candidate in planned.candidates if candidate.point == best)

    def _measured(self, name: str, arm: Arm, original: IntervenedModel, ledger: Ledger) -> list[Measured]:
        told = self._progress(name)
        found = [self.measure.measure(arm, self.tested, ledger, told)]
        if self.divergence is not None:
            found.append(self.divergence.measure(arm, original, ledger, told))
        return found

    def _keep(self, planned: Planned, arm: Arm, arms: Arms, output: Path) -> str | None:
        """Save the arm as an artifact that can be loaded and shared; a LoRA is none."""
        if arm.variant is None:
            return None
        target = output / "artifacts" / planned.name
        arms.compiled(arm.variant, arm.fitted).save_pretrained(target)
        return f"artifacts/{planned.name}"

    # Results -----------------------------------------------------------------------------------------------

    def _results(self, collection: Collection, probed: Probed, ledger: Ledger) -> Results:
        level, samples = self.asked.level, collection.samples
        texts = samples["baseline"].texts.get("tokens", ())
        drawn = Resamples.drawn(self.asked.resamples, len(self.tested), len(texts), self.spec.seed)
        conditions = collection.bounded(drawn, level)
        trained = (arm.training for arm in collection.records.values() if arm.training is not None)
        section = LocalizationSection(
            arms=collection.records,
            evidence=evidence.evidence(conditions, level),
            singles=evidence.singles(conditions),
            comparisons=evidence.comparisons(samples, drawn, level),
            selection=Selection(metric=self.asked.selection.by, questions=len(self.validation)),
            split=Split(
                train=len(self.seen) - len(self.held_out),
                validation=len(self.held_out),
                test=len(self.tested),
                tuning=len(self.tuning),
                pairs=next((training.pairs for training in trained), 0),
            ),
            probes=Probes(accuracy=tuple(map(tuple, probed.accuracy.tolist())), chance=probed.chance),
        )
        section = section.model_copy(update={"verdict": verdict(conditions, section)})
        return Results(
            kind=self.asked.kind,
            conditions=conditions,
            choices=tuple(collection.choices),
            judges=self.measure.judged_by(),
            questions={
                q.key: QuestionText(question=q.question, best=q.best, category=q.category)
                for q in self.tested
            },
            sections={
                SECTION: section.model_dump(mode="json"),
                **judged_section(conditions, self.measure.judge, self.tested, ledger),
            },
        )

    # Units -------------------------------------------------------------------------------------------------

    def _done(
        self, what: str, identity: Mapping[str, Json], work: Callable[[], Result], ledger: Ledger
    ) -> Result:
        was_done = ledger.has(identity)
        result = ledger.do(identity, work)
        self._told(what, was_done=was_done)
        return result

    def _told(self, what: str, *, was_done: bool) -> None:
        self.step("unit", {"what": what, "was_done": was_done})

    def _progress(self, name: str) -> Any:
        def told(what: str, *, was_done: bool) -> None:
            self._told(f"{name}: {what}", was_done=was_done)

        return told


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


def _named(name: str, point: Point) -> str:
    """`edit_random_3, tau=0.1`."""
    return ", ".join([name, *(f"{field}={value:g}" for field, value in point.items())])
