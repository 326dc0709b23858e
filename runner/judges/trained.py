"""The trained judge: gradient-boosted trees over what `features` says of an answer: no key, no download.

It was fitted by scikit-learn on answers that people judged; `subvene judge fit` fits another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from subvene.runner.data.truthfulqa.questions import question_key
from subvene.runner.judges.base import Answer, Aspect, Judge, JudgeError, Judgement
from subvene.runner.judges.classifier import Classifier, load_classifier, load_record
from subvene.runner.judges.encoder import SentenceEncoder, cut_in_words, find_encoder
from subvene.runner.judges.features import extract
from subvene.specs.judges import TrainedJudgeSpec

_CHUNK = 4096


def shipped_folder() -> Path:
    """The judge that comes with subvene."""
    return Path(str(files("subvene.runner.judges"))) / "data"


class TrainedJudge(Judge):
    """The shipped classifier, or one of the user's own.

    Every answer has a verdict, and it does not depend on the answers that are judged with it. Where a
    question has references on both sides, the answer is compared with them, except with one that says the
    same word for word (`features.without_own`).

    Args:
        spec: which classifier.
        folder: what `spec.folder` is relative to.
    """

    def __init__(self, spec: TrainedJudgeSpec, folder: Path) -> None:
        self.folder = shipped_folder() if spec.folder is None else folder / Path(spec.folder).expanduser()

    @property
    def aspects(self) -> tuple[Aspect, ...]:  # type: ignore[override]
        """The qualities that the folder's classifier was fitted for."""
        return self._classifier.aspects

    @cached_property
    def _record(self) -> dict[str, Any]:
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

    def check(self) -> None:
        """See `Judge.check`."""
        _ = self._classifier
        find_encoder(self._record["encoder"]["name"])

    def judge(self, answers: Sequence[Answer], aspect: Aspect) -> list[Judgement]:
        """See `Judge.judge`."""
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

    def usage(self) -> dict[str, Any]:
        """How many of the texts that it has read were cut; empty if none were."""
        encoder = self.__dict__.get("_encoder")  # not loaded for this
        return {} if encoder is None else cut_in_words(encoder.cut)

    def held_out(self, question: str) -> bool:
        """See `Judge.held_out`."""
        return question_key(question) not in self._fitted_on

    @cached_property
    def _fitted_on(self) -> frozenset[str]:
        return frozenset(self._record["fitted"]["question_keys"])

    def describe(self) -> dict[str, Any]:
        """See `Judge.describe`."""
        record = self._record
        fitted = {name: value for name, value in record["fitted"].items() if name != "question_keys"}
        return {
            "kind": "trained",
            "sha256": record["sha256"],
            "features_version": record["features_version"],
            "encoder": record["encoder"],
            "fitted": fitted | {"questions": len(self._fitted_on)},
            "accuracy": record["accuracy"],
        }
