"""A fitted judge as a folder: decision trees as arrays of numbers, and what is known of them.

`judge.json` says what the numbers are, how they came about and what they are worth; `classifier.safetensors`
holds them. Nothing in the folder is executed, and numpy alone computes what scikit-learn's
`HistGradientBoostingClassifier.predict_proba` would.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, cast, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from subvene.runner.files.json_value import Json
from subvene.runner.files.leftovers import restore
from subvene.runner.files.storage import atomic_folder
from subvene.runner.judges.base import Aspect, JudgeError, NamedModel
from subvene.runner.judges.training.features import FEATURES_VERSION, Features
from subvene.specs.regular_file import read_bytes, read_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
RECORD, TENSORS = "judge.json", "classifier.safetensors"
#: What a head judges by. An answer whose question has no references is judged by `text`.
HEADS = ("text", "references")
_ROWS = 4096
_DECIMALS = 5
_ARRAYS = ("feature", "threshold", "left", "right", "value")
_REFIT = "fit it again with `subvene judge fit`"


class Fitted(TypedDict):
    """What a judge was fitted on, and how."""

    labels: dict[str, dict[str, Json]]
    made_by_rule: dict[str, int]
    references: dict[str, str] | None
    scikit_learn: str
    settings: Mapping[str, Json]
    question_keys: list[str]


class JudgeRecord(TypedDict):
    """What is known of a judge's numbers."""

    encoder: NamedModel
    fitted: Fitted
    accuracy: dict[Aspect, dict[str, Json]]
    report: dict[str, Json]


class JudgeFile(JudgeRecord):
    """What `judge.json` says."""

    format: int
    features_version: int
    sha256: str


