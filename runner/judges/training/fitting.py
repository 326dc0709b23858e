"""Fitting the trained judge on answers that people judged, and finding out what it is worth.

Questions are dealt into five parts by the hash of their text. A figure is stated of each answer as judged by
trees (and a basis) fitted on the other four parts, so that nothing of its question, neither labels nor
references, went into them. What is kept is fitted on the last four parts: the first stays out of it, so that
the very thing that ships can be measured too (`subvene judge check` counts those questions alone).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from subvene.runner.judges.evasions import is_evasive
from subvene.runner.judges.nulls import null_answers
from subvene.runner.judges.training.classifier import (
    HEADS,
    RECORD,
    Basis,
    Classifier,
    JudgeFile,
    JudgeRecord,
    Trees,
    save_classifier,
)
from subvene.runner.judges.training.features import Features, extract
from subvene.runner.judges.training.labels import Label, LabelError, read_labels
from subvene.runner.judges.training.negatives import negatives
from subvene.runner.judges.training.stated import Judged, null_rates, reported, says_yes, stated_accuracy
from subvene.runner.judges.training.wording import normalise
from subvene.specs.questions import QuestionsSpec
from subvene.specs.regular_file import read_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = 5
_COMPONENTS = 32
_CHUNK = 1024
_TREES = {
    "max_bins": 63,
    "max_iter": 150,
    "learning_rate": 0.1,
    "max_leaf_nodes": 15,
    "max_features": 0.3,
    "min_samples_leaf": 40,
    "l2_regularization": 5.0,
    "early_stopping": False,
    "random_state": 0,
}
_TOLERANCE = 1e-9
# Of an answer made by rule, against one that people judged. At 1 the judge learns the rules at the cost of
# people's labels (0.892 for 0.905 on a fifth of the questions).
_MADE_WEIGHT = 0.2


@dataclass(frozen=True)
class Rows:
    """The labelled answers of one quality.

    Attributes:
        place: of each among the distinct answers.
        label: of each, by people or by rule.
        kind: the rule by which an answer was made; empty for what people labelled, which stands first.
    """

    place: NDArray[np.int64]
    label: NDArray[np.bool_]
    kind: NDArray[np.str_]

    @property
    def of_people(self) -> Rows:
        """Those that people labelled."""
        by = self.kind == ""
        return Rows(self.place[by], self.label[by], self.kind[by])


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
    if "info" in rows:
        answers, rows["info"] = _with_negatives(answers, rows["info"], parts)
        parts = _parts(answers)
    model = SentenceEncoder(encoder)
    fit = _Fit(_extract(answers, model), rows, parts)
    classifiers = [fit.classifier(parts != part) for part in track(range(PARTS), "fitting")]
    judged = fit.judged(classifiers, answers, questions)
    parts_of = {question_key(a.question): int(part) for a, part in zip(answers, parts, strict=True)}
    record: JudgeRecord = {
        "encoder": {"name": encoder, "sha256": model.sha256()},
        "fitted": {
            "labels": {
                aspect: {"file": path.name, "sha256": _sha256(path), "rows": len(labels[aspect])}
                for aspect, path in files.items()
            },
            "made_by_rule": _counted(rows["info"].kind) if "info" in rows else {},
            "references": None if data is None else {"file": data.name, "sha256": data_sha256(questions)},
            "scikit_learn": sklearn.__version__,
            "settings": _TREES | {"components": _COMPONENTS, "parts": PARTS, "made_weight": _MADE_WEIGHT},
            "question_keys": sorted(
                {question_key(a.question) for a, part in zip(answers, parts, strict=True) if part != 0}
            ),
        },
        "accuracy": {aspect: stated_accuracy(one, PARTS) for aspect, one in judged.items()},
        "report": {
            **{aspect: reported(one) | fit.of_another_source(one, aspect) for aspect, one in judged.items()},
            "made_by_rule": says_yes(judged["info"].p[rows["info"].place], rows["info"].kind)
            if "info" in rows
            else {},
            "nulls": _nulls(classifiers, questions, parts_of, model),
        },
    }
    return save_classifier(classifiers[0], record, out)


def _read(path: Path, aspect: Aspect) -> list[Label]:
    return read_labels(path, aspect)[1]


def _distinct(
    labels: dict[Aspect, list[Label]], questions: Sequence[Question]
) -> tuple[list[Answer], dict[Aspect, Rows]]:
    """Every answer once, with its question's references, and the rows that judge it."""
    by_key = {question.key: question for question in questions}
    places: dict[tuple[str, str], int] = {}
    answers: list[Answer] = []
    rows: dict[Aspect, Rows] = {}
    for aspect, found in labels.items():
        place = []
        for label in found:
            pair = (label.question, label.answer)
            if pair not in places:
                places[pair] = len(answers)
                known = by_key.get(question_key(label.question))
                answers.append(Answer(*pair, *((known.correct, known.incorrect) if known else ())))
            place.append(places[pair])
        rows[aspect] = Rows(
            np.array(place), np.array([label.label for label in found]), np.full(len(found), "", dtype="<U16")
        )
    return answers, rows


