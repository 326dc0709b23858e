"""What an edit costs: how far the model is from the original on texts, and right choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from subvene.runner.files.json_value import Json
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.measures.divergence import Reference, divergence
from subvene.runner.measures.multiple_choice import ChoiceQuestion, accuracy, questions_sha256


class CostMeasured(TypedDict):
    """What an edit costs: CE and KL over `texts`, the share of right choices of `choices` questions."""

    ce: float
    kl: float
    accuracy: float
    choices: int
    texts: int


@dataclass(frozen=True)
class Cost:
    """What the cost of an edit is measured on, computed once for all conditions."""

    reference: Reference
    choices: Sequence[ChoiceQuestion]

    @property
    def identity(self) -> dict[str, Json]:
        """What is measured on, JSON values."""
        return {
            "texts": self.reference.data_sha256,
            "tokens": self.reference.tokens,
            "prompt": self.reference.first + 1,
            "choices": questions_sha256(self.choices),
        }

    def of(self, m: IntervenedModel) -> CostMeasured:
        """CE, KL(original ‖ edited) in nats per token, and the share of right choices."""
        found = divergence(m, self.reference)
        return {
            "ce": found["ce"],
            "kl": found["kl"],
            "accuracy": accuracy(m, self.choices),
            "choices": len(self.choices),
            "texts": len(self.reference.ids),
        }
