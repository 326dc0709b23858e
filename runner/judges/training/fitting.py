"""Fitting the trained judge on answers that people judged, and finding out what it is worth.

Questions are dealt into five parts by the hash of their text. A figure is stated of each answer as judged by
trees (and a basis) fitted on the other four parts, so that nothing of its question, neither labels nor
references, went into them. What is kept is fitted on the last four parts: the first stays out of it, so that
the very thing that ships can be measured too (`subvene judge check` counts those questions alone).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn

from subvene.runner.data.truthfulqa.questions import Question, data_sha256, load_questions, question_key
from subvene.runner.files.json_value import Json
from subvene.runner.files.progress import track
from subvene.runner.files.storage import check_writable
from subvene.runner.judges.base import Answer, Aspect, JudgeError
from subvene.runner.judges.encoder import MINILM, SentenceEncoder
from subvene.runner.judges.scales.yes_no import Judgement
from subvene.runner.judges.training.agreement import agreement
from subvene.runner.judges.training.classifier import (
    RECORD,
    Basis,
    Classifier,
    JudgeFile,
    JudgeRecord,
    Trees,
    save_classifier,
)
from subvene.runner.judges.training.features import Features, extract, normalise
from subvene.runner.judges.training.labels import Label, LabelError, read_labels
from subvene.specs.questions import QuestionsSpec
from subvene.specs.regular_file import read_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = 5
_COMPONENTS = 32
_CHUNK = 1024
_TREES = {
    "max_iter": 300,
    "learning_rate": 0.05,
    "max_leaf_nodes": 15,
    "max_features": 0.3,
    "min_samples_leaf": 40,
    "l2_regularization": 5.0,
    "early_stopping": False,
    "random_state": 0,
}
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class _Rows:
    """The labelled answers of one quality: the place of each among the distinct answers, and its label."""

    place: NDArray[np.int64]
    label: NDArray[np.bool_]


def fit_judge(
    truth: Path | None,
    info: Path | None,
    data: Path | None,
    out: Path,
    *,
    encoder: str = MINILM,
) -> JudgeFile:
    """Fit a judge and write it.

    Args:
        truth: labels of truth, as `read_labels` reads them; None for a judge that says nothing of it.
        info: labels of informativeness, likewise.
        data: TruthfulQA's questions or others in the same form, with their references; without it the judge
            judges by the wording alone.
        out: the folder to write; a judge that is there already is replaced.
        encoder: the sentence encoder: `package:<module>/<folder>`, a local folder or a hub id.

    Returns:
        What `judge.json` then says.

    Raises:
        LabelError: a file of labels is not one, or has too few questions, or all labels are the same.
        DataError: `data` is not what it should be.
        JudgeError: there are no labels, `out` holds something else, or the encoder is missing.
    """
    files: dict[Aspect, Path] = {}
    if truth is not None:
        files["truth"] = truth
    if info is not None:
        files["info"] = info
    if not files:
        raise JudgeError("a judge is fitted on labels: expected a file of them for truth, info or both")
    check_writable(out)
    if out.exists() and not (out / RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise JudgeError(
            f"{out} exists and is no judge; name a new folder, or one with an earlier judge in it"
        )
    labels = {aspect: _read(path, aspect) for aspect, path in files.items()}
    questions = [] if data is None else load_questions(QuestionsSpec(file=str(data.absolute())), Path())

    answers, rows = _distinct(labels, questions)
    parts = _parts(answers)
    for aspect, path in files.items():
        _check_parts(rows[aspect], answers, parts, path)
    model = SentenceEncoder(encoder)
    features = _extract(answers, model)

    classifiers = []
    for part in track(range(PARTS), "fitting"):
        classifiers.append(_fit(features, rows, parts != part))
    generated = _generated(answers) if questions else None
    accuracy = {
        aspect: _accuracy(classifiers, features, rows[aspect], parts, generated, aspect) for aspect in files
    }
    record: JudgeRecord = {
        "encoder": {"name": encoder, "sha256": model.sha256()},
        "fitted": {
            "labels": {
                aspect: {"file": path.name, "sha256": _sha256(path), "rows": len(labels[aspect])}
                for aspect, path in files.items()
            },
            "references": None if data is None else {"file": data.name, "sha256": data_sha256(questions)},
            "scikit_learn": sklearn.__version__,
            "settings": _TREES | {"components": _COMPONENTS, "parts": PARTS},
            "question_keys": sorted(
                {question_key(a.question) for a, part in zip(answers, parts, strict=True) if part != 0}
            ),
        },
        "accuracy": accuracy,
    }
    return save_classifier(classifiers[0], record, out)


def _read(path: Path, aspect: Aspect) -> list[Label]:
    return read_labels(path, aspect)[1]


def _distinct(
    labels: dict[Aspect, list[Label]], questions: Sequence[Question]
) -> tuple[list[Answer], dict[Aspect, _Rows]]:
    """Every answer once, with its question's references, and the rows that judge it."""
    by_key = {question.key: question for question in questions}
    places: dict[tuple[str, str], int] = {}
    answers: list[Answer] = []
    rows: dict[Aspect, _Rows] = {}
    for aspect, found in labels.items():
        place = []
        for label in found:
            pair = (label.question, label.answer)
            if pair not in places:
                places[pair] = len(answers)
                known = by_key.get(question_key(label.question))
                answers.append(Answer(*pair, *((known.correct, known.incorrect) if known else ())))
            place.append(places[pair])
        rows[aspect] = _Rows(np.array(place), np.array([label.label for label in found]))
    return answers, rows


