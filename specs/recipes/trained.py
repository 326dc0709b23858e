"""What recipes have in common that train an edit of a frozen model on preferences or completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Lt
from pydantic import AllowInfNan, Field, Strict, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Fraction, Seed
from subvene.specs._flaws import Expect, Flaw, Named, refuse
from subvene.specs.preferences import PreferenceData, TruthfulPairsSpec
from subvene.specs.questions import QuestionsSpec
from subvene.specs.recipes.base import OneKeyRecipe

Positive = Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a number above 0")]
NotNegative = Annotated[float, Strict(), Ge(0), AllowInfNan(False), Expect("a number >= 0")]
Share = Annotated[
    float, Strict(), Ge(0), Lt(1), AllowInfNan(False), Expect("a number from 0 to 1, 1 left out")
]
Reduction = Literal["sum", "mean"]

_REDUCTION = "An answer's log-probability is the `sum` over its tokens, or their `mean`"


class _Objective(SpecModel):
    expects: ClassVar[str] = "a mapping with `kind`, one of: ipo, dpo, sft"


class IPOSpec(_Objective):
    """Identity preference optimization (Azar et al., 2024): (Δ − 1/(2τ))²."""

    kind: Literal["ipo"] = Field(default="ipo", description="Identity preference optimization.")
    tau: Positive = Field(
        default=0.1, description="τ: the margin Δ in nats is drawn towards 1/(2τ); smaller edits more."
    )
    reduction: Reduction = Field(
        default="sum", description=f"{_REDUCTION} (TRL's variant). With `mean`, Δ is in nats per token."
    )


class DPOSpec(_Objective):
    """Direct preference optimization (Rafailov et al., 2023): −log σ(βΔ)."""

    kind: Literal["dpo"] = Field(default="dpo", description="Direct preference optimization.")
    beta: Positive = Field(default=0.1, description="β: how much a nat of margin counts.")
    reduction: Reduction = Field(default="sum", description=f"{_REDUCTION}.")


class SFTSpec(_Objective):
    """Supervised fine-tuning: −log π(y⁺|x); the unwanted answers are not read."""

    kind: Literal["sft"] = Field(default="sft", description="Supervised fine-tuning.")
    reduction: Reduction = Field(default="mean", description=f"{_REDUCTION}.")


Objective = Annotated[IPOSpec | DPOSpec | SFTSpec, Named("kind")]


class TrainedRecipe(OneKeyRecipe):
    """A recipe whose tensors are trained by gradient descent; the model stays as it is."""

    also_called: ClassVar[dict[str, str]] = {
        "lr": "learning_rate",
        "loss": "objective",
        "clip": "max_grad_norm",
    }
    immaterial: ClassVar[frozenset[str]] = frozenset({"pass_tokens", "checkpoint_every"})
    trains: ClassVar[bool] = True
    data_field: ClassVar[str | None] = "data"

    data: PreferenceData = Field(
        description="What is preferred to what. `objective: {kind: sft}` also takes rows of a prompt and a "
        "completion, without an unwanted answer."
    )
    objective: Objective = Field(default=IPOSpec.of_defaults(), description="What is minimised.")
    learning_rate: Positive = Field(default=5e-4, description="Highest learning rate.")
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="The learning rate after the warm-up: a half cosine to 0, or the same."
    )
    warmup: Share = Field(default=0.1, description="Share of the steps over which the rate rises from 0.")
    epochs: Count = Field(default=2, description="How often the training pairs are gone through.")
    batch_size: Count = Field(default=4, description="Pairs per optimizer step.")
    optimizer: Literal["adamw", "paged_adamw_32bit"] = Field(
        default="adamw",
        description="AdamW with float32 states. `paged_adamw_32bit` is the same arithmetic; what really ran "
        "is in the provenance.",
    )
    weight_decay: NotNegative = Field(default=0.0, description="AdamW's decoupled weight decay.")
    max_grad_norm: Positive | None = Field(
        default=1.0, description="Gradients are scaled down to this norm; null: never."
    )
    validation: Fraction | None = Field(
        default=0.2,
        description="Share of the questions (prompts), whole ones, that are held out: the step with the "
        "least loss on them is kept. null: none, and the last step is kept.",
    )
    evaluate_every: Count | None = Field(
        default=None, description="Steps between two looks at the validation pairs; left out: an epoch."
    )
    patience: Count | None = Field(
        default=None,
        description="Stop after so many looks without a smaller validation loss; left out: never.",
    )
    checkpoint_every: Count = Field(default=50, description="Steps between two checkpoints.")
    pass_tokens: Count | None = Field(
        default=None,
        description="Most tokens of a forward pass, padding included; a step takes as many passes as it "
        "needs, with the same result. Left out: 2048 on a CPU, 16384 elsewhere.",
    )
    seed: Seed | None = Field(
        default=None,
        description="Of the first factors, the order of the pairs and the validation questions; left out: "
        "the experiment's.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if flaws := list(self._flaws()):
            refuse(type(self).__name__, flaws)
        return self

    def _flaws(self) -> Iterator[Flaw]:
        if self.patience is not None and self.validation is None:
            yield Flaw(("patience",), "a share in `validation` beside it", self.patience)

    def own_seed(self, experiment: int) -> int:
        """Returns the seed that is used: its own if it has one, or the experiment's."""
        return experiment if self.seed is None else self.seed

    @property
    def learns_from(self) -> QuestionsSpec | None:
        """The questions whose answers are set against each other; None for triples."""
        return self.data.truthfulqa if isinstance(self.data, TruthfulPairsSpec) else None
