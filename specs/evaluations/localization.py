"""Localization: whether the heads that a heuristic finds are better places for an edit than any others."""

from typing import Annotated, ClassVar, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import AfterValidator, AllowInfNan, Field, Strict

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, FiniteList, Fraction, different
from subvene.specs._flaws import Expect
from subvene.specs.evaluations.base import BaseEvaluation
from subvene.specs.recipes.trained import Positive

Group = Literal[
    "iti_probed",
    "iti_random",
    "iti_matched",
    "edit_probed",
    "edit_random",
    "edit_matched",
    "edit_single",
    "edit_all",
    "lora",
]
GROUPS: tuple[Group, ...] = get_args(Group)
MATCHED: tuple[Group, ...] = ("iti_matched", "edit_matched")
"""Draws with as many heads of every layer as the probed set has."""

_ARMS = f"a list of different arms: {', '.join(GROUPS)}"
_SOME_ARMS = f"a non-empty list of different arms: {', '.join(GROUPS)}"
_POSITIVE = "a non-empty list of different numbers above 0"

Positives = Annotated[tuple[Positive, ...], MinLen(1), AfterValidator(different), Expect(_POSITIVE)]
Draws = Annotated[int, Strict(), Ge(2), Le(1000), Expect("an integer from 2 to 1000")]
Level = Annotated[float, Strict(), Gt(0), Lt(1), AllowInfNan(False), Expect("a number between 0 and 1")]


class ITIArm(SpecModel):
    """How the heads are shifted by inference-time intervention, beside the trained edits."""

    expects: ClassVar[str] = "a mapping with `strengths`, `direction`, `positions`"

    strengths: FiniteList = Field(
        default=(5.0, 10.0, 15.0),
        description="α of o_h ← o_h + α·σ_h·θ̂_h; each arm gets the one that is best on validation questions.",
    )
    direction: Literal["mass_mean", "probe_weight"] = Field(
        default="mass_mean", description="As in `fit: {recipe: iti}`."
    )
    positions: Literal["all", "response"] = Field(
        default="response", description="The tokens that are shifted."
    )


class SelectionSpec(SpecModel):
    """How strengths and τ are chosen: on validation questions, for every arm by itself."""

    expects: ClassVar[str] = "a mapping with `by`"

    by: Literal["mc1", "mc2", "mc3", "true_info"] = Field(
        default="mc2",
        description="The metric that is to be largest on validation questions; `true_info`, as in the paper, "
        "has every arm answer them, and a judge read the answers.",
    )
    limit: Count | None = Field(
        default=None, description="At most so many validation questions, chosen by content; left out: all."
    )


class SequentialSpec(SpecModel):
    """When draws of random heads stop early: a sequential Monte-Carlo test (Besag and Clifford, 1991)."""

    expects: ClassVar[str] = "a mapping with `exceedances`, `at_a_time`"

    exceedances: Count = Field(
        default=10,
        description="Draws stop with the one that is so manyth to do at least as well as the probed set by "
        "`selection.by`, on test questions; p is then this number by the draws made. Of a set that stands "
        "out all draws are made.",
    )
    at_a_time: Count = Field(
        default=8,
        description="Draws that are fitted and scored in one piece; those of them that come after the last "
        "one that counts are left out, so that no number depends on it.",
    )


class MeanSpec(SpecModel):
    """IPO on the mean over tokens, as TRL has it: Δ in nats a token, drawn towards the same 1/(2τ)."""

    expects: ClassVar[str] = "a mapping with `learning_rate_factor`, `epochs`"

    learning_rate_factor: Positive = Field(
        default=4.0,
        description="By which each arm's learning rate is multiplied: 1/(2τ) nats a token are as many times "
        "farther away as an answer has tokens.",
    )
    epochs: Count | None = Field(default=None, description="In place of `fit.epochs`; left out: as many.")


class LocalizationSpec(BaseEvaluation):
    """Does editing provide evidence for localization (Wang and Veitch, 2025).

    The heads that probes find, edited by ITI and by the best low-rank edit that training finds, against heads
    drawn at random, single heads, and all of them. What is measured is what the `truthfulqa` and `divergence`
    entries beside it say.
    """

    kind: Literal["localization"] = Field(
        default="localization", description="Probed heads against random ones, single ones and all."
    )
    arms: Annotated[
        tuple[Group, ...],
        MinLen(1),
        AfterValidator(different),
        Expect(_SOME_ARMS),
    ] = Field(
        default=tuple(group for group in GROUPS if group not in MATCHED),
        description="Which arms there are; the untouched model is always one. Draws are `random`, of all "
        "heads, or `matched`: as many of every layer as the probed set has.",
    )
    random: Draws = Field(
        default=16, description="Draws of as many random heads as are probed, and of matched ones."
    )
    random_iti: Draws | None = Field(
        default=None, description="In place of `random` for the arms of ITI, which cost no training."
    )
    sequential: SequentialSpec | None = Field(
        default=None, description="Draws of unremarkable sets stop early; left out: all are made."
    )
    generate: Annotated[tuple[Group, ...], AfterValidator(different), Expect(_ARMS)] | None = Field(
        default=None,
        description="Arms that answer the test questions, beside the untouched model; the others are scored "
        "by multiple choice alone. Left out: all, if the truthfulqa entry measures generation.",
    )
    explore: Annotated[tuple[Group, ...], AfterValidator(different), Expect(_ARMS)] = Field(
        default=(),
        description="Arms of which every α or τ is measured on the test questions too, for curves. They are "
        "exploratory: nothing is chosen by them.",
    )
    together: Count = Field(
        default=8,
        description="Arms (and points of them) whose multiple choice is scored as rows of one batch, with "
        "the same result up to rounding.",
    )
    single: Draws = Field(default=24, description="Heads drawn to be edited alone.")
    test: Fraction = Field(
        default=0.2,
        description="Share of the questions, whole ones, that nothing is fitted or chosen on; "
        "`fit.validation` is a share of the others.",
    )
    tau: Positives | None = Field(
        default=None,
        description="Values of τ of which each edit gets the one that is best on validation questions; left "
        "out: that of `fit.objective`.",
    )
    mean: MeanSpec | None = Field(
        default=None,
        description="Beside each edit with `reduction: sum` one with `mean` is tried, trained more strongly; "
        "validation takes the better. Left out: none.",
    )
    learning_rate_single: Positive = Field(
        default=2e-3, description="Highest learning rate of edits at one head; those at several have `fit`'s."
    )
    learning_rate_all: Positive = Field(
        default=1e-4, description="Highest learning rate of the edit at all heads, and of the LoRA."
    )
    iti: ITIArm = Field(default=ITIArm.of_defaults(), description="The arms of inference-time intervention.")
    selection: SelectionSpec = Field(
        default=SelectionSpec.of_defaults(), description="How one of several strengths or τ is chosen."
    )
    resamples: Count = Field(default=10_000, description="Bootstrap samples of the test questions.")
    level: Level = Field(default=0.95, description="Level of intervals.")
