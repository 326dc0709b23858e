"""Causal tracing: where in a model, and at which token, a fact comes from."""

from typing import Annotated, ClassVar, Literal, get_args

from annotated_types import Gt, MinLen
from pydantic import AfterValidator, AllowInfNan, Field, Strict

from subvene.specs._base import SpecModel
from subvene.specs._fields import AllOrIndices, Count, different
from subvene.specs._flaws import Expect, Named
from subvene.specs.evaluations.tracing import TracingEvaluation

TracedSiteName = Literal["block_output", "mlp_output", "attention_output"]
TraceMetric = Literal["probability", "log_probability", "logit_difference"]
TRACE_METRICS: tuple[TraceMetric, ...] = get_args(TraceMetric)

_METRICS = f"a non-empty list of different metrics: {', '.join(TRACE_METRICS)}"
TraceMetrics = Annotated[tuple[TraceMetric, ...], MinLen(1), AfterValidator(different), Expect(_METRICS)]
Sigma = Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a finite number above 0")]


class NoiseCorruption(SpecModel):
    """Noise on the embeddings of the subject's tokens, as Meng et al. (2022) corrupt a run."""

    expects: ClassVar[str] = "a mapping with `kind`"

    kind: Literal["noise"] = Field(default="noise", description="Noise on the subject's embeddings.")
    sigma: Sigma = Field(
        default=3.0,
        description="Standard deviation of the noise, in units of the standard deviation of the embeddings "
        "of all subjects' tokens.",
    )
    draws: Count = Field(
        default=10, description="Draws of the noise for each fact; numbers are means over them."
    )


class SwapCorruption(SpecModel):
    """Another subject in the subject's place: the `swap` of each fact."""

    expects: ClassVar[str] = "a mapping with `kind`"

    kind: Literal["swap"] = Field(default="swap", description="Another subject in the subject's place.")


Corruption = Annotated[NoiseCorruption | SwapCorruption, Named("kind")]


class TracedSite(SpecModel):
    """What is restored: one site, in one layer or in a window of layers at once."""

    expects: ClassVar[str] = "a mapping with `site` and perhaps `window`"

    site: TracedSiteName = Field(description="The site whose state is restored.")
    window: Count = Field(
        default=1,
        description="So many layers are restored at once: of layer l and window w, the layers from l − ⌊w/2⌋ "
        "to l + ⌈w/2⌉ − 1, as far as the model has them.",
    )


TracedSites = Annotated[
    tuple[TracedSite, ...],
    MinLen(1),
    AfterValidator(different),
    Expect("a non-empty list of different mappings with `site` and perhaps `window`"),
]


class CausalTracingSpec(TracingEvaluation):
    """Causal tracing (Meng et al., 2022): a run whose subject is corrupted, one state at a time restored.

    Layer by layer and token by token, a state of the clean run is put into the corrupted one, and what that
    gives back of the answer is the indirect effect of that state. Nothing is edited beside it, so the file
    has no `interventions`.
    """

    kind: Literal["causal_tracing"] = Field(
        default="causal_tracing", description="States of a clean run restored in a corrupted one."
    )
    corruption: Corruption = Field(
        default=NoiseCorruption(),
        description="What the corrupted run is: `noise`, or another subject (`swap`).",
    )
    sites: TracedSites = Field(
        default=(
            TracedSite(site="block_output"),
            TracedSite(site="mlp_output", window=10),
            TracedSite(site="attention_output", window=10),
        ),
        description="What is restored, one after the other.",
    )
    layers: AllOrIndices = Field(
        default="all", description="0-based layers at which it is restored: `all`, or a list."
    )
    metrics: TraceMetrics = Field(
        default=("probability", "log_probability"),
        description="What is measured of the answer's first token: its probability, the logarithm of that, "
        "or its logit minus that of the `foil`, which every fact then needs.",
    )
    known: bool = Field(
        default=True,
        description="Leave out facts whose answer is not the likeliest next token of the clean run; they are "
        "named and counted.",
    )
    floor: Count = Field(
        default=12,
        description="The noise floor: at so many cells of each fact and site, drawn at random, a step as "
        "long as the restoration's in a random direction takes its place.",
    )
    resamples: Count = Field(default=10_000, description="Bootstrap samples of the facts, for intervals.")
