"""Classes by name, for `isinstance`: what is asked of a value imports nothing.

A file has few of many kinds, and each costs time to import; what was never imported has no instances. To make
one, or to read its fields, import it from where it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

STANDS_FOR = {
    "CompositionSpec": "subvene.specs.evaluations.composition",
    "ContrastPrompts": "subvene.specs.pairs",
    "CounterfactualsSpec": "subvene.specs.counterfactuals",
    "DASSpec": "subvene.specs.recipes.das",
    "DivergenceSpec": "subvene.specs.evaluations.divergence",
    "FactsFile": "subvene.specs.facts",
    "InterchangeSpec": "subvene.specs.evaluations.interchange",
    "LmEvalSpec": "subvene.specs.evaluations.lm_eval",
    "LocalizationSpec": "subvene.specs.evaluations.localization",
    "MultipleChoiceSpec": "subvene.specs.evaluations.multiple_choice",
    "PairsFile": "subvene.specs.pairs",
    "PersonaSpec": "subvene.specs.recipes.persona",
    "RandomDirectionSpec": "subvene.specs.recipes.random_direction",
    "ReferenceJudgeSpec": "subvene.specs.judges.reference",
    "TextsSpec": "subvene.specs.evaluations.divergence",
    "TrainedJudgeSpec": "subvene.specs.judges.trained",
    "TracingEvaluation": "subvene.specs.evaluations.tracing",
    "TraitEvaluation": "subvene.specs.evaluations.traits",
    "TraitScoresSpec": "subvene.specs.evaluations.trait_scores",
    "TraitSpec": "subvene.specs.traits",
    "TransferSpec": "subvene.specs.recipes.transfer",
    "TriplesSpec": "subvene.specs.preferences",
    "TruthfulQASpec": "subvene.specs.evaluations.truthfulqa",
}
"""By name, where each is."""

if TYPE_CHECKING:
    from subvene.specs.counterfactuals import CounterfactualsSpec as CounterfactualsSpec
    from subvene.specs.evaluations.composition import CompositionSpec as CompositionSpec
    from subvene.specs.evaluations.divergence import DivergenceSpec as DivergenceSpec
    from subvene.specs.evaluations.divergence import TextsSpec as TextsSpec
    from subvene.specs.evaluations.interchange import InterchangeSpec as InterchangeSpec
    from subvene.specs.evaluations.lm_eval import LmEvalSpec as LmEvalSpec
    from subvene.specs.evaluations.localization import LocalizationSpec as LocalizationSpec
    from subvene.specs.evaluations.multiple_choice import MultipleChoiceSpec as MultipleChoiceSpec
    from subvene.specs.evaluations.tracing import TracingEvaluation as TracingEvaluation
    from subvene.specs.evaluations.trait_scores import TraitScoresSpec as TraitScoresSpec
    from subvene.specs.evaluations.traits import TraitEvaluation as TraitEvaluation
    from subvene.specs.evaluations.truthfulqa import TruthfulQASpec as TruthfulQASpec
    from subvene.specs.facts import FactsFile as FactsFile
    from subvene.specs.judges.reference import ReferenceJudgeSpec as ReferenceJudgeSpec
    from subvene.specs.judges.trained import TrainedJudgeSpec as TrainedJudgeSpec
    from subvene.specs.pairs import ContrastPrompts as ContrastPrompts
    from subvene.specs.pairs import PairsFile as PairsFile
    from subvene.specs.preferences import TriplesSpec as TriplesSpec
    from subvene.specs.recipes.das import DASSpec as DASSpec
    from subvene.specs.recipes.persona import PersonaSpec as PersonaSpec
    from subvene.specs.recipes.random_direction import RandomDirectionSpec as RandomDirectionSpec
    from subvene.specs.recipes.transfer import TransferSpec as TransferSpec
    from subvene.specs.traits import TraitSpec as TraitSpec
else:

    class _StandIn(type):
        def __instancecheck__(cls, value: object) -> bool:
            return any(
                (c.__module__, c.__name__) == (cls.__module__, cls.__name__) for c in type(value).__mro__
            )

    globals().update({name: _StandIn(name, (), {"__module__": home}) for name, home in STANDS_FOR.items()})