def _parts(answers: Sequence[Answer]) -> NDArray[np.int64]:
    """To which part each answer belongs: its question's place among the hashes, so that none is empty."""
    keys = [question_key(answer.question) for answer in answers]
    part = {key: i % PARTS for i, key in enumerate(sorted(set(keys)))}
    return np.array([part[key] for key in keys])


def _check_parts(rows: _Rows, answers: Sequence[Answer], parts: NDArray[np.int64], path: Path) -> None:
    """Refuses labels of which some part leaves nothing to learn from."""
    questions = {answers[i].question for i in rows.place}
    both = all(len(set(rows.label[parts[rows.place] != part].tolist())) == 2 for part in range(PARTS))
    if len(questions) < PARTS or not both:
        raise LabelError(
            f"{path}: expected answers to at least {PARTS} questions, and both labels among any {PARTS - 1} "
            f"fifths of them; found {len(questions)} questions, {len(rows.label)} rows, {rows.label.sum()} "
            "of them yes"
        )


def _extract(answers: Sequence[Answer], encoder: SentenceEncoder) -> Features:
    # Together with the other answers of its question, whose references are then encoded once.
    order = sorted(range(len(answers)), key=lambda i: answers[i].question)
    chunks = [order[i : i + _CHUNK] for i in range(0, len(order), _CHUNK)]
    found = [extract([answers[i] for i in chunk], encoder) for chunk in track(chunks, "encoding the answers")]
    names = Features.__dataclass_fields__
    joined = Features(**{name: np.concatenate([getattr(one, name) for one in found]) for name in names})
    return joined[np.argsort(order)]


def _fit(features: Features, rows: dict[Aspect, _Rows], kept: NDArray[np.bool_]) -> Classifier:
    """The classifier of some of the answers."""
    basis = {"answer": _basis(features.answer[kept]), "both": _basis(features.both[kept])}
    bare = Classifier(**basis, heads={})
    heads: dict[tuple[Aspect, str], Trees] = {}
    for head in ("text", "references"):
        x = bare.inputs(features, head)
        for aspect, judged in rows.items():
            use = kept[judged.place]
            if head == "references":
                use &= features.referenced[judged.place]
            if len(set(judged.label[use].tolist())) == 2:
                heads[aspect, head] = _trees(x[judged.place[use]], judged.label[use])
    return Classifier(**basis, heads=heads)


def _basis(vectors: NDArray[np.floating[Any]]) -> Basis:
    from sklearn.decomposition import PCA

    n = min(_COMPONENTS, *vectors.shape)
    with np.errstate(invalid="ignore"):  # shares of a variance of 0, where all answers are the same
        fitted = PCA(n, svd_solver="covariance_eigh").fit(vectors.astype(np.float64))
    return Basis(fitted.mean_, fitted.components_)


def _trees(x: NDArray[np.float64], y: NDArray[np.bool_]) -> Trees:
    from sklearn.ensemble import HistGradientBoostingClassifier

    # A user's own labels may be few: a leaf then needs fewer of them.
    leaf = max(1, min(_TREES["min_samples_leaf"], len(y) // 20))
    fitted = HistGradientBoostingClassifier(**(_TREES | {"min_samples_leaf": leaf})).fit(x, y)
    trees = Trees.of(fitted)
    some = x[:_CHUNK]
    if np.abs(trees.probability(some) - fitted.predict_proba(some)[:, 1]).max() > _TOLERANCE:
        raise JudgeError(
            f"scikit-learn {sklearn.__version__} stores its trees in a form that subvene does not know; fit "
            "with another version (1.5 to 1.9 are known to work)"
        )
    return trees


def _generated(answers: Sequence[Answer]) -> NDArray[np.bool_]:
    """Which answers are none of their question's references."""
    return np.array(
        [normalise(a.answer) not in {normalise(one) for one in (*a.correct, *a.incorrect)} for a in answers]
    )


def _accuracy(
    classifiers: Sequence[Classifier],
    features: Features,
    rows: _Rows,
    parts: NDArray[np.int64],
    generated: NDArray[np.bool_] | None,
    aspect: Aspect,
) -> dict[str, Json]:
    """What is stated of a quality: each answer judged by the classifier that does not know its question."""
    full, alone = np.zeros(len(parts)), np.zeros(len(parts))
    for part, classifier in enumerate(classifiers):
        chosen = np.flatnonzero(parts == part)
        there = features[chosen]
        full[chosen] = classifier.probability(there, aspect)
        alone[chosen] = classifier.heads[aspect, "text"].probability(classifier.inputs(there, "text"))
    p, q = full[rows.place], alone[rows.place]
    everything = np.ones(len(p), dtype=bool)
    of_which = {"held_out_of_what_ships": _measured(rows.label, p, parts[rows.place] == 0)}
    stated: dict[str, Json] = {
        **_measured(rows.label, p, everything),
        "how": f"{PARTS}-fold cross-validation by question",
        "of_which": of_which,
    }
    if generated is not None:
        own = generated[rows.place]
        of_which["no_reference_answer"] = _measured(rows.label, p, own)
        of_which["reference_answer"] = _measured(rows.label, p, ~own)
        stated["without_references"] = {
            **_measured(rows.label, q, everything),
            "no_reference_answer": _measured(rows.label, q, own),
        }
    return stated


def _measured(label: NDArray[np.bool_], p: NDArray[np.float64], rows: NDArray[np.bool_]) -> dict[str, Json]:
    found = agreement(label[rows].tolist(), [Judgement(float(one), bool(one >= 0.5)) for one in p[rows]])
    return {name: value for name, value in asdict(found).items() if name not in ("unjudged", "bins")}


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()
