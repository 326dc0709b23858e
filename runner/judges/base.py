"""The one judge: a back end that judges answers of a quality, on the scale that the quality has.

A `Quality` says what is asked (is it true? how sycophantic is it?), its `Scale` what the verdict looks like
(yes or no, 0 to 100) and how a back end is asked for it. A back end is a `Judge` that has the methods of
the scales that it serves. So a new back end is one file, and so is a new scale (`scales`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Required, Self, TypedDict, TypeVar

from subvene.runner.data.traits import Trait
from subvene.runner.files.json_value import Json
from subvene.specs import SubveneError

if TYPE_CHECKING:
    from subvene.runner.intervened.model import IntervenedModel

Aspect = Literal["truth", "info"]
ModelField = Literal["truth_model", "info_model"]
V = TypeVar("V")


@dataclass(frozen=True)
class Answer:
    """An answer to be judged.

    Attributes:
        question: the question, without `Q:`.
        answer: the answer, without `A:`.
        correct: the question's true reference answers; empty if there are none.
        incorrect: its false ones.
    """

    question: str
    answer: str
    correct: tuple[str, ...] = ()
    incorrect: tuple[str, ...] = ()


class JudgeError(SubveneError):
    """A judge cannot work; the message says what is missing and what to do."""


class NamedModel(TypedDict, total=False):
    """A model that judges: as it is declared, without where it is put, and a digest of what answers."""

    name: Required[str]
    sha256: str


class TextsCut(TypedDict, total=False):
    """Texts of more tokens than an encoder reads; empty where there were none."""

    texts_cut: int
    read_tokens: int


class Usage(TextsCut, total=False):
    """What judging took so far; empty for a judge that costs nothing.

    `requests` were answered, `retries` are further tries, `from_cache` replies from disk; `uncounted` are
    replies of which the server did not say how many tokens they took. `cost` is None without prices.
    """

    requests: int
    retries: int
    from_cache: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    cost: float | None


class Identity(TypedDict, total=False):
    """What verdicts depend on, as JSON values; which fields there are depends on `kind`."""

    kind: Required[str]
    base_url: str
    form: str
    truth_model: str | NamedModel
    info_model: str | NamedModel
    top_logprobs: int
    references: bool
    words: str
    metric: str
    library: str
    encoder: NamedModel
    sha256: str
    features_version: int
    fitted: object


class ToldApart(TypedDict, total=False):
    """How well a judge tells answers that show a trait from answers that show its opposite.

    `auc`: the share of (positive, negative) pairs whose positive one scores higher (ties half); `accuracy`:
    the share of answers on the right side of 50; `n`: answers with a score; `missing`, where there are any:
    answers to which the judge gave no usable reply.
    """

    auc: float
    accuracy: float
    n: Required[int]
    missing: int


class Description(Identity, total=False):
    """`Identity`, and what was measured of the judge.

    `accuracy`: by aspect the agreement with human labels; `agreement`: by trait how well its contrasts are
    told apart; None where nothing was measured. `coherence`: the same for corruptions of coherent texts.
    """

    accuracy: dict[str, Json]
    agreement: dict[str, ToldApart | None]
    coherence: object


class Scale(ABC, Generic[V]):
    """What verdicts look like, and how a back end is asked for one; a new scale is a file in `scales`."""

    #: Its name, and that of the method with which a back end serves it.
    name: ClassVar[str]
    #: What a judge without the method does instead, and what it lacks, as the end of a sentence.
    lacking: ClassVar[str]

    def asks(self, judge: Judge | type[Judge]) -> bool:
        """Whether the back end has this scale's method."""
        return callable(getattr(judge, self.name, None))

    @abstractmethod
    def ask(self, judge: Judge, answers: Sequence[Answer], quality: Quality[V]) -> list[V]:
        """A verdict on every answer, in order, from a back end that has the method."""

    @abstractmethod
    def worth(self, judge: Judge, qualities: Sequence[AnyQuality]) -> Description:
        """What is known of a judge's verdicts: the fields of `Description` that are none of the identity."""


@dataclass(frozen=True)
class Quality(Generic[V]):
    """What is judged of an answer.

    Attributes:
        name: `truth`, `info`, `coherence` or a trait's name.
        scale: what the verdict looks like.
        model: which of a judge's two models is asked.
        prompt: the question in words, with `{question}` and `{answer}`, where the scale leaves that open.
        trait: whose expression it is, if it is one.
    """

    name: str
    scale: Scale[V]
    model: ModelField
    prompt: str = ""
    trait: Trait | None = None


AnyQuality = Quality[Any]


class Judge(ABC):
    """A back end, and through it every scale whose method it has.

    It is made of a spec, the folder that the spec's paths are relative to, and, by name, `cache`: where
    replies that cost something are kept.
    """

    #: The kind that its spec has.
    kind: ClassVar[str]

    def judge(self, answers: Sequence[Answer], quality: Quality[V]) -> list[V]:
        """Judge every answer; the results are in the answers' order, one each.

        Raises:
            JudgeError: the judge does not serve the quality's scale, or cannot work.
        """
        if not quality.scale.asks(self):
            raise JudgeError(f"a judge of kind {self.kind} {quality.scale.lacking}")
        return quality.scale.ask(self, answers, quality)

    @abstractmethod
    def check(self, qualities: Sequence[AnyQuality]) -> None:
        """Find out, before any model is loaded, whether the judge can judge these qualities.

        Raises:
            JudgeError: naming what is missing and what to do.
        """

    @abstractmethod
    def identity(self, qualities: Sequence[AnyQuality]) -> Identity:
        """What verdicts on these qualities, which share a scale, depend on; it costs little."""

    def describe(self, qualities: Sequence[AnyQuality]) -> Description:
        """`identity`, and what is known of the judge's worth; measuring it may take requests or a fit."""
        described: Description = {**self.identity(qualities)}
        for scale in dict.fromkeys(quality.scale for quality in qualities):
            described.update(scale.worth(self, qualities))
        return described

    def tells(self, quality: AnyQuality) -> bool:
        """Whether the judge can tell this quality, whose scale it serves."""
        return True

    def with_model(self, model: IntervenedModel) -> Self:
        """The judge for the answers of a model, which it may ask, unedited, how likely a text is."""
        return self

    def usage(self) -> Usage:
        """Requests, tokens, cost so far; empty for a judge that costs nothing."""
        return {}

    def held_out(self, question: str) -> bool | None:
        """Whether the judge was fitted without this question: only such labels say what it is worth.

        Returns:
            True or False where the judge knows its own training questions, None where nobody knows.
        """
        return None
