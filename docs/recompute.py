"""What the results pages say, made again from the raw results beside them.

    python docs/recompute.py                  # check every page that has raw results
    python docs/recompute.py --write          # write their tables anew
    python docs/recompute.py --keep RUN NAME  # take over a run's results as those of docs/results/NAME.md

A page `NAME.md` whose `NAME/results.json.gz` is the run's `results.json` without the texts of TruthfulQA's
questions (they are other people's) may hold

* tables, between `<!-- FILE.md: from the raw results -->` and `<!-- end -->`: a file of the run's `tables/`;
  with `FILE.md where COLUMN=VALUE` only the rows that have it;
* claims, in the paragraph that makes them: `<!-- shown: CONDITION/METRIC up -->` (or `down`) stands only
  where the paired difference from the first condition has that sign and, after Holm's correction, a p below
  .05, and the paragraph has to give it as `+42.3 [+23.3, +61.3]`; `<!-- not shown: CONDITION/METRIC -->`
  only where it has not. In a persona run a condition is `TRAIT/CONDITION`.

Means, intervals and p-values come from the scores of each question, not from what the run stored.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from subvene.runner.experiments.intervals import INTERVALS, intervals_in, intervals_of
from subvene.runner.experiments.item_effects import ITEM_EFFECTS, item_effects_in, item_effects_of
from subvene.runner.experiments.persona.differences import differences_of
from subvene.runner.experiments.results import Condition, QuestionText, Results
from subvene.runner.reports.publish import REPORTS

PAGES = Path(__file__).parent / "results"
RAW = "results.json.gz"
_TABLE = re.compile(
    r"(<!-- (\S+\.md)(?: where ([^=]+)=(.+?))?: from the raw results -->\n).*?(<!-- end -->)", re.S
)
_CLAIM = re.compile(r"<!-- (shown|not shown): (\S+?)(?: (up|down))? -->")
_LEVEL = 0.05
# Scores that only TruthfulQA's questions have.
_TRUTHFULQA = {"true", "info", "mc1", "mc2", "mc3"}


@dataclass(frozen=True)
class Gap:
    """A paired difference from the first condition, with its interval and its corrected p."""

    value: float
    low: float
    high: float
    p: float

    def says(self, digits: int) -> str:
        """As a page writes it."""
        value, low, high = (f"{x:+.{digits}f}" for x in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


def raw(page: Path) -> Results | None:
    """The raw results of a page; None where it has none."""
    path = page.with_suffix("") / RAW
    return Results.of(json.loads(gzip.decompress(path.read_bytes()).decode())) if path.is_file() else None


def gaps_of(results: Results) -> dict[str, Gap]:
    """Every difference that a page may speak of, from the items, by `CONDITION/METRIC`."""
    if results.kind == "persona":
        return {
            f"{gap.trait}/{gap.condition}/{gap.measure}": Gap(gap.value, gap.low, gap.high, gap.p_holm)
            for gap in differences_of(results.conditions)
            if gap.p_holm is not None
        }
    found = intervals_of(results.conditions, _folds(results))
    return {
        f"{label}/{metric}": Gap(gap.value, gap.low, gap.high, gap.p_holm)
        for label, by_metric in found.differences.items()
        for metric, gap in by_metric.items()
        if gap.p_holm is not None
    }


def _folds(results: Results) -> int:
    """Of a repeat, as the run's own file says."""
    declared = yaml.safe_load(str(results.manifest["spec"]))
    return int(declared.get("folds") or 1)


