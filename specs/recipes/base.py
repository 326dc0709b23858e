"""What every recipe has: the key under which its tensors are stored."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Identifier


class BaseRecipe(SpecModel):
    """One way in which tensors come about; each recipe adds its ``recipe`` and its own fields."""

    expects: ClassVar[str] = "a mapping with `recipe`"

    key: Identifier = Field(
        description="The key of the tensors that this gives, by which the interventions of this file name "
        "them."
    )
