"""Localized edits: low-rank edits at chosen heads, trained on preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Lt
from pydantic import AllowInfNan, Field, Strict, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Fraction, Seed
from subvene.specs._flaws import Expect, Flaw, Named, refuse
from subvene.specs.preferences import PreferenceData, TruthfulPairsSpec
from subvene.specs.questions import QuestionsSpec
from subvene.specs.recipes.base import OneKeyRecipe
from subvene.specs.recipes.iti import AllHeads, ListedHeads, Ranking, RankingFolds

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


class _Heads(SpecModel):
    expects: ClassVar[str] = "a mapping with `rule`"


class ProbedHeads(_Heads):
    """The heads where a probe best tells wanted from unwanted answers, as ITI finds them."""

    rule: Literal["probed"] = Field(default="probed", description="The best by probing accuracy.")
    k: Count = Field(default=16, description="How many heads, over all layers.")
    ranking: Ranking = "cross_validation"
    ranking_folds: RankingFolds = 5
    validation: Fraction = Field(
        default=0.2,
        description="Share of the questions, whole questions, that ranks the heads under `ranking: split`.",
    )
    batch_size: Count = Field(default=64, description="Texts per forward pass when heads are probed.")


class DrawnHeads(_Heads):
    """Heads drawn at random: what a localization is to be compared with."""

    rule: Literal["random"] = Field(default="random", description="Drawn at random.")
    k: Count = Field(default=16, description="How many heads, over all layers.")
    seed: Seed | None = Field(default=None, description="Seed of the draw; left out: the experiment's.")


Heads = Annotated[ProbedHeads | DrawnHeads | ListedHeads | AllHeads, Named("rule")]


class LocalizedEditSpec(OneKeyRecipe):
    """A trained low-rank edit that writes to chosen heads (Wang and Veitch, 2025)."""

    also_called: ClassVar[dict[str, str]] = {
        "lr": "learning_rate",
        "select": "heads",
        "write_heads": "heads",
        "loss": "objective",
        "clip": "max_grad_norm",
    }
    immaterial: ClassVar[frozenset[str]] = frozenset({"pass_tokens", "checkpoint_every"})
    trains: ClassVar[bool] = True

    methods: ClassVar[Mapping[str, str]] = {
        "localized edits": "Wang and Veitch 2025",
    }
    usual_intervention: ClassVar[str | None] = "low_rank_edit"
    data_field: ClassVar[str | None] = "data"

    recipe: Literal["localized_edit"] = Field(
        default="localized_edit", description="A low-rank edit trained on preferences."
    )
    data: PreferenceData = Field(description="What is preferred to what.")
    objective: Objective = Field(default=IPOSpec.of_defaults(), description="What is minimised.")
    heads: Heads = Field(default=ProbedHeads.of_defaults(), description="The heads that the edit writes to.")
    read_heads: Literal["all", "written"] = Field(
        default="all",
        description="The heads that a reader sees: `all` of its layer, or the `written` ones (with "
        "`per: head`, its own).",
    )
    rank: Count = Field(default=1, description="Number of pairs a, b of each layer (or head).")
    per: Literal["layer", "head"] = Field(
        default="layer", description="One edit for the chosen heads of a layer together, or one for each."
    )
    gate: Literal["adaptive", "constant"] = Field(
        default="adaptive",
        description="`adaptive`: o ← o + Σ_r ⟨a_r, o⟩·b_r, for interventions of kind low_rank_edit; "
        "`constant`: o ← o + b, whatever o is, for interventions of kind head_direction.",
    )
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
        flaws = []
        if self.gate == "constant" and self.rank != 1:
            flaws.append(Flaw(("rank",), "1, since a constant edit is one vector", self.rank))
        if self.patience is not None and self.validation is None:
            flaws.append(Flaw(("patience",), "a share in `validation` beside it", self.patience))
        if flaws:
            refuse("LocalizedEditSpec", flaws)
        return self

    def own_seed(self, experiment: int) -> int:
        """Returns the seed that is used: its own if it has one, or the experiment's."""
        return experiment if self.seed is None else self.seed

    @property
    def learns_from(self) -> QuestionsSpec | None:
        """The questions whose answers are set against each other; None for triples."""
        return self.data.truthfulqa if isinstance(self.data, TruthfulPairsSpec) else None
