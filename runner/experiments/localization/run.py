"""A localization experiment from end to end: train, choose on validation, measure on test, weigh it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import transformers

from subvene.interventions import Sizes
from subvene.runner.artifacts.saes import Saes
from subvene.runner.data.preferences import used
from subvene.runner.data.truthfulqa.questions import Question, about_data
from subvene.runner.data.truthfulqa.splits import held_out, limited
from subvene.runner.experiments.comparison.arms import Arm, Arms
from subvene.runner.experiments.comparison.measures import DivergenceMeasure, TruthfulQAMeasure
from subvene.runner.experiments.judged_shares import judged_section
from subvene.runner.experiments.localization import evidence
from subvene.runner.experiments.localization.collection import Collection, arm_record
from subvene.runner.experiments.localization.making import Making
from subvene.runner.experiments.localization.measuring import Measuring
from subvene.runner.experiments.localization.plan import (
    Planned,
    declared_of,
    draws_of,
    edits_of,
    is_drawn,
    plan,
)
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
from subvene.runner.experiments.results import Condition, QuestionText, Results
from subvene.runner.experiments.study import Step
from subvene.runner.files.ledger import Ledger
from subvene.runner.files.power import Power
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.judges import JudgeError
from subvene.runner.models.identity import Manifest, run_manifest
from subvene.runner.recipes import RECIPES
from subvene.runner.recipes.fitting import check_reach
from subvene.runner.recipes.localized_heads import Probed, choose_heads
from subvene.runner.recipes.trained import held_out_keys
from subvene.runner.training.lora import check_peft
from subvene.specs import DivergenceSpec, ExperimentSpec, SubveneError, TruthfulQASpec, dump_spec


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
        self.unseen = [question for question in read if question.key in test]
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
        if len(self.unseen) == 1:
            raise SubveneError(
                "evaluate: expected at least 2 test questions, found 1; give more questions, or a larger "
                "`test`"
            )
        for what, questions in (("test on", self.tested), ("choose on", self.validation)):
            if not questions:
                raise SubveneError(
                    f"evaluate: no question of the truthfulqa entry is left to {what}: it needs the same "
                    "questions as `fit.data`, enough of them"
                )

    @property
    def power(self) -> Power:
        """What so many draws can find, and so many questions where there are several."""
        groups = {one.group for one in self.arms if is_drawn(one.group)}
        alpha, count = round(1 - self.asked.level, 12), len(self.tested)
        questions = [count] if count > 1 and alpha < Power.POWER else []
        return Power.of(sorted({draws_of(self.asked, group) for group in groups}), questions, alpha=alpha)

    def check(self) -> None:
        """Find out what is wrong before the model is loaded, and say what the experiment can find."""
        if any(arm.family == "lora" for arm in self.arms):
            check_peft()
        for arm in self.arms:
            for candidate in arm.candidates:
                check_reach(candidate.variant, self.sizes)
                RECIPES[candidate.recipe.recipe].check(candidate.recipe, self.tuning, self.spec.seed)
        self.step("power", self.power.lines())

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
        """Units of work to come at most, those of earlier runs among them."""
        each = self.measure.steps() + (0 if self.divergence is None else self.divergence.steps())
        choosing = self.measure.steps(only=self.asked.selection.by)
        tried = sum(len(arm.candidates) for arm in self.arms if len(arm.candidates) > 1)
        loras = [len(arm.candidates) for arm in self.arms if arm.family == "lora"]
        # A LoRA that is chosen among several is made once more to be measured.
        trained = len(edits_of(self.arms)) + sum(n + (n > 1) for n in loras)
        explored = sum(len(arm.candidates) - 1 for arm in self.arms if arm.group in self.asked.explore)
        return 2 + trained + tried * choosing + (1 + len(self.arms) + explored) * each

    def run(
        self, model: transformers.PreTrainedModel, tokenizer: Any, ledger: Ledger, output: Path
    ) -> Results:
        """Do every unit that is not done, and put the results together.

        Edits that are not there yet train together in one job, which keeps checkpoints; of draws that may
        stop early, as many as are made at a time.
        """
        saes = Saes.of([self.spec], self.folder)
        arms = Arms(model, tokenizer, ledger, output, self.folder, saes)
        transformers.set_seed(self.spec.seed)
        making = Making(self.spec, arms, ledger, self.tuning, self._told)
        probed, unseen = making.probe(), making.probe_unseen(self.unseen)
        heads = choose_heads(self.recipe, self.sizes, self.spec.seed, probed)
        planned = plan(self.spec, self.sizes, heads)
        original = IntervenedModel.plain(arms.model, arms.tokenizer)
        measuring = Measuring(
            self.asked, self.measure, self.divergence, making, original, self.tested, self.validation
        )
        order = ["baseline", *(one.name for one in planned)]
        collection = Collection([question.key for question in self.tested], order)
        untouched = arms.make(None, self.spec.seed, None, bake=False)
        measured = measuring.measured("baseline", "baseline", untouched)
        collection.add("baseline", measured, ArmRecord(), group="baseline")
        done = _Doing(self, making, measuring, collection, probed, unseen, output)
        stopping = self._stopping()
        done.all([one for one in planned if one.group not in stopping])
        for group in stopping:
            done.until_stopped(group, [one for one in planned if one.group == group])
        return self._results(collection, probed, unseen, done.stops, ledger)

    def _stopping(self) -> list[str]:
        """The groups of draws that may stop early: those that a probed set is weighed against."""
        if self.asked.sequential is None:
            return []
        families = [one.family for one in self.arms if one.group.endswith("_probed")]
        groups = dict.fromkeys(one.group for one in self.arms if is_drawn(one.group))
        return [group for group in groups if group.partition("_")[0] in families]

    # Results -----------------------------------------------------------------------------------------------

    def _results(
        self,
        collection: Collection,
        probed: Probed,
        unseen: Probed,
        stops: Mapping[str, evidence.Stop],
        ledger: Ledger,
    ) -> Results:
        level, samples = self.asked.level, collection.samples
        texts = samples["baseline"].texts.get("tokens", ())
        drawn = Resamples.drawn(self.asked.resamples, len(self.tested), len(texts), self.spec.seed)
        conditions = collection.bounded(drawn, level)
        trained = (arm.training for arm in collection.records.values() if arm.training is not None)
        section = LocalizationSection(
            arms=collection.records,
            evidence=evidence.evidence(conditions, level, stops),
            singles=evidence.singles(conditions),
            comparisons=evidence.comparisons(samples, drawn, level, stops),
            selection=Selection(metric=self.asked.selection.by, questions=len(self.validation)),
            split=Split(
                train=len(self.seen) - len(self.held_out),
                validation=len(self.held_out),
                test=len(self.tested),
                tuning=len(self.tuning),
                pairs=next((training.pairs for training in trained), 0),
            ),
            probes=Probes(
                accuracy=tuple(map(tuple, probed.accuracy.tolist())),
                chance=probed.chance,
                unseen=tuple(map(tuple, unseen.accuracy.tolist())),
                unseen_chance=unseen.chance,
            ),
            curves=tuple(collection.curves),
            power=self.power,
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

    def _told(self, what: str, was_done: bool) -> None:
        self.step("unit", {"what": what, "was_done": was_done})


@dataclass
class _Doing:
    """Fits and measures arms, and takes them down.

    Attributes:
        study: what is asked.
        making: makes arms.
        measuring: measures them.
        collection: where they are taken down.
        probed: what the probes give.
        unseen: what they give on answers that chose no head.
        output: the run's folder.
        stops: by group, of draws that were stopped.
    """

    study: Localization
    making: Making
    measuring: Measuring
    collection: Collection
    probed: Probed
    unseen: Probed
    output: Path
    stops: dict[str, evidence.Stop] = field(default_factory=dict)

    def all(self, some: Sequence[Planned], enough: Callable[[Condition], bool] | None = None) -> bool:
        """Do these arms; those that come after one that was enough are not taken down.

        Args:
            some: arms that train together.
            enough: asked of every arm; None: none is enough.

        Returns:
            Whether one was.
        """
        self.making.train(some, self.probed)
        chosen = self.measuring.choose(some, self.study.held_out)
        arms = [self.making.arm(one.planned, one.candidate) for one in chosen]
        self.measuring.score([(one.planned.name, arm) for one, arm in zip(chosen, arms, strict=True)])
        for one, arm in zip(chosen, arms, strict=True):
            planned = one.planned
            measured = self.measuring.measured(planned.name, planned.group, arm)
            explored = self.measuring.explored(one, measured)
            place = {
                "group": planned.group,
                "point": one.candidate.point,
                "artifact": self._keep(planned, arm),
            }
            record = arm_record(planned, arm, self.probed, self.unseen)
            condition = self.collection.add(planned.name, measured, record, **place)
            self.collection.add_choice(one.choice, (*one.curve, *explored))
            if enough is not None and enough(condition):
                return True
        return False

    def until_stopped(self, group: str, draws: Sequence[Planned]) -> None:
        """Make draws until so many are at least as good as the probed set as the evaluation says.

        Args:
            group: of the draws.
            draws: all that may be made.
        """
        asked = self.study.asked
        if asked.sequential is None:
            raise ValueError("these draws are all to be made")
        metric, left = asked.selection.by, asked.sequential.exceedances
        probed = self.collection.value(f"{group.partition('_')[0]}_probed", metric)

        def enough(condition: Condition) -> bool:
            nonlocal left
            left -= evidence.as_good(_needed(condition, metric), probed, metric)
            return left == 0

        size = asked.sequential.at_a_time
        for begin in range(0, len(draws), size):
            if self.all(draws[begin : begin + size], enough):
                self.stops[group] = evidence.Stop(metric, len(draws))
                return

    def _keep(self, planned: Planned, arm: Arm) -> str | None:
        """Save the arm as an artifact that can be loaded and shared; a LoRA is none."""
        if arm.variant is None:
            return None
        target = self.output / "artifacts" / planned.name
        self.making.arms.compiled(arm.variant, arm.fitted).save_pretrained(target)
        return f"artifacts/{planned.name}"


def _needed(condition: Condition, metric: str) -> float:
    """What draws are stopped by.

    Raises:
        JudgeError: verdicts are missing, with which it might be another number.
    """
    if condition.missing and metric == "true_info":
        raise JudgeError(f"{condition.name}: verdicts are missing, so that it is not known when draws stop")
    value = condition.value(metric)
    if value is None:
        raise SubveneError(f"{condition.name}: no {metric} was measured, by which draws would stop")
    return value
