"""What every kind of intervention has: a name and the tokens it edits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Identifier
from subvene.specs.positions import Positions
from subvene.specs.tensors import TensorRef

STRENGTH = (
    "Multiplies the edit: one finite number, or a list with one number per row of the batch. 0 leaves the "
    "model as it is."
)
LAYER = "0-based index of the decoder block: 19 is `model.layers[19]`."


class BaseIntervention(SpecModel):
    """One edit of activations; each kind adds its ``kind``, its site and its own fields."""

    also_called: ClassVar[dict[str, str]] = {
        "coefficient": "strength",
        "scale": "strength",
        "layers": "layer",
    }

    name: Identifier | None = Field(
        default=None, description="What receipts and tables call this intervention; unique within a file."
    )
    positions: Positions = Field(
        default="all",
        description="The tokens that are edited, by absolute position: `all`; `prompt` (tokens 0 to P-1); "
        "`response` (the cursor P-1 and all that follows); `last_prompt_token` (P-1 alone); or counted "
        "tokens (`first`, `last` or `indices`) of the prompt or the response. Padding is never edited.",
    )

    def tensor_refs(self) -> Iterator[tuple[str, TensorRef]]:
        """Yields the name and value of every field that names stored tensors."""
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, TensorRef):
                yield field, value
