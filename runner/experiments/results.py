"""What a run measured: one type for every study, and the one way in which results are written and read.

Results are a table of conditions with what was measured of each; what only one study knows stands in a
section of that study's own type. Cards, reports, the command line and notebooks take nothing else.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from subvene.runner.experiments.format_1 import upgraded
from subvene.runner.files.statistics import mean_and_sd
from subvene.runner.files.storage import write_text
from subvene.specs import SubveneError
from subvene.specs.regular_file import read_text

if TYPE_CHECKING:
    import pandas

    from subvene.runner.judges.base import Identity, Usage

FILE = "results.json"
FORMAT = 2
SCHEMA_ID = "urn:subvene:results:2"

Point = dict[str, JsonValue]
"""Fields of the experiment by path, such as `iti.strength`, with their values."""


class ResultsError(SubveneError):
    """A file holds no results of `subvene run`."""


class Record(BaseModel):
    """A part of the results: every number in it is finite, and nothing unknown stands in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SectionOf = TypeVar("SectionOf", bound=Record)


class Metric(Record):
    """A number that was measured.

    Attributes:
        mean: the number; of several, their mean.
        sd: standard deviation of what the mean is over, n − 1 below the root; None for one.
        low: lower bound of its interval; None without one.
        high: upper bound.
        n: how many questions, texts or responses (of a row: cells) the mean is over.
    """

    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    n: int


def metric_of(values: Iterable[float | None]) -> Metric | None:
    """Mean, standard deviation (n − 1) and number of the values that there are; None without any."""
    known = [value for value in values if value is not None]
    mean, sd = mean_and_sd(known)
    return None if mean is None else Metric(mean=mean, sd=sd, n=len(known))


def metrics_of(values: Mapping[str, Metric | None]) -> dict[str, Metric]:
    """Those that have a number."""
    return {name: metric for name, metric in values.items() if metric is not None}


class Item(Record):
    """What was measured of one question, prompt or text.

    Attributes:
        key: of the question in `Results.questions`.
        text: what the model wrote; None where it wrote nothing.
        seed: of the draw; None where nothing was drawn.
        tokens: of the text; None where they were not counted.
        scores: by name, as the judge or the model gave them; None where there is no score.
        missing: by name, why a score is still owed.
    """

    key: str
    text: str | None = None
    seed: int | None = None
    tokens: int | None = None
    scores: dict[str, float | bool | None] = {}
    missing: dict[str, str | None] = {}


class Condition(Record):
    """One condition at one point, for one seed and fold, with all that was measured of it.

    Attributes:
        name: of the condition in the file.
        label: what the table calls it: the name, and the point where it has several.
        group: what it belongs to: the trait that is measured, the group of arms; None where there is none.
        point: the values of its sweep.
        seed: of its fit and its draws; None where there are no several.
        fold: on which it was tested; None where there are none.
        metrics: by name.
        counts: by name: `true_missing`, `questions_seen_in_fit`, …
        receipts: by measurement, one record an intervention (`Receipt.to_dict`).
        units: by measurement, the key of its unit in the ledger.
        items: what was measured of each question.
        artifact: where it was kept, relative to the run's folder; None if it was not.
        not_finite: why there are no numbers; None where there are.
        out_of_reach: why it could not be brought to its budget, and so has no numbers; None where it was.
        details: what only its study knows of it.
    """

    name: str
    label: str
    group: str | None = None
    point: Point = {}
    seed: int | None = None
    fold: int | None = None
    metrics: dict[str, Metric] = {}
    counts: dict[str, int] = {}
    receipts: dict[str, list[JsonValue]] = {}
    units: dict[str, str] = {}
    items: tuple[Item, ...] = ()
    artifact: str | None = None
    not_finite: str | None = None
    out_of_reach: str | None = None
    details: dict[str, JsonValue] = {}

    @property
    def missing(self) -> int:
        """How many verdicts or scores the judge still owes."""
        return sum(len(item.missing) for item in self.items)

    def value(self, metric: str) -> float | None:
        """A metric's mean; None where it was not measured."""
        found = self.metrics.get(metric)
        return None if found is None else found.mean


def missing_verdicts(conditions: Iterable[Condition]) -> Counter[str]:
    """Why verdicts are missing, with how many are for each reason."""
    return Counter(
        str(reason) for one in conditions for item in one.items for reason in item.missing.values()
    )


class Tried(Record):
    """A point that was tried on validation.

    Attributes:
        point: its values.
        value: of the metric; None where it has none.
        n: how many questions it is over.
        not_finite: why there is none.
        out_of_reach: why it could not be brought to the budget.
    """

    point: Point
    value: float | None = None
    n: int = 0
    not_finite: str | None = None
    out_of_reach: str | None = None


class Choice(Record):
    """How a condition's point was chosen on validation.

    Attributes:
        condition: its name.
        metric: what decided.
        tried: the points, in the file's order.
        chosen: the best; None where none could be.
        seed: for which.
        fold: for which.
    """

    condition: str
    metric: str
    tried: tuple[Tried, ...]
    chosen: Point | None
    seed: int | None = None
    fold: int | None = None


