"""A persona experiment from end to end: extract, sweep, compare conditions, geometry, artifacts, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import safetensors.torch
import torch
import transformers

from subvene.interventions import Sizes
from subvene.runner.data.texts import read_texts
from subvene.runner.data.traits import Trait, check_evaluation
from subvene.runner.edits.compile import CompileError, load_tensors
from subvene.runner.experiments.judged import about_judge
from subvene.runner.experiments.persona.arms import arms_of, one_number
from subvene.runner.experiments.persona.conditions import Subject, run_conditions
from subvene.runner.experiments.persona.cost import Cost
from subvene.runner.experiments.persona.gathered import Gathered, MadeVectors
from subvene.runner.experiments.persona.section import (
    SECTION,
    Correlation,
    ExtractionCounts,
    Geometry,
    LayerVector,
    PersonaManifest,
    PersonaSection,
    Place,
    Sweep,
    TraitRecord,
    artifact_of,
)
from subvene.runner.experiments.persona.sweep import run_sweep
from subvene.runner.experiments.results import Results, judge_record
from subvene.runner.experiments.study import Step
from subvene.runner.experiments.trait_nulls import trait_nulls_section
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger, Result, digest
from subvene.runner.files.storage import atomic_folder
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.judges import scored
from subvene.runner.measures.divergence import Reference
from subvene.runner.measures.geometry import geometry
from subvene.runner.measures.multiple_choice import shipped_questions
from subvene.runner.measures.responses import Do
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.identity import (
    environment,
    git_state,
    holds,
    model_sha256,
    reading_sha256,
    tensors_digest,
    versions,
)
from subvene.runner.recipes.fitting import check_reach
from subvene.runner.recipes.persona import (
    SITE,
    Extraction,
    Vectors,
    extract,
    named_tensors,
    provenance_of,
    read_data,
    vectors_of,
)
from subvene.specs import (
    ExperimentSpec,
    PersonaSpec,
    SteeringSpec,
    SubveneError,
    TextsSpec,
    TraitConditionsSpec,
    TraitSweepSpec,
    dump_spec,
)
from subvene.specs.evaluations.traits import Ablated, Capped

# How a result is computed; whoever changes that changes this number, and old units are done again.
UNITS = 2


class Persona:
    """The plan, and its execution trait by trait."""

    what: ClassVar[str] = "a persona experiment"
    here: ClassVar[str | None] = None

    def __init__(self, spec: ExperimentSpec, folder: Path, sizes: Sizes, step: Step) -> None:
        if not isinstance(spec.fit, PersonaSpec):
            raise SubveneError("a persona experiment needs `fit: {recipe: persona}`")
        self.spec, self.recipe, self.folder, self.sizes, self.step = spec, spec.fit, folder, sizes, step
        data = read_data(self.recipe, folder)
        self.traits, self.judge = data.traits, data.judge
        self.sweep = next((e for e in spec.evaluate if isinstance(e, TraitSweepSpec)), None)
        self.conditions = next((e for e in spec.evaluate if isinstance(e, TraitConditionsSpec)), None)
        self.seed = spec.seed

    def check(self) -> None:
        """Find out what is wrong before the model is loaded."""
        self.judge.check(scored(self.traits))
        check_reach(self.spec, self.sizes)
        last = self.sizes.n_layers - 1
        for layer in self.sweep.layers if self.sweep else ():
            if layer > last:
                raise CompileError(
                    f"evaluate: trait_sweep.layers: expected layers from 0 to {last} for this model, "
                    f"found {layer}"
                )
        for condition in self.conditions.conditions if self.conditions else ():
            layers = condition.layers if isinstance(condition, Capped | Ablated) else None
            if layers is not None and layers[1] > last:
                raise CompileError(
                    f"evaluate: trait_conditions: {condition.kind}: expected layers from 0 to {last} for "
                    f"this model, found {layers[1]}"
                )
        for trait in self.traits:
            if trait.name in self.spec.steered_traits:
                one_number(self._declared(trait.name))
                self._check_questions(trait)

    def _check_questions(self, trait: Trait) -> None:
        check_evaluation(trait)
        swept = self._swept_questions(trait)
        if self.conditions and swept >= len(trait.evaluation):
            raise SubveneError(
                f"trait {trait.name}: trait_sweep takes {swept} of {len(trait.evaluation)} evaluation "
                "questions and leaves none for trait_conditions; lower `questions` of trait_sweep"
            )

    def _swept_questions(self, trait: Trait) -> int:
        if self.sweep is None:
            return 0
        return min(self.sweep.questions or len(trait.evaluation), len(trait.evaluation))

    def manifest(self) -> PersonaManifest:
        """What there is to know about where the numbers come from."""
        return {
            "format": 1,
            "kind": "persona",
            "spec": dump_spec(self.spec),
            "model": self.spec.model.model_dump(mode="json"),
            "traits": {trait.name: trait.sha256 for trait in self.traits},
            "judge": self.judge.identity(scored(self.traits)),
            "seed": self.seed,
            "environment": environment(),
            "git": git_state(self.folder),
        }

    def units(self) -> int:
        """Steps that are reported."""
        steered = self.spec.steered_traits
        found = 3 * len(self.traits) + (3 * len(steered) if self.sweep else 0)
        if self.conditions:
            for name in steered:
                arms = arms_of(self.conditions, self._declared(name))
                caps = sum(arm.condition.kind == "capped" for arm in arms)
                costs = sum(arm.condition.kind not in ("prompted", "opposed") for arm in arms)
                found += 3 * len(arms) + caps + (costs if self.conditions.cost else 0)
        return found

    def _declared(self, name: str) -> SteeringSpec:
        declared = self.spec.interventions[self.spec.steered_traits[name]]
        if not isinstance(declared, SteeringSpec):
            raise TypeError(f"{name} is steered by a {declared.kind}")
        return declared

    def run(
        self, model: transformers.PreTrainedModel, tokenizer: Any, ledger: Ledger, output: Path
    ) -> Results:
        """Everything, and the artifacts."""
        plain = IntervenedModel.plain(model, tokenizer)
        weights = model_sha256(plain.model)
        reading = reading_sha256(plain.model, plain.tokenizer)
        self.base: dict[str, Json] = {
            "model": weights,
            "text": reading,
            "versions": versions(),
            "units": UNITS,
        }
        self.judge = self.judge.with_model(plain)
        # What it is worth is measured once, on contrasts that no response depends on.
        judged = about_judge(self.judge, self.traits, ledger, self.base)
        names = [trait.name for trait in self.traits]
        of_traits = ledger.each(
            partial(self._extracted, trait, plain, ledger, output) for trait in self.traits
        )
        extractions = {name: extraction for name, (extraction, _) in zip(names, of_traits, strict=True)}
        found = {name: vectors for name, (_, vectors) in zip(names, of_traits, strict=True)}
        tensors = {k: v for trait in self.traits for k, v in named_tensors(trait, found[trait.name]).items()}
        gathered = Gathered([e.warning for e in extractions.values() if e.warning is not None])
        records = ledger.each(
            partial(self._recorded, trait, extractions, found, tensors, plain, ledger, gathered)
            for trait in self.traits
        )
        gathered.traits |= dict(zip(names, records, strict=True))
        chosen = gathered.steering
        provenance = provenance_of(self.recipe, judged, self.traits, extractions, found, seed=self.seed) | {
            "model": self.spec.model.name
        }
        self._keep(chosen, tensors, provenance, plain, output)
        n_layers = len(next(iter(found.values())).explained)
        first = next(iter(chosen.values())).layer if chosen else n_layers // 2
        between = geometry(
            {name: dict(enumerate(v.vectors)) for name, v in found.items()},
            first,
            explained_variance={name: v.explained for name, v in found.items()},
        )
        section = PersonaSection(
            traits=gathered.traits, geometry=Geometry.model_validate(between), model_sha256=weights
        )
        return Results(
            kind="persona",
            conditions=tuple(gathered.conditions),
            choices=tuple(gathered.choices),
            judges=(judge_record(judged, self.judge.usage()),),
            questions=gathered.questions,
            notes=tuple(gathered.notes),
            sections={
                SECTION: section.model_dump(mode="json", exclude_defaults=True),
                **trait_nulls_section(*gathered.untouched(self.traits), self.judge, ledger, self.base),
            },
        )

    def _extracted(
        self, trait: Trait, plain: IntervenedModel, ledger: Ledger, output: Path
    ) -> tuple[Extraction, Vectors]:
        do = self._doing(ledger, trait)
        extraction = extract(self.recipe, trait, plain, self.judge, seed=self.seed, do=do)
        return extraction, self._vectors(trait, extraction, plain, ledger, output)

    def _recorded(
        self,
        trait: Trait,
        extractions: Mapping[str, Extraction],
        found: Mapping[str, Vectors],
        tensors: Mapping[str, torch.Tensor],
        plain: IntervenedModel,
        ledger: Ledger,
        gathered: Gathered,
    ) -> TraitRecord:
        """What is known of a trait; where it is steered, sweep and conditions are run."""
        record = TraitRecord(
            extraction=ExtractionCounts.model_validate(extractions[trait.name].summary()),
            vectors=_by_layer(found[trait.name]),
        )
        if trait.name not in self.spec.steered_traits:
            return record
        own = {k: v for k, v in tensors.items() if k.startswith(f"{trait.name}.{SITE}[")}
        do = self._doing(ledger, trait)
        return self._steered(trait, record, found[trait.name], own, plain, do, gathered)

    def _steered(
        self,
        trait: Trait,
        record: TraitRecord,
        vectors: Vectors,
        tensors: Mapping[str, torch.Tensor],
        plain: IntervenedModel,
        do: Do,
        gathered: Gathered,
    ) -> TraitRecord:
        """Sweep and conditions of a trait that is steered."""
        steering, identity = self._declared(trait.name), self.base | {"tensors": tensors_digest(tensors)}
        fields: dict[str, Sweep | Correlation] = {}
        if self.sweep is not None:
            swept = run_sweep(
                self.sweep,
                trait,
                steering,
                tensors,
                plain,
                self.judge,
                identity=identity,
                seed=self.seed,
                do=do,
            )
            fields["sweep"] = swept.sweep
            gathered.notes += swept.notes
            gathered.ask(trait.evaluation[: self._swept_questions(trait)])
            if swept.choice is not None:
                gathered.choices.append(swept.choice)
                steering = steering.model_copy(update=swept.choice.chosen or {})
        gathered.steering[trait.name] = steering
        if self.conditions is not None:
            subject = Subject(
                trait,
                steering,
                tensors,
                dict(enumerate(vectors.vectors)),
                self._remaining(trait),
                plain,
                self.judge,
                identity,
            )
            compared = run_conditions(
                self.conditions, subject, self._cost(plain, gathered), seed=self.seed, do=do
            )
            fields |= {"correlation": compared.correlation, "within": compared.within}
            gathered.conditions += compared.conditions
            gathered.notes += compared.notes
            gathered.ask(subject.questions)
        positions = steering.model_dump(mode="json")["positions"]
        place = Place(layer=steering.layer, unit=steering.unit, positions=positions)
        return record.model_copy(update={"steering": place, **fields})

    def _doing(self, ledger: Ledger, trait: Trait) -> Do:
        """Does units of a trait, and says so."""

        def do(identity: Mapping[str, Json], work: Callable[[], Result]) -> Result:
            whole = {**self.base, **identity}
            was_done = ledger.has(whole)
            result = ledger.do(whole, work)
            what = str(identity["unit"])
            self.step("unit", {"trait": trait.name, "what": what, "was_done": was_done})
            return result

        return do

    def _vectors(
        self, trait: Trait, extraction: Extraction, plain: IntervenedModel, ledger: Ledger, output: Path
    ) -> Vectors:
        sides = [side for i in extraction.kept for side in extraction.pairs[i]]
        read = [[list(side.prompt), list(side.tokens), side.start] for side in sides]
        identity = self.base | {"unit": "vectors", "tokens": self.recipe.tokens, "read": digest(read)}
        target = output / "vectors" / f"{trait.name}-{digest(identity)[:16]}"
        file = target / "vectors.safetensors"

        def work() -> MadeVectors:
            made = vectors_of(self.recipe, trait, extraction, Anatomy.of(plain.model), plain.tokenizer)
            with atomic_folder(target) as temporary:
                kept = {"vectors": made.vectors, "residual_norm": made.residual_norm}
                safetensors.torch.save_file(kept, temporary / "vectors.safetensors")
            return {"folder": target.name, "tensors": tensors_digest(kept), "explained": made.explained}

        recorded = ledger.recorded(identity, MadeVectors)
        was_done = recorded is not None and holds(file, recorded["tensors"])
        if not was_done:
            ledger.forget(identity)
        explained = ledger.do(identity, work)["explained"]
        self.step("unit", {"trait": trait.name, "what": "vectors", "was_done": was_done})
        stored = load_tensors(file)
        return Vectors(stored["vectors"], stored["residual_norm"], explained)

    def _remaining(self, trait: Trait) -> tuple[str, ...]:
        """The evaluation questions that the sweep has not used."""
        limit = None if self.conditions is None else self.conditions.questions
        return trait.evaluation[self._swept_questions(trait) :][:limit]

    def _cost(self, plain: IntervenedModel, gathered: Gathered) -> Cost | None:
        declared = None if self.conditions is None else self.conditions.cost
        if declared is None or gathered.cost is not None:
            return gathered.cost
        texts = read_texts(TextsSpec(), self.folder, declared.texts)
        reference = Reference(
            plain, texts, max_tokens=declared.max_tokens, prompt_tokens=declared.prompt_tokens
        )
        gathered.cost = Cost(reference, shipped_questions(declared.choices))
        return gathered.cost

    def _keep(
        self,
        chosen: Mapping[str, SteeringSpec],
        tensors: Mapping[str, torch.Tensor],
        provenance: Mapping[str, Json],
        plain: IntervenedModel,
        output: Path,
    ) -> None:
        """Save each trait's steering as an artifact, and the file's interventions together."""
        steered = self.spec.steered_traits
        places = {steered[name]: steering for name, steering in chosen.items()}
        together = [places.get(i, declared) for i, declared in enumerate(self.spec.interventions)]
        kept: dict[str, Sequence[Any]] = {name: [steering] for name, steering in chosen.items()}
        if len(together) > 1 or not chosen:
            kept["all"] = together
        for name, interventions in kept.items():
            declared = self.spec.model_copy(update={"interventions": tuple(interventions), "evaluate": ()})
            m = IntervenedModel.from_spec(
                declared,
                model=plain.model,
                tokenizer=plain.tokenizer,
                tensors={
                    k: v for k, v in tensors.items() if name == "all" or k.startswith(f"{name}.{SITE}[")
                },
                provenance=dict(provenance),
                folder=self.folder,
            )
            m.save_pretrained(output / artifact_of(name))


def _by_layer(found: Vectors) -> tuple[LayerVector, ...]:
    norms = found.vectors.norm(dim=-1).tolist()
    by_layer = enumerate(zip(norms, found.residual_norm.tolist(), found.explained, strict=True))
    return tuple(
        LayerVector(layer=layer, norm=norm, residual_norm=residual, explained_variance=explained)
        for layer, (norm, residual, explained) in by_layer
    )
