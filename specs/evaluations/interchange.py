"""Interchange intervention accuracy: whether a swapped subspace makes the model answer as the source says."""

from typing import Literal

from pydantic import Field

from subvene.specs._fields import Count, Identifier
from subvene.specs.evaluations.base import BaseEvaluation


class InterchangeSpec(BaseEvaluation):
    """Interchange intervention accuracy (Geiger et al., 2021) of a `das` fit, on the rows that it held out.

    The share of rows in which the swapped subspace makes the label the likeliest answer. Beside it stand its
    controls: the whole vector swapped, subspaces of the same rank in random directions, the trained subspace
    with the sources of other rows, and a linear probe's accuracy at the place.
    """

    kind: Literal["interchange"] = Field(
        default="interchange", description="Interchange intervention accuracy, with its controls."
    )
    key: Identifier | None = Field(
        default=None, description="The key of the `das` fit that is measured; left out: the file's only one."
    )
    among: Literal["answers", "vocabulary"] = Field(
        default="answers",
        description="The tokens of which the label must be the likeliest: the labels of all rows, or all "
        "tokens.",
    )
    random: Count = Field(default=5, description="Draws of a random direction at each cell.")
    resamples: Count = Field(default=10_000, description="Bootstrap samples of the rows, for differences.")
