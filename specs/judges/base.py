"""What every judge has."""

from __future__ import annotations

from typing import ClassVar

from subvene.specs._base import SpecModel


class BaseJudge(SpecModel):
    """Who says whether an answer is true, and whether it is informative; each adds its ``kind``."""

    expects: ClassVar[str] = "a mapping with `kind`"