def _parts(answers: Sequence[Answer]) -> NDArray[np.int64]:
    """To which part each answer belongs: its question's place among the hashes, so that none is empty."""
    keys = [question_key(answer.question) for answer in answers]
    part = {key: i % PARTS for i, key in enumerate(sorted(set(keys)))}
    return np.array([part[key] for key in keys])


def _check_parts(rows: Rows, answers: Sequence[Answer], parts: NDArray[np.int64], path: Path) -> None:
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


@dataclass(frozen=True)
class _Fit:
    """What classifiers are fitted on: what is known of every answer, the rows, and the answers' parts."""

    features: Features
    rows: dict[Aspect, Rows]
    parts: NDArray[np.int64]

    def classifier(self, kept: NDArray[np.bool_]) -> Classifier:
        """The classifier of some of the answers."""
        basis = self.basis(kept)
        bare = Classifier(**basis, heads={})
        heads: dict[tuple[Aspect, str], Trees] = {}
        for head in HEADS:
            x = bare.inputs(self.features, head)
            for aspect, judged in self.rows.items():
                use = kept[judged.place]
                if head == "references":
                    use &= self.features.referenced[judged.place]
                if len(set(judged.label[use].tolist())) == 2:
                    weight = np.where(judged.kind[use] == "", 1.0, _MADE_WEIGHT)
                    heads[aspect, head] = _trees(x[judged.place[use]], judged.label[use], weight)
        return Classifier(**basis, heads=heads)

    def basis(self, kept: NDArray[np.bool_]) -> dict[str, Basis]:
        """Of those answers that people labelled: what is made by rule turns no direction."""
        labelled = np.zeros(len(kept), dtype=bool)
        for judged in self.rows.values():
            labelled[judged.of_people.place] = True
        use = kept & labelled
        return {"answer": _basis(self.features.answer[use]), "both": _basis(self.features.both[use])}

    def judged(
        self, classifiers: Sequence[Classifier], answers: Sequence[Answer], questions: Sequence[Question]
    ) -> dict[Aspect, Judged]:
        """Each answer as judged by the classifier that does not know its question."""
        generated = _generated(answers) if questions else None
        by_key = {question.key: question.category for question in questions}
        category = [by_key.get(question_key(answer.question), "") for answer in answers]
        found: dict[Aspect, Judged] = {}
        for aspect, rows in self.rows.items():
            p, alone = np.zeros(len(answers)), np.zeros(len(answers))
            for part, classifier in enumerate(classifiers):
                chosen = np.flatnonzero(self.parts == part)
                there = self.features[chosen]
                p[chosen] = classifier.probability(there, aspect)
                alone[chosen] = classifier.heads[aspect, "text"].probability(classifier.inputs(there, "text"))
            of = rows.of_people
            found[aspect] = Judged(
                answers, of.place, of.label, p, alone, self.parts == 0, generated, category
            )
        return found

    def of_another_source(self, judged: Judged, aspect: Aspect) -> dict[str, Json]:
        """Models' answers as judged by trees that saw reference answers only, and no models' (first part)."""
        if judged.generated is None or not self.features.referenced.any():
            return {}
        place, label = judged.place, judged.label
        seen = ~judged.own & (self.parts[place] != 0) & self.features.referenced[place]
        if len(set(label[seen].tolist())) < 2:
            return {}
        bare = Classifier(**self.basis(self.parts != 0), heads={})
        x = bare.inputs(self.features, "references")
        p = _trees(x[place[seen]], label[seen]).probability(x)
        asked = judged.own & (self.parts[place] == 0) & self.features.referenced[place]
        return {"fitted_on_references_only": judged.of(asked, p), "same_rows_otherwise": judged.of(asked)}