@dataclass(frozen=True)
class Trees:
    """Gradient-boosted decision trees, every tree padded to the size of the largest.

    Attributes:
        feature: `[trees, nodes]`, the feature that a node asks about.
        threshold: `[trees, nodes]`, at most so much goes left.
        left: `[trees, nodes]`, the node on the left; a leaf's is itself.
        right: `[trees, nodes]`, the node on the right; a leaf's is itself.
        value: `[trees, nodes]`, what a leaf adds to the log-odds.
        baseline: the log-odds before any tree.
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float64]
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: NDArray[np.float64]
    baseline: float

    @classmethod
    def of(cls, fitted: Any) -> Self:
        """The trees of a fitted `HistGradientBoostingClassifier` with two classes."""
        nodes = [predictors[0].nodes for predictors in fitted._predictors]
        size = max(len(tree) for tree in nodes)
        arrays: dict[str, NDArray[Any]] = {
            "feature": np.zeros((len(nodes), size), np.int32),
            "threshold": np.zeros((len(nodes), size)),
            "left": np.tile(np.arange(size, dtype=np.int32), (len(nodes), 1)),
            "right": np.tile(np.arange(size, dtype=np.int32), (len(nodes), 1)),
            "value": np.zeros((len(nodes), size)),
        }
        for i, tree in enumerate(nodes):
            inner = tree["is_leaf"] == 0
            places = np.flatnonzero(inner)
            arrays["feature"][i, places] = tree["feature_idx"][inner]
            arrays["threshold"][i, places] = tree["num_threshold"][inner]
            arrays["left"][i, places] = tree["left"][inner]
            arrays["right"][i, places] = tree["right"][inner]
            arrays["value"][i, : len(tree)] = np.where(inner, 0.0, tree["value"])
        return cls(**arrays, baseline=float(np.ravel(fitted._baseline_prediction)[0]))

    def probability(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the second class, for every row."""
        return np.concatenate(
            [np.zeros(0), *(self._chunk(x[i : i + _ROWS]) for i in range(0, len(x), _ROWS))]
        )

    def _chunk(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        trees, rows = np.arange(len(self.feature)), np.arange(len(x))[:, None]
        at = np.zeros((len(x), len(trees)), np.int32)
        while True:
            goes_left = x[rows, self.feature[trees, at]] <= self.threshold[trees, at]
            after = np.where(goes_left, self.left[trees, at], self.right[trees, at])
            if (after == at).all():
                break
            at = after
        # One tree after the other, as scikit-learn adds them: the last bits are the same too.
        odds = np.full(len(x), self.baseline)
        for tree in trees:
            odds += self.value[tree, at[:, tree]]
        return 1 / (1 + np.exp(-odds))


@dataclass(frozen=True)
class Basis:
    """The directions on which sentence vectors are projected: `(vector − mean) @ components.T`."""

    mean: NDArray[np.float64]
    components: NDArray[np.float64]

    def project(self, vectors: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """The coordinates of every row."""
        return (vectors - self.mean) @ self.components.T


@dataclass(frozen=True)
class Classifier:
    """A judge's numbers: for each quality a head that knows references and one that does not.

    Attributes:
        answer: the basis for the vectors of answers.
        both: the basis for the vectors of question and answer together.
        heads: by quality and head; `references` may be missing.
    """

    answer: Basis
    both: Basis
    heads: Mapping[tuple[Aspect, str], Trees]

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        """The qualities that it judges."""
        return tuple(aspect for aspect in get_args(Aspect) if (aspect, "text") in self.heads)

    def inputs(self, features: Features, head: str) -> NDArray[np.float64]:
        """What a head's trees ask about."""
        parts = [features.text, self.answer.project(features.answer), self.both.project(features.both)]
        if head == "references":
            parts.append(features.references)
        # Thresholds lie where values of fitted answers lie: without rounding, the last bit of a matrix
        # product, which depends on how many rows it has, would decide where an equal answer goes.
        joined: NDArray[np.float64] = np.concatenate(parts, axis=1, dtype=np.float64)
        return np.round(joined, _DECIMALS)

    def probability(self, features: Features, aspect: Aspect) -> NDArray[np.float64]:
        """That each answer has the quality, by the head that knows most of it."""
        chosen = features.referenced & ((aspect, "references") in self.heads)
        result = np.zeros(len(chosen))
        for head, rows in zip(HEADS, (~chosen, chosen), strict=True):
            if rows.any():
                result[rows] = self.heads[aspect, head].probability(self.inputs(features[rows], head))
        return result

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The numbers by name, as they are stored."""
        named: dict[str, NDArray[Any]] = {}
        for name, basis in (("answer", self.answer), ("both", self.both)):
            named[f"basis.{name}.mean"], named[f"basis.{name}.components"] = basis.mean, basis.components
        for (aspect, head), trees in self.heads.items():
            for array in _ARRAYS:
                named[f"{aspect}.{head}.{array}"] = getattr(trees, array)
            named[f"{aspect}.{head}.baseline"] = np.array([trees.baseline])
        return {name: np.ascontiguousarray(tensor) for name, tensor in named.items()}

    @classmethod
    def from_tensors(cls, named: Mapping[str, NDArray[Any]]) -> Self:
        """The classifier whose `tensors` these are; KeyError if one is missing."""
        basis = {
            name: Basis(named[f"basis.{name}.mean"], named[f"basis.{name}.components"])
            for name in ("answer", "both")
        }
        heads = {
            (aspect, head): Trees(
                **{array: named[f"{aspect}.{head}.{array}"] for array in _ARRAYS},
                baseline=float(named[f"{aspect}.{head}.baseline"][0]),
            )
            for aspect in get_args(Aspect)
            for head in HEADS
            if f"{aspect}.{head}.baseline" in named
        }
        return cls(**basis, heads=heads)


def save_classifier(classifier: Classifier, record: JudgeRecord, folder: Path) -> JudgeFile:
    """Write the folder, at once or not at all.

    Args:
        classifier: the numbers.
        record: what is known of them; the format, the features' version and the numbers' sha256 are added.
        folder: replaced if it is there.

    Returns:
        What `judge.json` then says.
    """
    content = save_tensors(classifier.tensors())
    full: JudgeFile = {
        "format": FORMAT,
        "features_version": FEATURES_VERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        **record,
    }
    with atomic_folder(folder) as new:
        (new / TENSORS).write_bytes(content)
        (new / RECORD).write_text(json.dumps(full, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return full


def load_record(folder: Path) -> JudgeFile:
    """What `judge.json` says.

    Raises:
        JudgeError: the file is missing or not what it should be, or of another version.
    """
    restore(folder)
    path = folder / RECORD
    try:
        record = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise JudgeError(
            f"{path}: expected a judge as `subvene judge fit` writes it; cannot be read: {error}"
        ) from error
    expected: dict[str, type] = dict.fromkeys(("encoder", "fitted", "accuracy", "report"), dict)
    expected |= {"format": int, "features_version": int, "sha256": str}
    for name, kind in expected.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise JudgeError(f"{path}: expected a JSON object with `{name}` ({kind.__name__}); {_REFIT}")
    for name, known in (("format", FORMAT), ("features_version", FEATURES_VERSION)):
        if record[name] != known:
            raise JudgeError(f"{path}: `{name}` is {record[name]}, this subvene knows {known}; {_REFIT}")
    return cast(JudgeFile, record)


def load_classifier(folder: Path, record: JudgeFile) -> Classifier:
    """The numbers that `record` is about.

    Raises:
        JudgeError: the file is missing, altered or truncated.
    """
    path = folder / TENSORS
    try:
        content = read_bytes(path)
    except OSError as error:
        raise JudgeError(f"{path}: cannot be read: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != record["sha256"]:
        raise JudgeError(
            f"{path}: altered or truncated: its sha256 is {found}, {RECORD} says {record['sha256']}; "
            f"copy the folder again, or {_REFIT}"
        )
    try:
        classifier = Classifier.from_tensors(load_tensors(content))
    except (SafetensorError, KeyError) as error:
        raise JudgeError(f"{path}: not a judge's numbers: {error}; {_REFIT}") from error
    if not classifier.aspects:
        raise JudgeError(f"{path}: judges neither truth nor info; {_REFIT}")
    return classifier
