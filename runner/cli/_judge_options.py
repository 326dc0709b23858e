"""Options that several commands about judges have."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class Aspect(StrEnum):
    """The choices of `--aspect`."""

    TRUTH = "truth"
    INFO = "info"


AspectOption = Annotated[
    Aspect | None, typer.Option("--aspect", help="The quality, where the file does not say it.")
]