def _nulls(
    classifiers: Sequence[Classifier],
    questions: Sequence[Question],
    parts_of: Mapping[str, int],
    model: SentenceEncoder,
) -> dict[str, dict[str, float]]:
    """What models that say one thing get, each question judged by the classifier that does not know it."""
    asked = sorted((q for q in questions if q.key in parts_of), key=lambda question: question.key)
    if not asked:
        return {}
    nulls = {
        name: [Answer(q.question, said[q.key], q.correct, q.incorrect) for q in asked]
        for name, said in null_answers(asked).items()
    }
    parts = np.array([parts_of[q.key] for q in asked])

    def judge(answers: Sequence[Answer]) -> dict[Aspect, NDArray[np.float64]]:
        features = _extract(answers, model)
        found = {aspect: np.zeros(len(answers)) for aspect in classifiers[0].aspects}
        for part, classifier in enumerate(classifiers):
            chosen = np.flatnonzero(parts == part)
            for aspect, p in found.items():
                p[chosen] = classifier.probability(features[chosen], aspect)
        return found

    return null_rates(judge, nulls)


def _with_negatives(
    answers: Sequence[Answer], rows: Rows, parts: NDArray[np.int64]
) -> tuple[list[Answer], Rows]:
    """The answers and those that `negatives` makes, all of them uninformative."""
    labels: dict[int, list[bool]] = {}
    for place, label in zip(rows.place.tolist(), rows.label.tolist(), strict=True):
        labels.setdefault(place, []).append(label)
    informative: dict[str, list[str]] = {}
    asked: dict[str, Answer] = {}
    part: dict[str, int] = {}
    for i, answer in enumerate(answers):
        asked[answer.question], part[answer.question] = answer, int(parts[i])
        known = informative.setdefault(answer.question, [])
        if all(labels.get(i, [False])):
            known.append(answer.answer)
    for question, known in informative.items():
        references = (*asked[question].correct, *asked[question].incorrect)
        known += [one for one in references if not is_evasive(one)]
    made = negatives({q: list(dict.fromkeys(known)) for q, known in informative.items() if known}, part)
    new = [replace(asked[one.question], answer=one.answer) for one in made]
    return [*answers, *new], Rows(
        np.concatenate([rows.place, len(answers) + np.arange(len(new))]).astype(np.int64),
        np.concatenate([rows.label, np.zeros(len(new), dtype=bool)]),
        np.concatenate([rows.kind, np.array([one.kind for one in made], dtype="<U16")]),
    )


def _counted(kind: NDArray[np.str_]) -> dict[str, int]:
    return {name: int((kind == name).sum()) for name in sorted(set(kind.tolist()) - {""})}


def _basis(vectors: NDArray[np.floating[Any]]) -> Basis:
    from sklearn.decomposition import PCA

    n = min(_COMPONENTS, *vectors.shape)
    with np.errstate(invalid="ignore"):  # shares of a variance of 0, where all answers are the same
        fitted = PCA(n, svd_solver="covariance_eigh").fit(vectors.astype(np.float64))
    return Basis(fitted.mean_, fitted.components_)


def _trees(x: NDArray[np.float64], y: NDArray[np.bool_], weight: NDArray[np.float64] | None = None) -> Trees:
    from sklearn.ensemble import HistGradientBoostingClassifier

    # A user's own labels may be few: a leaf then needs fewer of them.
    leaf = max(1, min(_TREES["min_samples_leaf"], len(y) // 20))
    fitted = HistGradientBoostingClassifier(**(_TREES | {"min_samples_leaf": leaf})).fit(
        x, y, sample_weight=weight
    )
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


def _sha256(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()
