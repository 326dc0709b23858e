"""The two kinds of file: interventions on a model, and an experiment with them."""

from typing import Self

from pydantic import model_validator

from subvene.specs._flaws import Flaw, one_of, refuse
from subvene.specs.comparison_flaws import comparison_flaws
from subvene.specs.composition import composition_flaws
from subvene.specs.engine_flaws import engine_flaws
from subvene.specs.experiment_fields import ExperimentFields, InterventionSpec
from subvene.specs.fit_flaws import fit_flaws, measured_refs
from subvene.specs.interchange_flaws import cell_flaws, interchange_flaws
from subvene.specs.kinds import (
    LocalizationSpec,
    MultipleChoiceSpec,
    TraitEvaluation,
    TraitScoresSpec,
    TransferSpec,
    TruthfulQASpec,
)
from subvene.specs.positions import TEXT_POSITIONS
from subvene.specs.quantization_flaws import quantization_flaws
from subvene.specs.report_flaws import report_flaws
from subvene.specs.tracing_flaws import tracing_flaws
from subvene.specs.variants import condition_flaws

__all__ = ["OWN_FIELDS", "SOURCE_OF_TENSORS", "ExperimentSpec", "InterventionSpec"]

SOURCE_OF_TENSORS = "`file`, since this file has no `fit:`"


_IN_PARTS = (TruthfulQASpec, LocalizationSpec, TraitEvaluation, TraitScoresSpec, MultipleChoiceSpec)
"""What goes on from prompts that questions share, or is sampled row by row."""


class ExperimentSpec(ExperimentFields):
    """Interventions with what is done around them: where tensors come from, and what is measured."""

    @model_validator(mode="after")
    def _edits_or_traces(self) -> Self:
        if flaws := list(tracing_flaws(self)):
            refuse("ExperimentSpec", flaws)
        return self

    @model_validator(mode="after")
    def _engine_can_do_it(self) -> Self:
        if flaws := [*engine_flaws(self), *quantization_flaws(self)]:
            refuse("ExperimentSpec", flaws)
        return self

    @model_validator(mode="after")
    def _there_is_something_to_report(self) -> Self:
        if flaws := list(report_flaws(self)):
            refuse("ExperimentSpec", flaws)
        return self

    @model_validator(mode="after")
    def _tensors_come_from_somewhere(self) -> Self:
        flaws: list[Flaw] = []
        flaws += fit_flaws(self)
        given = [key for recipe in self.fits for key in recipe.refs]
        for loc, ref in (*self.tensor_refs(), *measured_refs(self)):
            if ref.file is not None:
                continue
            if self.fit is None:
                flaws.append(Flaw((*loc, "file"), SOURCE_OF_TENSORS, ref, "missing_field"))
            elif not any(recipe.gives(ref.key) for recipe in self.fits):
                keys = one_of(given) if len(given) > 1 else f"'{given[0]}'"
                expected = f"{keys}, the key that `fit:` gives, or a `file` beside the key"
                flaws.append(Flaw((*loc, "key"), expected, ref.key))
        if flaws := flaws or [*cell_flaws(self)]:
            refuse("ExperimentSpec", flaws)
        return self

    @model_validator(mode="after")
    def _interchanges_are_of_a_fit(self) -> Self:
        if self.asks_interchange and (flaws := list(interchange_flaws(self))):
            refuse("ExperimentSpec", flaws)
        return self

    @model_validator(mode="after")
    def _traits_can_be_measured(self) -> Self:
        if self.measures_traits:
            from subvene.specs.trait_flaws import trait_flaws

            if flaws := list(trait_flaws(self)):
                refuse("ExperimentSpec", flaws[:1])
        return self

    @model_validator(mode="after")
    def _whole_prompts_are_passed(self) -> Self:
        """Sources and texts are found in whole prompts, which these evaluations pass in parts."""
        named = any(isinstance(one.positions, TEXT_POSITIONS) for one in self.interventions)
        if not self.sources and not named:
            return self
        what = "sources" if self.sources else "positions that name a text"
        flaws = [
            Flaw(("evaluate", i), f"no {one.kind} beside {what}: it goes on from shared prompts", one.kind)
            for i, one in enumerate(self.evaluate)
            if isinstance(one, _IN_PARTS)
        ]
        if flaws:
            refuse("ExperimentSpec", flaws)
        return self

    @model_validator(mode="after")
    def _conditions_can_be_compared(self) -> Self:
        flaws = list(comparison_flaws(self)) or list(composition_flaws(self))
        if not flaws and self.conditions:
            flaws = list(condition_flaws(self))
        if not flaws and any(one.choose and one.choose.budget for one in self.conditions):
            from subvene.specs.default_arms import default_arms_flaws

            flaws = list(default_arms_flaws(self))
        if not flaws and self.conditions and any(isinstance(one, TransferSpec) for one in self.fits):
            from subvene.specs.transfer_arms import transfer_arms_flaws

            flaws = list(transfer_arms_flaws(self))
        if flaws:
            refuse("ExperimentSpec", flaws)
        return self


OWN_FIELDS = tuple(name for name in ExperimentSpec.model_fields if name not in InterventionSpec.model_fields)
"""The top-level fields of which any one makes a file an experiment."""
