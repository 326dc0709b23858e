"""The trained judge: no key, no download.

Truth and informativeness are judged by gradient-boosted trees over what `features` says of an answer,
fitted by scikit-learn on answers that people judged; `subvene judge fit` fits others. Traits are judged by
a regression on their files' `contrasts`, coherence by the unedited model under test (`coherence`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from subvene.runner.data.truthfulqa.questions import question_key
from subvene.runner.files.json_value import Json
from subvene.runner.judges.base import (
    Answer,
    AnyQuality,
    Aspect,
    Description,
    Identity,
    Judge,
    JudgeError,
    Quality,
    ToldApart,
    Usage,
)
from subvene.runner.judges.encoder import MINILM, SentenceEncoder, cut_in_words, find_encoder
from subvene.runner.judges.scales import yes_no
from subvene.runner.judges.scales.yes_no import Judgement
from subvene.runner.judges.scales.zero_to_hundred import Score, traits_of
from subvene.runner.judges.training import contrasts
from subvene.runner.judges.training.classifier import Classifier, JudgeFile, load_classifier, load_record
from subvene.runner.judges.training.coherence import ModelCoherence
from subvene.runner.judges.training.features import extract
from subvene.specs.judges import TrainedJudgeSpec

if TYPE_CHECKING:
    from subvene.runner.data.traits import Trait
    from subvene.runner.intervened.model import IntervenedModel

_CHUNK = 4096


def shipped_folder() -> Path:
    """The judge that comes with subvene."""
    return Path(str(files("subvene.runner.judges"))) / "data"


class TrainedJudge(Judge):
    """The shipped classifier or one of the user's own, and a fit for every trait, made when first needed.

    Every answer has a verdict of truth, and it does not depend on the answers that are judged with it.
    Where a question has references on both sides, the answer is compared with them, except with one that
    says the same word for word (`features.without_own`).

    Args:
        spec: which classifier.
        folder: what `spec.folder` is relative to.
        cache: unused; nothing that is asked costs anything.
    """

    kind: ClassVar[str] = "trained"

    def __init__(self, spec: TrainedJudgeSpec, folder: Path, *, cache: Path | None = None) -> None:
        self._spec = spec
        self._cut: set[str] = set()
        self._coherence: ModelCoherence | None = None
        self.folder = shipped_folder() if spec.folder is None else folder / Path(spec.folder).expanduser()

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        """The qualities that the folder's classifier was fitted for."""
        return self._classifier.aspects

    def tells(self, quality: AnyQuality) -> bool:
        """See `Judge.tells`."""
        return quality.scale != yes_no.SCALE or quality.name in self.aspects

    @cached_property
    def _record(self) -> JudgeFile:
        return load_record(self.folder)

    @cached_property
    def _classifier(self) -> Classifier:
        return load_classifier(self.folder, self._record)

    @cached_property
    def _encoder(self) -> SentenceEncoder:
        needed = self._record["encoder"]
        encoder = SentenceEncoder(needed["name"])
        if (found := encoder.sha256()) != needed["sha256"]:
            raise JudgeError(
                f"{self.folder}: this judge was fitted with another version of the sentence encoder "
                f"{needed['name']}: the weights' sha256 is {found}, it needs {needed['sha256']}"
            )
        return encoder

    def check(self, qualities: Sequence[AnyQuality]) -> None:
        """See whether there is an encoder, and a classifier or something to fit on.

        Raises:
            JudgeError: either is missing, the spec names a folder for traits, or one has too few contrasts.
        """
        if any(quality.scale == yes_no.SCALE for quality in qualities):
            _ = self._classifier
            find_encoder(self._record["encoder"]["name"])
            return
        if self._spec.folder is not None:
            raise JudgeError(
                f"judge: `folder: {self._spec.folder}` holds a judge of truth or information; traits are "
                "judged by their files' `contrasts`, so leave `folder` out"
            )
        find_encoder(MINILM)
        for trait in traits_of(qualities):
            contrasts.check(trait)

    def yes_no(self, answers: Sequence[Answer], aspect: Aspect) -> list[Judgement]:
        """By the classifier.

        Raises:
            JudgeError: it was not fitted for this aspect.
        """
        if aspect not in self.aspects:
            raise JudgeError(
                f"{self.folder}: this judge says nothing of {aspect}, only of {', '.join(self.aspects)}"
            )
        judgements: list[Judgement] = []
        for start in range(0, len(answers), _CHUNK):
            features = extract(answers[start : start + _CHUNK], self._encoder)
            for p in self._classifier.probability(features, aspect):
                judgements.append(Judgement(float(p), bool(p >= 0.5)))
        return judgements

    def zero_to_hundred(self, answers: Sequence[Answer], quality: Quality[Score]) -> list[Score]:
        """A trait: 100·p(positive), no score of an empty response, nothing known of refusals.

        Raises:
            JudgeError: as `check`, or coherence is asked for and no model was given.
        """
        if quality.trait is None:
            return self._coherent(answers)
        self.check([quality])
        there = [one for one in answers if one.answer.strip()]
        scores = iter(contrasts.fitted(quality.trait).probability(there) if there else ())
        self._cut |= contrasts.cut(there)
        return [
            Score(100 * float(next(scores)))
            if one.answer.strip()
            else Score(None, False, "the response is empty")
            for one in answers
        ]

    def _coherent(self, answers: Sequence[Answer]) -> list[Score]:
        if self._coherence is None:
            raise JudgeError(
                "the trained judge asks the unedited model how likely a response is, and was given no model: "
                "make it with make_judge(spec, folder, scale=ZERO_TO_HUNDRED).with_model(model), or use a "
                "judge of kind openai or transformers"
            )
        return self._coherence.scores(answers)

    def with_model(self, model: IntervenedModel) -> Self:
        """The judge whose coherence is what this model finds likely."""
        made = copy.copy(self)
        made._cut, made._coherence = set(), ModelCoherence(model)
        return made

    def usage(self) -> Usage:
        """How many of the texts that it has read were cut; empty if none were."""
        encoder = self.__dict__.get("_encoder")  # not loaded for this
        return {**cut_in_words(self._cut | (set() if encoder is None else encoder.cut))}

    def held_out(self, question: str) -> bool:
        """See `Judge.held_out`."""
        return question_key(question) not in self._fitted_on

    @cached_property
    def _fitted_on(self) -> frozenset[str]:
        return frozenset(self._record["fitted"]["question_keys"])

    def identity(self, qualities: Sequence[AnyQuality]) -> Identity:
        """The classifier, or what the traits' fits are made of."""
        if not any(quality.scale == yes_no.SCALE for quality in qualities):
            shas = {trait.name: trait.sha256 for trait in traits_of(qualities)}
            return {
                "kind": self.kind,
                "encoder": {"name": MINILM, "sha256": contrasts.encoder_sha256()},
                "fitted": {"on": "contrasts", "sha256": shas},
            }
        record = self._record
        fitted = {name: value for name, value in record["fitted"].items() if name != "question_keys"}
        return {
            "kind": self.kind,
            "sha256": record["sha256"],
            "features_version": record["features_version"],
            "encoder": record["encoder"],
            "fitted": fitted | {"questions": len(self._fitted_on)},
        }

    def accuracies(self) -> dict[str, Json]:
        """As cross-validated when it was fitted."""
        return {str(aspect): stated for aspect, stated in self._record["accuracy"].items()}

    def describe(self, qualities: Sequence[AnyQuality]) -> Description:
        """`Judge.describe`; of traits what was cross-validated, five folds by question, and `coherence`.

        `coherence` is of its corruptions, and None where no model was given.
        """
        if any(quality.scale == yes_no.SCALE for quality in qualities):
            return super().describe(qualities)
        return {
            **self.identity(qualities),
            "agreement": {trait.name: self._agreement(trait) for trait in traits_of(qualities)},
            "coherence": None if self._coherence is None else self._coherence.describe(),
        }

    def _agreement(self, trait: Trait) -> ToldApart | None:
        return contrasts.fitted(trait).agreement if trait.contrasts else None
