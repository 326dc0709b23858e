"""A look at an edit: fitted, run at several coefficients, saved, and reloaded in a fresh process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import transformers

from subvene.interventions import Sizes
from subvene.runner.artifacts.saes import Saes
from subvene.runner.data.truthfulqa.questions import load_questions
from subvene.runner.edits.compile import load_tensors
from subvene.runner.experiments.comparison.arms import Arm, Arms
from subvene.runner.experiments.look.evaluations import (
    Asked,
    evaluated,
    names_of,
    together,
)
from subvene.runner.experiments.look.section import ARTIFACT, SECTION, LookSection, look_of
from subvene.runner.experiments.results import Condition, FitRecord, Results
from subvene.runner.experiments.study import Step
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.measures.contrast import Contrasts, run_contrast
from subvene.runner.measures.samples import Samples, run_samples
from subvene.runner.models.identity import Manifest, run_manifest
from subvene.runner.monitor.reload import reload_difference
from subvene.runner.recipes import RECIPES
from subvene.runner.recipes.fitting import check_reach
from subvene.specs import (
    ContrastSpec,
    ExperimentSpec,
    SamplesSpec,
    SubveneError,
    dump_spec,
    intervention_name,
)
from subvene.specs.interventions.base import BaseIntervention

CONDITION = "intervened"
"""What a look calls its one condition, whose points are the coefficients."""
_GREETING = ("Hello, who are you?",)


class Look:
    """The plan: which evaluations, with which texts, of which fit."""

    what: ClassVar[str] = "a look at an edit"
    here: ClassVar[str | None] = None

    def __init__(self, spec: ExperimentSpec, folder: Path, sizes: Sizes, step: Step) -> None:
        self.spec, self.folder, self.sizes, self.step = spec, folder, sizes, step
        self.evaluations = [e for e in spec.evaluate if isinstance(e, SamplesSpec | ContrastSpec)]
        self.names = names_of(self.evaluations)
        self.asked = [Asked.of(declared, folder) for declared in self.evaluations]
        self.fit_data = {
            recipe.keys[0]: RECIPES[recipe.recipe].read(recipe, folder)
            if recipe.learns_from is None
            else load_questions(recipe.learns_from, folder)
            for recipe in spec.fits
        }

    @cached_property
    def saes(self) -> Saes:
        """The SAEs that the file names."""
        return Saes.of([self.spec], self.folder)

    def manifest(self) -> Manifest:
        """What there is to know about where the numbers come from."""
        data = {
            name: {"sha256": digest(asked.unit())} for name, asked in zip(self.names, self.asked, strict=True)
        }
        for recipe in self.spec.fits:
            name = "fit" if len(self.spec.fits) == 1 else f"fit_{recipe.keys[0]}"
            data[name] = {"sha256": RECIPES[recipe.recipe].sha256(self.fit_data[recipe.keys[0]])}
        return run_manifest(dump_spec(self.spec), self.folder, data=data, judges=[])

    def check(self) -> None:
        """Check the interventions against the model's sizes, the data against the fit, and the tensor files.

        Raises:
            SubveneError: naming what the model does not have, or why there is nothing to fit on.
        """
        check_reach(self.spec, self.sizes)
        for recipe in self.spec.fits:
            RECIPES[recipe.recipe].check(recipe, self.fit_data[recipe.keys[0]], self.spec.seed)
        for name in sorted({ref.file for _, ref in self.spec.tensor_refs() if ref.file is not None}):
            load_tensors(self.folder / name)
        self.saes.resolved(self.spec)

    def units(self) -> int:
        """Evaluations to come, those of earlier runs among them."""
        return len(self.evaluations)

    def run(
        self, model: transformers.PreTrainedModel, tokenizer: Any, ledger: Ledger, output: Path
    ) -> Results:
        """Fit, evaluate, save, and reload what was saved."""
        arms = Arms(model, tokenizer, ledger, output, self.folder, self.saes)
        transformers.set_seed(self.spec.seed)
        arm = arms.make(self.spec, self.spec.seed, self.fit_data, bake=False)
        m = arms.compiled(self.spec, arm.fitted)
        self.step("fitted", m)
        parts = ledger.each(partial(self._evaluated, i, m, arm, ledger) for i in range(len(self.evaluations)))
        # Compiled anew: its card holds no receipt, of which a run that is taken up has none either.
        arms.compiled(self.spec, arm.fitted).save_pretrained(output / ARTIFACT)
        self.step("saved", output)
        found = together(parts)
        section = self._reloaded(m, output, look_of(found))
        return found.model_copy(
            update={"fits": self._fits(arm), "sections": {SECTION: section.model_dump(mode="json")}}
        )

    def _evaluated(self, i: int, m: IntervenedModel, arm: Arm, ledger: Ledger) -> Results:
        declared, asked, name = self.evaluations[i], self.asked[i], self.names[i]
        identity = arm.identity | {
            # Receipts hold them.
            "names": [intervention_name(self.spec, j) for j in range(len(self.spec.interventions))],
            "unit": declared.kind,
            "evaluation": asked.unit(),
            "seed": self.spec.seed,
        }
        was_done = ledger.has(identity)

        def work() -> Samples | Contrasts:
            transformers.set_seed(self.spec.seed)
            if isinstance(declared, SamplesSpec):
                return run_samples(m, declared, self.folder)
            return run_contrast(m, declared, self.folder)

        found = ledger.do(identity, work)
        self.step("unit", {"what": name.replace("_", " "), "was_done": was_done})
        common = Condition(name=CONDITION, label=CONDITION, units={name: digest(identity)})
        part = self._kept(evaluated(name, asked, found, common, list(self._paths())))
        self.step("evaluated", part)
        return part

    def _kept(self, part: Results) -> Results:
        """The same, the condition that the artifact is marked as kept."""
        point = {path: declared.strength for path, declared in self._paths().items()}
        conditions = tuple(
            one.model_copy(update={"artifact": ARTIFACT}) if one.point == point else one
            for one in part.conditions
        )
        return part.model_copy(update={"conditions": conditions})

    def _paths(self) -> Mapping[str, BaseIntervention]:
        """The path of each intervention's strength → the intervention."""
        return {
            f"{intervention_name(self.spec, i)}.{declared.strength_field()}": declared
            for i, declared in enumerate(self.spec.interventions)
        }

    def _fits(self, arm: Arm) -> tuple[FitRecord, ...]:
        if arm.fitted is None:
            return ()
        provenance = arm.fitted.provenance
        return (
            FitRecord(condition=CONDITION, seed=self.spec.seed, artifact=ARTIFACT, provenance=provenance),
        )

    def _reloaded(self, m: IntervenedModel, output: Path, section: LookSection) -> LookSection:
        dtype = str(m.model.dtype).removeprefix("torch.")
        samples = next((one for one in self.evaluations if isinstance(one, SamplesSpec)), None)
        prompts, data = (_GREETING, None) if samples is None else (samples.prompts, samples.rows)
        try:
            difference = reload_difference(m, output / ARTIFACT, prompts, data)
        except SubveneError as error:
            # What was measured is not lost where a fresh process cannot load the model.
            return section.model_copy(update={"dtype": dtype, "reload_failure": str(error)})
        self.step("reloaded", difference)
        # JSON has no NaN; None says that there is no number.
        stored = difference if math.isfinite(difference) else None
        return section.model_copy(update={"dtype": dtype, "reload_difference": stored})