def problems(page: Path, results: Results) -> Iterator[str]:
    """What a page says that its raw results do not."""
    text = page.read_text("utf-8")
    if text != with_tables(text, results):
        yield "a table is not the one of the raw results: python docs/recompute.py --write"
    gaps = gaps_of(results)
    for paragraph in re.split(r"\n\s*\n|\n(?=- )", text):
        for said, name, way in _CLAIM.findall(paragraph):
            yield from _claim(paragraph, gaps.get(name), said == "shown", name, way)
    for condition in results.conditions:
        yield from _means(condition)
    if INTERVALS in results.sections and intervals_in(results) != intervals_of(
        results.conditions, _folds(results)
    ):
        yield "the stored intervals are not those of the items"
    if ITEM_EFFECTS in results.sections and item_effects_in(results) != item_effects_of(results.conditions):
        yield "the stored effects item by item are not those of the items"


def _claim(paragraph: str, gap: Gap | None, shown: bool, name: str, way: str) -> Iterator[str]:
    if gap is None:
        yield f"{name}: there is no such difference"
        return
    stands = gap.p < _LEVEL and (not way or (gap.value > 0) == (way == "up"))
    if shown != stands:
        yield f"{name} {way}: {gap.says(2)}, p = {gap.p:.3g} (Holm) is {'not ' * shown}shown"
    if shown and not any(gap.says(digits) in paragraph.replace("−", "-") for digits in range(4)):
        yield f"{name}: its paragraph does not give {gap.says(1)}"


def _means(condition: Condition) -> Iterator[str]:
    for name, metric in condition.metrics.items():
        values = [float(score) for item in condition.items if (score := item.scores.get(name)) is not None]
        weighted = name in ("ce", "kl")  # over tokens, not over texts
        if values and not weighted and not math.isclose(sum(values) / len(values), metric.mean, abs_tol=1e-9):
            yield f"{condition.label}: {name} is not the mean of its items"


def with_tables(text: str, results: Results) -> str:
    """A page with the tables of its raw results."""
    files = REPORTS[results.kind].tables(results)

    def table(found: re.Match[str]) -> str:
        start, name, column, value, end = found.groups()
        if name not in files:
            raise SystemExit(f"the run has no table {name}; it has {', '.join(sorted(files))}")
        return f"{start}{_rows(files[name], column, value)}{end}"

    return _TABLE.sub(table, text)


def _rows(document: str, column: str | None, value: str | None) -> str:
    if column is None:
        # Line breaks between tables stay: without them they would be one.
        return "\n".join(re.findall(r"(?:^\|.*\n?)+", document, re.M))
    lines = [line for line in document.splitlines() if line.startswith("|")]
    at = [cell.strip() for cell in lines[0].split("|")].index(column)
    lines = lines[:2] + [line for line in lines[2:] if line.split("|")[at].strip() == value]
    return "\n".join(lines) + "\n"


def published(results: Results) -> Results:
    """What may be shown of results: of the questions only those asked, of TruthfulQA's no text."""
    asked: dict[str, bool] = {}
    for condition in results.conditions:
        for item in condition.items:
            asked[item.key] = asked.get(item.key, False) or not _TRUTHFULQA.isdisjoint(item.scores)
    questions = {
        key: QuestionText(question=f"TruthfulQA, question {key}", category=question.category)
        if asked[key]
        else question
        for key, question in results.questions.items()
        if key in asked
    }
    return results.model_copy(update={"questions": questions})


def keep(run: Path, name: str) -> Path:
    """Take over a run's results, as they may be shown; the same results give the same bytes."""
    path = PAGES / name / RAW
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(published(Results.load(run)).to_json().encode(), mtime=0))
    return path


def main(arguments: Sequence[str]) -> int:
    """Check every page that has raw results, or write its tables anew, or take over a run's results."""
    if arguments[:1] == ["--keep"]:
        keep(Path(arguments[1]), arguments[2])
        return 0
    found = 0
    for page in sorted(PAGES.glob("*.md")):
        if (results := raw(page)) is None:
            continue
        if arguments == ["--write"]:
            page.write_text(with_tables(page.read_text("utf-8"), results), "utf-8")
        for problem in problems(page, results):
            found += 1
            print(f"{page.name}: {problem}")
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
