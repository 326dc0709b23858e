"""Persona vectors: directions from contrasting system prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le
from pydantic import AllowInfNan, Field, Strict

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count
from subvene.specs._flaws import Expect
from subvene.specs.judges import AnyJudge, TrainedJudgeSpec
from subvene.specs.recipes.base import BaseRecipe
from subvene.specs.sampling import Sampling, SamplingSpec
from subvene.specs.traits import Traits, trait_name

Score = Annotated[float, Strict(), Ge(0), Le(100), AllowInfNan(False), Expect("a number from 0 to 100")]


class KeepSpec(SpecModel):
    """Which pairs of responses a vector is made of (Chen et al., 2025)."""

    expects: ClassVar[str] = "a mapping with any of `positive`, `negative`, `coherence`, `warn_below`"

    positive: Score = Field(
        default=50.0, description="A response to a positive system prompt must score at least so much."
    )
    negative: Score = Field(
        default=50.0, description="A response to a negative system prompt must score less than this."
    )
    coherence: Score = Field(default=50.0, description="Both must be at least so coherent.")
    warn_below: Count = Field(
        default=10, description="Fewer pairs than this give a vector with a warning in its artifact."
    )


class PersonaSpec(BaseRecipe):
    """Persona vectors (Chen et al., 2025, arXiv:2507.21509): contrasting system prompts, a judge, a mean."""

    methods: ClassVar[Mapping[str, str]] = {
        "persona vectors": "Chen et al. 2025, arXiv:2507.21509",
    }
    usual_intervention: ClassVar[str | None] = "steering"
    data_field: ClassVar[str | None] = "traits"
    dataset_field: ClassVar[str | None] = None

    recipe: Literal["persona"] = Field(default="persona", description="Persona vectors.")
    traits: Traits = Field(
        description="The traits; each gives a vector for every layer, under the trait's name."
    )
    tokens: Literal["response_avg", "prompt_avg", "prompt_avg_all", "prompt_last"] = Field(
        default="response_avg",
        description="The tokens whose mean activation is compared: those of the response; those of the "
        "prompt but token 0, an attention sink whose activation drowns a mean (`prompt_avg`), or with it, as "
        "the published code has them (`prompt_avg_all`); or the last one of the prompt.",
    )
    instructions: Count | None = Field(
        default=None, description="At most so many pairs of instructions, the first ones; left out: all."
    )
    questions: Count | None = Field(
        default=None, description="At most so many questions, the first ones; left out: all."
    )
    sampling: Sampling = Field(default=SamplingSpec.of_defaults(), description="How responses are generated.")
    judge: AnyJudge = Field(
        default=TrainedJudgeSpec.of_defaults(),
        description="Who scores responses for the trait and for coherence.",
    )
    keep: KeepSpec = Field(default=KeepSpec.of_defaults(), description="Which pairs of responses are used.")
    batch_size: Count = Field(default=16, description="Responses per forward pass when activations are read.")

    @property
    def keys(self) -> tuple[str, ...]:
        """The traits' names."""
        return tuple(trait_name(trait) for trait in self.traits)
