"""Tables of a localization experiment as files: CSV for other tools, Markdown to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from subvene.runner.experiments.localization.section import section_of
from subvene.runner.experiments.results import Results, Tried
from subvene.runner.experiments.rows import METRICS
from subvene.runner.files.csv_file import csv_text
from subvene.runner.reports.blocks import Cell, Document, Items, Over, Table
from subvene.runner.reports.documents import document_files
from subvene.runner.reports.judged import judged_document, judged_files
from subvene.runner.reports.localization_arms import (
    FAMILIES,
    SETS,
    Arm,
    arms_of,
    by_group,
    compared,
    group_label,
    heads_in_words,
    interval_in_words,
    measured,
    metrics_of,
    p_in_words,
    points_in_words,
    spread,
)
from subvene.runner.reports.persona_tables import number
from subvene.runner.reports.tables import judge_in_words, metric_column

Line = dict[str, object]

_OF_TRAINING = ("steps", "best_step", "pairs")


def localization_files(results: Results) -> dict[str, str]:
    """The tables by file name; those of things that were not done are left out.

    Raises:
        ResultsError: these are no results of a localization experiment.
    """
    arms = arms_of(results)
    files = {
        "arms.csv": csv_text([_arm_line(arm) for arm in arms], _arm_columns(arms)),
        "evidence.csv": csv_text(list(_evidence_lines(results)), _EVIDENCE),
        "selection.csv": csv_text(list(_selection_lines(arms)), ["arm", "group", *_SELECTION]),
    }
    for name, lines in (
        ("comparisons.csv", list(_comparison_lines(results))),
        ("curves.csv", list(_curve_lines(results))),
        ("training.csv", list(_training_lines(arms))),
        ("answers.csv", list(_answer_lines(results))),
    ):
        if lines:
            files[name] = csv_text(lines)
    files |= judged_files(results)
    return files | document_files("results", document(results), results.kind)


def document(results: Results) -> Document:
    """The verdict, the table of arms and the evidence, for a reader of text.

    Raises:
        ResultsError: these are no results of a localization experiment.
    """
    section = section_of(results)
    groups = ((group_label(group, len(arms)), arms) for group, arms in by_group(results).items())
    blocks: list[Table | Items] = [Items(section.verdict)] if section.verdict else []
    blocks.append(arms_table(groups, metrics_of(results)))
    families = dict.fromkeys((one.family, one.draws) for one in section.evidence)
    blocks += [evidence_table(results, family, of) for family, of in families]
    said = ["[low, high]: bootstrap interval over test questions (texts for CE and KL)"]
    said += ["(lowest to highest): over the arms of a group, after their mean"]
    notes = Items((*said, *(judge_in_words(judge.about) for judge in results.judges)))
    return [*blocks, notes, *judged_document(results)]


def arms_table(
    named: Iterable[tuple[str, Sequence[Arm]]], used: Sequence[str], *, chosen: bool = True
) -> Table:
    """A row for each arm, or for the several arms of a group.

    Args:
        named: what each row is called, and its arms.
        used: the metrics.
        chosen: with the points that were chosen, which take room.
    """
    groups = list(named)
    unseen = any(arm.record.unseen_accuracy is not None for _, arms in groups for arm in arms)
    owed = any(arm.condition.missing for _, arms in groups for arm in arms)
    rows = []
    for name, arms in groups:
        row: list[Cell] = [name, heads_in_words(arms)]
        row.append(spread([arm.record.probe_accuracy for arm in arms]))
        row += [spread([arm.record.unseen_accuracy for arm in arms])] if unseen else []
        row += [points_in_words(arms)] if chosen else []
        row += [measured(arms, metric) for metric in used]
        row += [sum(arm.condition.missing for arm in arms)] if owed else []
        rows.append(row)
    heads = ["arm", "heads", "probing accuracy", *(["on unseen answers"] if unseen else [])]
    heads += [*(["chosen"] if chosen else [])]
    return Table.of([*heads, *map(metric_column, used), *(["verdicts missing"] if owed else [])], rows)


def evidence_table(results: Results, family: str, of: str = "random") -> Table:
    """The probed set of a family of arms among its draws, a row for each metric."""
    heads = ["metric", "probed heads", "random heads", "sd", "draws", "at least as good", "rank p"]
    heads += ["t-test", "prediction interval", "probed is"]
    rows = []
    for one in section_of(results).evidence:
        if (one.family, one.draws) != (family, of):
            continue
        tested = Over("–")
        if one.t_test is not None:
            at = f"t({number(one.t_test.df, 'g')}) = {number(one.t_test.t, '.2f')}"
            tested = Over(f"p {compared(one.t_test.p)}", at)
        row: list[Cell] = [metric_column(one.metric).titled, one.probed, spread(one.random), one.sd]
        made = (
            f"{len(one.random)}"
            if one.rank.most is None
            else f"{len(one.random)}, stopped of {one.rank.most}"
        )
        row += [made, f"{one.rank.at_least} of {one.rank.n}", p_in_words(one.rank.p), tested]
        row += [interval_in_words(one.prediction), {True: "inside", False: "outside", None: "–"}[one.inside]]
        rows.append(row)
    title = f"{FAMILIES[family]}: the probed set among {SETS[of]}; with the mean of the draws, their range"
    return Table.of(heads, rows, title)


_SELECTION = ("point", "metric", "value", "chosen")
_EVIDENCE = (
    *(
        "family",
        "draws",
        "metric",
        "probed",
        "n",
        "mean",
        "sd",
        "lowest",
        "highest",
        "at_least",
        "rank_p",
        "most",
    ),
    *("t", "df", "t_p", "level", "prediction_low", "prediction_high", "inside", "random"),
)


def value_in_words(tried: Tried) -> str:
    """What a point gave on validation questions, with four digits."""
    return "not finite" if tried.not_finite is not None else number(tried.value, ".4f")


def _selection_lines(arms: Iterable[Arm]) -> Iterator[Line]:
    """Every point that was tried on validation questions."""
    for arm in arms:
        for tried in arm.choice.tried if arm.choice else ():
            yield {
                "arm": arm.name,
                "group": arm.group,
                "point": json.dumps(tried.point, sort_keys=True),
                "metric": arm.choice.metric if arm.choice else None,
                "value": tried.value if tried.not_finite is None else "not finite",
                "chosen": int(arm.choice is not None and tried.point == arm.choice.chosen),
            }


def _arm_columns(arms: Sequence[Arm]) -> list[str]:
    names = [*METRICS, *(name for arm in arms for name in arm.condition.metrics)]
    columns = ["arm", "group", "family", "n_heads", "heads", "probe_accuracy", "unseen_accuracy", "point"]
    for name in dict.fromkeys(names):
        if any(name in arm.condition.metrics for arm in arms):
            bounds = any(arm.interval(name) is not None for arm in arms)
            columns += [name, *((f"{name}_low", f"{name}_high") if bounds else ())]
    counts = dict.fromkeys(name for arm in arms for name in arm.condition.counts)
    return [*columns, *counts, *_OF_TRAINING, "artifact"]


def _arm_line(arm: Arm) -> Line:
    condition, record = arm.condition, arm.record
    heads = None if record.heads is None else {str(layer): of for layer, of in record.heads.items()}
    line: Line = {
        "arm": arm.name,
        "group": arm.group,
        "family": record.family,
        "n_heads": record.n_heads,
        "heads": None if heads is None else json.dumps(heads, sort_keys=True),
        "probe_accuracy": record.probe_accuracy,
        "unseen_accuracy": record.unseen_accuracy,
        "point": json.dumps(condition.point, sort_keys=True),
    }
    for name, metric in condition.metrics.items():
        line[name] = metric.mean
        if (interval := arm.interval(name)) is not None:
            line[f"{name}_low"], line[f"{name}_high"] = interval
    training = record.training
    line |= condition.counts | {"artifact": condition.artifact}
    return line | {name: None if training is None else getattr(training, name) for name in _OF_TRAINING}


def _evidence_lines(results: Results) -> Iterator[Line]:
    for one in section_of(results).evidence:
        low, high = one.prediction or (None, None)
        yield {
            **{
                name: getattr(one, name)
                for name in ("family", "draws", "metric", "probed", "mean", "sd", "level")
            },
            "n": len(one.random),
            "lowest": min(one.random),
            "highest": max(one.random),
            "at_least": one.rank.at_least,
            "rank_p": one.rank.p,
            "most": one.rank.most,
            "t": None if one.t_test is None else one.t_test.t,
            "df": None if one.t_test is None else one.t_test.df,
            "t_p": None if one.t_test is None else one.t_test.p,
            "prediction_low": low,
            "prediction_high": high,
            "inside": None if one.inside is None else int(one.inside),
            "random": json.dumps(one.random),
        }


def _comparison_lines(results: Results) -> Iterator[Line]:
    for one in section_of(results).comparisons:
        low, high = one.interval or (None, None)
        place = {"a": one.a, "b": one.b, "metric": one.metric}
        yield place | {"difference": one.difference, "low": low, "high": high}


def _curve_lines(results: Results) -> Iterator[Line]:
    """Every point of every arm, on validation questions and, where that was asked for, on the test's."""
    for one in section_of(results).curves:
        place = {"arm": one.arm, "group": one.group, "questions": one.questions}
        exploratory = {"exploratory": int(one.questions == "test")}
        point = {"point": json.dumps(one.point, sort_keys=True)}
        for metric, value in one.metrics.items():
            yield place | exploratory | point | {"metric": metric, "value": value}


def _training_lines(arms: Iterable[Arm]) -> Iterator[Line]:
    for arm in arms:
        for one in arm.record.training.evaluations if arm.record.training else ():
            yield {"arm": arm.name, "group": arm.group} | one.model_dump()


def _answer_lines(results: Results) -> Iterator[Line]:
    for condition in results.conditions:
        for item in condition.items:
            if item.text is not None:
                question = results.questions.get(item.key)
                yield {
                    "arm": condition.name,
                    "key": item.key,
                    "question": None if question is None else question.question,
                    "answer": item.text,
                    **item.scores,
                    **{f"{aspect}_missing": reason for aspect, reason in item.missing.items()},
                }
