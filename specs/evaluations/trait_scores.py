"""Trait scores: how much of a trait a judge finds in what a condition writes, and whether it makes sense."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Index
from subvene.specs.evaluations.base import ChoosingEvaluation
from subvene.specs.judges import AnyJudge, TrainedJudgeSpec
from subvene.specs.sampling import Sampling, SamplingSpec
from subvene.specs.tensors import TensorRef
from subvene.specs.traits import Traits, trait_name


class ProjectionSpec(SpecModel):
    """On which direction responses are projected, as the untouched model reads them."""

    expects: ClassVar[str] = "a mapping with `vector` and `layer`"

    vector: TensorRef = Field(
        description="The direction, `{key}.block_output[{layer}]`; its length does not matter."
    )
    layer: Index = Field(description="0-based index of the decoder block whose output is projected.")


class TraitScoresSpec(ChoosingEvaluation):
    """Trait score and coherence of responses, each from 0 to 100, and their projection on a vector.

    Of a trait `formal` the metrics are `formal_score`, `formal_coherence` and `formal_projection`.
    """

    kind: Literal["trait_scores"] = Field(
        default="trait_scores", description="Trait score and coherence of responses."
    )
    traits: Traits = Field(description="The traits, whose evaluation questions are asked.")
    questions: Count | None = Field(
        default=None,
        description="At most so many questions per trait that conditions are tested on; left out: all there "
        "are.",
    )
    sampling: Sampling = Field(default=SamplingSpec.of_defaults(), description="How it generates.")
    judge: AnyJudge = Field(
        default=TrainedJudgeSpec.of_defaults(),
        description="Who scores for the trait and for coherence.",
    )
    projection: ProjectionSpec | None = Field(
        default=None,
        description="Project the mean activation of each response on a direction; left out: no projection.",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """What the traits are called."""
        return tuple(trait_name(trait) for trait in self.traits)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of every trait its score, its coherence, and the projection if there is one."""
        parts = ("score", "coherence", *(("projection",) if self.projection else ()))
        return tuple(f"{name}_{part}" for name in self.names for part in parts)

    @property
    def choosing(self) -> tuple[str, ...]:
        """Scores and coherence; what a direction says of itself chooses nothing."""
        return tuple(metric for metric in self.metrics if not metric.endswith("_projection"))
