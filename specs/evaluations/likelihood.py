"""Likelihood: how likely a condition finds what the model itself writes with a trait and without it."""

from typing import Literal

from pydantic import Field

from subvene.specs._fields import Count
from subvene.specs.evaluations.base import ChoosingEvaluation
from subvene.specs.traits import Traits, trait_name


class LikelihoodSpec(ChoosingEvaluation):
    """Log-probability per token of the untouched model's own answers with a trait, less of those without.

    After Pres et al. (2024, arXiv:2410.17245), who ask that behaviour be scored in the context in which the
    model generates, by likelihoods and against the untouched model. The untouched model answers each
    evaluation question once with the trait's first positive system prompt and once with its first negative
    one, greedily; every condition scores both answers behind the question alone. Of a trait `formal` the
    metrics are `formal_likelihood`, the difference, and its two parts, `formal_logp` and
    `formal_opposed_logp`: a difference may grow while both answers become less likely.
    """

    kind: Literal["likelihood"] = Field(
        default="likelihood",
        description="Log-probability of the model's own answers with and without a trait.",
    )
    traits: Traits = Field(description="The traits, whose evaluation questions are answered.")
    questions: Count | None = Field(
        default=None,
        description="At most so many questions per trait that conditions are tested on; left out: all there "
        "are.",
    )
    max_new_tokens: Count = Field(default=40, description="Longest answer, in tokens.")
    batch_size: Count = Field(default=16, description="Texts per forward pass.")

    @property
    def names(self) -> tuple[str, ...]:
        """What the traits are called."""
        return tuple(trait_name(trait) for trait in self.traits)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of every trait the difference and its two parts."""
        return tuple(
            f"{name}_{part}" for name in self.names for part in ("likelihood", "logp", "opposed_logp")
        )

    @property
    def choosing(self) -> tuple[str, ...]:
        """The differences."""
        return tuple(f"{name}_likelihood" for name in self.names)
