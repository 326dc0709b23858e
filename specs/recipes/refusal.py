"""Refusal: the one direction of the residual stream without which a model does not refuse."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import AllowInfNan, Field, Strict

from subvene.specs._fields import AllOrIndices, Count, Finite, Fraction, Text
from subvene.specs._flaws import Expect
from subvene.specs.pairs import ContrastPairs
from subvene.specs.recipes.base import OneKeyRecipe
from subvene.specs.sites import Site

Divergence = Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a number of nats above 0")]
Share = Annotated[
    float, Strict(), Ge(0), Lt(1), AllowInfNan(False), Expect("a number from 0 to 1, 1 left out")
]


class RefusalSpec(OneKeyRecipe):
    """One direction for all layers, chosen by what its removal and its addition do (Arditi et al., 2024)."""

    usual_intervention: ClassVar[str | None] = "ablation"
    usual_sites: ClassVar[tuple[Site, ...]] = ("block_input", "attention_output", "mlp_output")
    data_field: ClassVar[str | None] = "pairs"
    methods: ClassVar[Mapping[str, str]] = {
        "directional ablation of refusal": "Arditi et al. 2024, arXiv:2406.11717"
    }

    recipe: Literal["refusal"] = Field(default="refusal", description="The direction of refusal.")
    pairs: ContrastPairs = Field(
        description="`prompts` with two lists: `positive`, instructions that the model refuses, and "
        "`negative`, instructions that it follows; or a `file` that holds this."
    )
    layers: AllOrIndices = Field(
        default="all",
        description="0-based indices of the decoder blocks whose input may give the direction, or `all`; "
        "those that `leave_last` leaves out give none.",
    )
    leave_last: Share = Field(
        default=0.2, description="The share of the layers, the last ones, that give no direction."
    )
    positions: Count | None = Field(
        default=None,
        description="The last so many tokens of the prompt may give the direction. Left out: all tokens that "
        "the chat template puts after the instruction.",
    )
    refusal_words: Annotated[tuple[Text, ...], MinLen(1), Expect("a non-empty list of words")] = Field(
        default=("I",),
        description="What refusals begin with, each one token of this model; the model's own, such as `I` "
        "and `As` for Qwen.",
    )
    filter: bool = Field(
        default=True,
        strict=True,
        description="Read only those positive prompts that the untouched model rather refuses than not "
        "(score above 0), and those negative ones that it does not (below 0).",
    )
    validation: Fraction = Field(
        default=0.2,
        description="The share of the prompts of either list, drawn by the seed, by which the direction is "
        "chosen; the others give the candidates.",
    )
    max_kl: Divergence = Field(
        default=0.1,
        description="The most that removing the direction may change what follows negative prompts: mean "
        "KL(untouched ‖ ablated) at the last token, in nats.",
    )
    min_induced: Finite = Field(
        default=0.0,
        description="The least mean score of refusal, log p/(1 − p), of negative prompts with the direction "
        "added.",
    )
    batch_size: Count = Field(default=32, description="Prompts per forward pass.")