class FitRecord(Record):
    """What a condition's fit found.

    Attributes:
        condition: its name.
        point: its values.
        seed: of the fit.
        fold: that the fit did not see.
        artifact: where it was kept.
        provenance: as in the artifact's metadata.
    """

    condition: str
    point: Point = {}
    seed: int | None = None
    fold: int | None = None
    artifact: str | None = None
    provenance: dict[str, JsonValue] = {}


class JudgeRecord(Record):
    """Who judged.

    Attributes:
        about: what identifies it, and what was measured of it (`describe`).
        usage: requests, tokens and cost of this run; empty for a judge that costs nothing.
    """

    about: dict[str, JsonValue]
    usage: dict[str, JsonValue] = {}


def judge_record(about: Identity, usage: Usage) -> JudgeRecord:
    """Who judged, by what its `describe` and its `usage` give."""
    return JudgeRecord.model_validate({"about": dict(about), "usage": dict(usage)})


class QuestionText(Record):
    """A question that conditions were measured on.

    Attributes:
        question: its text.
        best: the best known answer; None where there is none.
        category: of the data; None where it has none.
    """

    question: str
    best: str | None = None
    category: str | None = None


class Results(Record):
    """What a run measured.

    Attributes:
        format: of this type.
        kind: the study: `comparison`, `persona`, `localization`, `tracing`, `interchange`, `look`.
        manifest: what there is to know about where the numbers come from.
        conditions: what was measured of each.
        choices: how points were chosen.
        fits: what was found by fitting.
        judges: who judged.
        questions: by key, what was asked.
        notes: what must be known to read the numbers.
        sections: by name, what only one study knows; read by `section`.
    """

    format: Literal[2] = 2
    kind: str
    manifest: dict[str, JsonValue] = {}
    conditions: tuple[Condition, ...] = ()
    choices: tuple[Choice, ...] = ()
    fits: tuple[FitRecord, ...] = ()
    judges: tuple[JudgeRecord, ...] = ()
    questions: dict[str, QuestionText] = {}
    notes: tuple[str, ...] = ()
    sections: dict[str, JsonValue] = {}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """The results of a run.

        Args:
            folder: of the run, or its `results.json`.

        Raises:
            ResultsError: there are none, or they are no results of `subvene run`.
        """
        path = Path(folder)
        path = path / FILE if path.is_dir() else path
        try:
            return cls.of(json.loads(read_text(path)))
        except (OSError, ValueError, RecursionError) as error:
            raise ResultsError(f"{path}: cannot be read as the results of a run ({error})") from error
        except ResultsError as error:
            raise ResultsError(f"{path}: {error}") from error

    @classmethod
    def of(cls, document: object) -> Self:
        """Results from the JSON document that holds them.

        Raises:
            ResultsError: they are no results of `subvene run`, or of a format that this version cannot read.
        """
        try:
            if isinstance(document, dict) and "format" not in document:
                document = upgraded(document)
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ResultsError(f"these are no results of `subvene run`: {place}: {first['msg']}") from error
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ResultsError(f"these are no results of `subvene run` ({error!r})") from error

    def save(self, folder: Path) -> Path:
        """Write `results.json`; a reader finds the old one or the new one.

        Raises:
            StorageError: the disk does not take it.
        """
        write_text(folder / FILE, self.to_json())
        return folder / FILE

    def to_json(self) -> str:
        """As `results.json` holds them."""
        document = {"format": FORMAT, **self.model_dump(mode="json", exclude_defaults=True)}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def section(self, name: str, kind: type[SectionOf]) -> SectionOf | None:
        """What only one study knows, as its own type; None where it is not there.

        Raises:
            ResultsError: it is not of that type.
        """
        if name not in self.sections:
            return None
        try:
            return kind.model_validate(self.sections[name])
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ResultsError(f"results: sections.{name}.{place}: {first['msg']}") from error

    def to_pandas(self) -> pandas.DataFrame:
        """A table with a row for each condition, seed and fold, and a column for every metric's mean."""
        import pandas

        return pandas.DataFrame([dict(_line(condition)) for condition in self.conditions])

    def _repr_html_(self) -> str:
        """What a notebook shows: `to_pandas`, without the columns that say nothing."""
        return str(self.to_pandas().dropna(axis="columns", how="all").to_html(index=False))


def results_schema() -> dict[str, JsonValue]:
    """One JSON Schema (draft 2020-12) of `results.json` in today's format."""
    schema = Results.model_json_schema()
    schema["title"] = "subvene results"
    schema["required"] = ["format", *schema["required"]]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID}
    return head | schema


def _line(condition: Condition) -> Iterable[tuple[str, object]]:
    for name in ("group", "name", "label", "seed", "fold"):
        yield name, getattr(condition, name)
    yield from condition.point.items()
    for name, metric in condition.metrics.items():
        yield name, metric.mean
    yield from condition.counts.items()
