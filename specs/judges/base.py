"""What every judge has."""

from typing import ClassVar, Self

from pydantic import model_validator

from subvene.specs._base import SpecModel
from subvene.specs._flaws import Flaw, refuse


class BaseJudge(SpecModel):
    """Who says whether an answer is true, and whether it is informative; each adds its ``kind``."""

    expects: ClassVar[str] = "a mapping with `kind`"


class TwoModelJudge(BaseJudge):
    """A judge that asks a model of one question and a model of another; `model` stands for both."""

    @model_validator(mode="after")
    def _models(self) -> Self:
        both = getattr(self, "model", None)
        missing = [field for field in ("truth_model", "info_model") if getattr(self, field) is None]
        if missing and both is None:
            expected = "`truth_model` and `info_model`, or `model` in place of the two"
            flaws = [Flaw((field,), expected, None, "missing_field") for field in missing]
            refuse(type(self).__name__, flaws)
        for field in missing:
            # Frozen for its users; this is the one place that fills in what the file left out.
            object.__setattr__(self, field, both)
        return self
