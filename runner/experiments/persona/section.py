"""What only a persona experiment knows: how its vectors came about, the sweep, what each condition edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import JsonValue

from subvene.runner.data.traits import question_key
from subvene.runner.experiments.results import Condition, Item, Metric, Record
from subvene.runner.files.json_value import Json
from subvene.runner.judges import Identity
from subvene.runner.models.identity import Manifest

if TYPE_CHECKING:
    from subvene.runner.measures.responses import Response

SECTION = "persona"
Values = tuple[float | None, ...]


class Edit(Record):
    """What a condition does to the model; its `details`.

    Attributes:
        kind: `baseline`, `prompted`, `opposed`, `steered`, `capped` or `ablated`.
        layers: that are edited; None where none is.
        threshold: of a cap, layer → projection; None of anything else.
        changed_share: of the tokens that the threshold was measured on, the share that the cap changes.
        expected_share: the share that its percentile promises.
        warning: what there is to say against the cap.
    """

    kind: str
    layers: tuple[int, ...] | None = None
    threshold: dict[str, float] | None = None
    changed_share: float | None = None
    expected_share: float | None = None
    warning: str | None = None

    @classmethod
    def of(cls, condition: Condition) -> Self:
        """That of a persona run's condition."""
        return cls.model_validate(condition.details)

    def details(self) -> dict[str, JsonValue]:
        """As a condition keeps it."""
        return self.model_dump(mode="json", exclude_none=True)


class SweepPoint(Record):
    """One layer and coefficient of a sweep.

    Attributes:
        layer: that is steered.
        coefficient: in the intervention's unit.
        n: responses.
        refused: how many of them refuse.
        missing: how many verdicts the judge still owes.
        score: of the trait, 0 to 100; None if there is none.
        coherence: 0 to 100; None if there is none.
        contrast: mean log-probability per token of held-out answers that show the trait minus that of the
            opposite, nats; None if it was not measured.
        items: the responses.
        not_finite: why there are no numbers; None where there are.
    """

    layer: int
    coefficient: float
    n: int
    refused: int
    missing: int = 0
    score: Metric | None = None
    coherence: Metric | None = None
    contrast: float | None = None
    items: tuple[Item, ...] = ()
    not_finite: str | None = None


class Sweep(Record):
    """The sweep of one trait.

    Attributes:
        points: by layer, then by coefficient.
        contrast_from: where the held-out answers are from, `file` or `prompted`; None without contrasts.
        contrasts: how many there are; 0 where it was not written down.
        coherence_at_least: what a point needs to be chosen; None where nothing is chosen.
    """

    points: tuple[SweepPoint, ...]
    contrast_from: str | None = None
    contrasts: int = 0
    coherence_at_least: float | None = None


class MeanScore(Record):
    """Mean trait scores of either side, 0 to 100; None where no response has one."""

    positive: float | None
    negative: float | None


class ExtractionCounts(Record):
    """The pairs of responses behind a vector.

    Attributes:
        pairs: of responses.
        kept: that the vector is made of.
        dropped: by reason, how many are not.
        missing: verdicts that the judge still owes.
        mean_score: of either side.
        warning: what there is to warn of; None if nothing.
    """

    pairs: int
    kept: int
    dropped: dict[str, int]
    missing: int = 0
    mean_score: MeanScore
    warning: str | None = None


class LayerVector(Record):
    """A trait's vector at one layer.

    Attributes:
        layer: the block whose output it is of.
        norm: of the vector.
        residual_norm: typical norm of the residual stream there, on the trait's own responses.
        explained_variance: share of the pairs' differences along it, 0 to 1; None where it is undefined.
    """

    layer: int
    norm: float
    residual_norm: float
    explained_variance: float | None


class Place(Record):
    """Where a trait is steered.

    Attributes:
        layer: in force in the conditions and in the artifact.
        unit: of the coefficients, `vector` or `residual_norm`.
        positions: as in the file.
    """

    layer: int
    unit: str
    positions: JsonValue


class Correlation(Record):
    """Of the judge's scores with the projections, over `n` responses; None where it is undefined."""

    pearson: float | None = None
    spearman: float | None = None
    n: int = 0


class TraitRecord(Record):
    """What is known of one trait beside its conditions.

    Attributes:
        extraction: its pairs of responses.
        vectors: one a layer.
        steering: where it is steered; None where its vectors are made and not steered by.
        sweep: None where it was not swept.
        correlation: over the responses of all its conditions.
        within: the same within conditions, of how far both are from their means.
    """

    extraction: ExtractionCounts
    vectors: tuple[LayerVector, ...]
    steering: Place | None = None
    sweep: Sweep | None = None
    correlation: Correlation = Correlation()
    within: Correlation = Correlation()


class Geometry(Record):
    """How the vectors lie to each other and to themselves at other layers, as `measures.geometry` gives it.

    Attributes:
        layer: at which traits are compared.
        layers: what the values per layer are of.
        traits: their order in `cosine_at_layer`.
        cosine_at_layer: [traits, traits]; None where a vector is zero.
        cosine_by_layer: pair, as `a|b` → a cosine for each layer.
        across_layers: trait → [layers, layers].
        norms: trait → a norm for each layer.
        explained_variance: trait → a share for each layer.
    """

    layer: int
    layers: tuple[int, ...]
    traits: tuple[str, ...]
    cosine_at_layer: tuple[Values, ...]
    cosine_by_layer: dict[str, Values]
    across_layers: dict[str, tuple[Values, ...]]
    norms: dict[str, Values]
    explained_variance: dict[str, Values]


class PersonaSection(Record):
    """What only a persona experiment knows.

    Attributes:
        traits: by name.
        geometry: of all their vectors.
        model_sha256: of the weights; None where it was not written down.
    """

    traits: dict[str, TraitRecord]
    geometry: Geometry | None = None
    model_sha256: str | None = None


def artifact_of(trait: str) -> str:
    """Where the steering of a trait is kept, relative to the run's folder."""
    return f"artifacts/{trait}"


def counts_of(responses: Sequence[Response]) -> dict[str, int]:
    """How many responses there are, how many refuse, and how many verdicts the judge still owes."""
    return {
        "responses": len(responses),
        "refused": sum(response.refused for response in responses),
        "missing": sum(len(response.missing) for response in responses),
    }


def item_of(
    response: Response, *, seed: int | None = None, tokens: int | None = None, **scores: float | None
) -> Item:
    """A response as results keep it.

    Args:
        response: judged.
        seed: of its draw, where it is kept.
        tokens: that were generated, where they are counted.
        **scores: what else was measured of it.
    """
    return Item(
        key=question_key(response.asked.question),
        text=response.text,
        seed=seed,
        tokens=tokens,
        scores={"score": response.score, "coherence": response.coherence, **scores},
        missing=dict(response.missing),
    )


class PersonaManifest(Manifest):
    """What there is to know about where the numbers of a persona run come from."""

    kind: str
    model: Json
    traits: dict[str, str]
    judge: Identity
    seed: int
