"""Random directions: what a direction that was found is to be compared with."""

from typing import ClassVar, Literal

from pydantic import Field

from subvene.specs._fields import Identifier, Seed
from subvene.specs.recipes.base import OneKeyRecipe


class RandomDirectionSpec(OneKeyRecipe):
    """A direction drawn at random, uniformly over all directions, as long as another fit's at each layer."""

    also_called: ClassVar[dict[str, str]] = {"of": "like", "norm_of": "like"}

    recipe: Literal["random_direction"] = Field(
        default="random_direction", description="A random direction of the same norm."
    )
    like: Identifier = Field(
        description="The key of an earlier fit, whose directions say at which site and layers "
        "there are some, and how long they are."
    )
    seed: Seed | None = Field(default=None, description="Seed of the draw; left out: the experiment's.")

    @property
    def made_from(self) -> str:
        """The key of the fit that says how long the directions are."""
        return self.like
