"""Tables of a localization experiment as files: CSV for other tools, Markdown to read.

How its arms are called and grouped, and how its numbers are put into words, stands here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from subvene.runner.experiments.rows import LOWER_IS_BETTER, METRICS
from subvene.runner.files.csv_file import csv_text
from subvene.runner.files.markdown import in_cell
from subvene.runner.files.storage import write_text
from subvene.runner.measures.missing import ASPECTS
from subvene.runner.reports.curves import point_in_words
from subvene.runner.reports.persona_tables import number
from subvene.runner.reports.tables import judge_in_words

Results = Mapping[str, Any]
Arm = Mapping[str, Any]
Line = dict[str, Any]

GROUPS = {
    "baseline": "untouched model",
    "iti_probed": "ITI, probed heads",
    "iti_random": "ITI, random heads",
    "edit_probed": "edit, probed heads",
    "edit_random": "edit, random heads",
    "edit_single": "edit, one head",
    "edit_all": "edit, all heads",
    "lora": "LoRA, unrestricted",
}
"""What the groups of arms are called."""
FAMILIES = {"iti": "ITI", "edit": "Trained edit", "lora": "LoRA"}
_OF_TRAINING = ("steps", "best_step", "pairs")


def write_localization_tables(output: Path, results: Results) -> None:
    """Write `tables/`: arms, evidence, selection and what else there is as CSV, and `results.md`.

    Args:
        output: the run's folder; made if it is not there.
        results: of the experiment, as in its `results.json`.
    """
    folder = output / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in localization_files(results).items():
        write_text(folder / name, text)


def localization_files(results: Results) -> dict[str, str]:
    """The tables by file name; those of things that were not done are left out.

    Args:
        results: of a localization experiment, as in its `results.json`.
    """
    files = {
        "arms.csv": csv_text([_arm_line(arm) for arm in results["arms"]], _arm_columns(results)),
        "evidence.csv": csv_text(list(_evidence_lines(results)), _EVIDENCE),
        "selection.csv": csv_text(list(selection_lines(results)), ["arm", "group", *_SELECTION]),
    }
    for name, lines in (
        ("comparisons.csv", list(_comparison_lines(results))),
        ("training.csv", list(_training_lines(results))),
        ("answers.csv", list(_answer_lines(results))),
    ):
        if lines:
            files[name] = csv_text(lines)
    return files | {"results.md": localization_markdown(results)}


def localization_markdown(results: Results) -> str:
    """The verdict, the table of arms and the evidence, for a reader of text."""
    used = metrics_of(results)
    lines = [*(f"- {in_cell(said)}" for said in results.get("verdict") or ())]
    lines += [""] if lines else []
    missing = any(map(missing_of, results["arms"]))
    heads = ["arm", "heads", "probing accuracy", "chosen", *(METRICS[metric] for metric in used)]
    lines += _table(
        [*heads, *(["verdicts missing"] if missing else [])],
        (
            [
                group_label(group, len(arms)),
                heads_in_words(arms),
                spread_in_words([arm.get("probe_accuracy") for arm in arms]),
                points_in_words(arms),
                *(measured_in_words(arms, metric) for metric in used),
                *([str(sum(map(missing_of, arms)))] if missing else []),
            ]
            for group, arms in by_group(results).items()
        ),
    )
    if results.get("evidence"):
        heads = ["family", "metric", "probed heads", "random heads", "draws", "rank p", "t-test p"]
        lines += ["", *_table([*heads, "prediction interval"], _evidence_cells(results))]
    lines += ["", "- [low, high]: bootstrap interval over test questions (texts for CE and KL)"]
    lines += ["- mean (lowest to highest): over the arms of a group"]
    lines += [f"- {in_cell(judge_in_words(judge))}" for judge in results.get("judges") or ()]
    return "\n".join(lines) + "\n"


def by_group(results: Results) -> dict[str, list[Arm]]:
    """The arms of each group, in the order in which the results have them."""
    groups: dict[str, list[Arm]] = {}
    for arm in results["arms"]:
        groups.setdefault(arm["group"], []).append(arm)
    return groups


def group_label(group: str, n: int = 1) -> str:
    """`edit, random heads × 16`."""
    return GROUPS.get(group, group) + (f" × {n}" if n > 1 else "")


def arm_label(arm: Arm) -> str:
    """`edit, random heads 3`."""
    _, _, last = arm["name"].rpartition("_")
    group = GROUPS.get(arm["group"]) or str(arm["name"])
    return group + (f" {last}" if last.isdecimal() else "")


def metrics_of(results: Results) -> list[str]:
    """The metrics that any arm has, in the table's order."""
    return [name for name in METRICS if any(value_of(arm, name) is not None for arm in results["arms"])]


def metric_label(metric: str) -> str:
    """Its name, with an arrow to where it is better."""
    return f"{METRICS.get(metric, metric)} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def value_of(arm: Arm, metric: str) -> float | None:
    """A metric of an arm; None if it was not measured."""
    found: float | None = arm["metrics"].get(metric)
    return found


def missing_of(arm: Arm) -> int:
    """How many verdicts on an arm's answers the judge still owes."""
    return sum(arm["metrics"].get(f"{aspect}_missing") or 0 for aspect in ASPECTS)


def interval_of(arm: Arm, metric: str) -> Sequence[float] | None:
    """A metric's bootstrap interval; None where there is none."""
    found: Sequence[float] | None = (arm.get("intervals") or {}).get(metric)
    return found


def known(values: Sequence[float | None]) -> list[float]:
    """Those that were measured."""
    return [value for value in values if value is not None]


def p_in_words(p: float | None) -> str:
    """A p-value with three digits, and never 0."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval_in_words(interval: Sequence[float] | None) -> str:
    """`[0.41, 0.55]`."""
    return "–" if interval is None else f"[{', '.join(number(bound, '.3f') for bound in interval)}]"


def spread_in_words(values: Sequence[float | None]) -> str:
    """A value; of several the mean, the lowest and the highest."""
    found = known(values)
    if not found:
        return "–"
    mean = number(sum(found) / len(found), ".3f")
    if len(found) == 1:
        return mean
    return f"{mean} ({number(min(found), '.3f')} to {number(max(found), '.3f')})"


def measured_in_words(arms: Sequence[Arm], metric: str) -> str:
    """The arms' values of a metric: one with its bootstrap interval, several with their range."""
    said = spread_in_words([value_of(arm, metric) for arm in arms])
    interval = interval_of(arms[0], metric) if len(arms) == 1 else None
    return said if interval is None else f"{said} {interval_in_words(interval)}"


def heads_in_words(arms: Sequence[Arm]) -> str:
    """How many heads the arms act on: `13`, `1 to 3`, – for none to speak of."""
    counts = sorted({arm["n_heads"] for arm in arms if arm.get("heads") is not None})
    return " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) if counts else "–"


def points_in_words(arms: Sequence[Arm]) -> str:
    """What was chosen; of several arms with how many chose it, the most frequent first."""
    found = [point_in_words(arm["point"]) for arm in arms if arm.get("point")]
    if not found:
        return "–"
    if len(arms) == 1:
        return found[0]
    by_count = sorted(dict.fromkeys(found), key=lambda point: -found.count(point))
    return "; ".join(f"{point} ({found.count(point)}×)" for point in by_count)


def selection_lines(results: Results) -> Iterator[Line]:
    """Every point that was tried on validation questions."""
    metric = (results.get("selection") or {}).get("metric")
    for arm in results["arms"]:
        for tried in arm.get("candidates") or ():
            point = json.dumps(tried["point"], sort_keys=True)
            chosen = int(point == json.dumps(arm.get("point"), sort_keys=True))
            about = {"arm": arm["name"], "group": arm["group"], "point": point}
            value = "not finite" if "not_finite" in tried else tried["value"]
            yield about | {"metric": metric, "value": value, "chosen": chosen}


_SELECTION = ("point", "metric", "value", "chosen")
_EVIDENCE = (
    *("family", "metric", "probed", "n", "mean", "sd", "lowest", "highest", "at_least", "rank_p"),
    *("t", "df", "t_p", "level", "prediction_low", "prediction_high", "inside", "random"),
)


def _arm_columns(results: Results) -> list[str]:
    names = list(METRICS) + list(dict.fromkeys(name for arm in results["arms"] for name in arm["metrics"]))
    measured = [name for name in dict.fromkeys(names) if any(name in a["metrics"] for a in results["arms"])]
    columns = ["arm", "group", "family", "n_heads", "heads", "probe_accuracy", "point"]
    for name in measured:
        bounds = any(interval_of(arm, name) is not None for arm in results["arms"])
        columns += [name, *((f"{name}_low", f"{name}_high") if bounds else ())]
    return [*columns, *_OF_TRAINING, "artifact"]


def _arm_line(arm: Arm) -> Line:
    line: Line = {"arm": arm["name"]}
    line |= {name: arm.get(name) for name in ("group", "family", "n_heads", "probe_accuracy", "artifact")}
    for name in ("heads", "point"):
        line[name] = None if arm.get(name) is None else json.dumps(arm[name], sort_keys=True)
    for name, value in arm["metrics"].items():
        line[name] = value
        interval = interval_of(arm, name)
        if interval is not None:
            line[f"{name}_low"], line[f"{name}_high"] = interval
    return line | {name: (arm.get("training") or {}).get(name) for name in _OF_TRAINING}


def _evidence_lines(results: Results) -> Iterator[Line]:
    for found in results.get("evidence") or ():
        draws = known(found["random"])
        low, high = found.get("prediction") or (None, None)
        t_test, rank = found.get("t_test") or {}, found.get("rank") or {}
        yield {
            **{name: found.get(name) for name in ("family", "metric", "probed", "mean", "sd", "level")},
            "n": len(draws),
            "lowest": min(draws, default=None),
            "highest": max(draws, default=None),
            "at_least": rank.get("at_least"),
            "rank_p": rank.get("p"),
            "t": t_test.get("t"),
            "df": t_test.get("df"),
            "t_p": t_test.get("p"),
            "prediction_low": low,
            "prediction_high": high,
            "inside": None if found.get("inside") is None else int(found["inside"]),
            "random": json.dumps(found["random"]),
        }


def _evidence_cells(results: Results) -> Iterator[list[str]]:
    for found in results["evidence"]:
        yield [
            FAMILIES.get(found["family"], found["family"]),
            METRICS.get(found["metric"], found["metric"]),
            number(found["probed"], ".3f"),
            spread_in_words(found["random"]),
            str(len(known(found["random"]))),
            p_in_words((found.get("rank") or {}).get("p")),
            p_in_words((found.get("t_test") or {}).get("p")),
            interval_in_words(found.get("prediction")),
        ]


def _comparison_lines(results: Results) -> Iterator[Line]:
    for found in results.get("comparisons") or ():
        low, high = found.get("interval") or (None, None)
        about = {name: found.get(name) for name in ("a", "b", "metric", "difference")}
        yield about | {"low": low, "high": high}


def _training_lines(results: Results) -> Iterator[Line]:
    for arm in results["arms"]:
        for found in (arm.get("training") or {}).get("evaluations") or ():
            about = {"arm": arm["name"], "group": arm["group"]}
            yield about | {name: found.get(name) for name in ("step", "loss", "accuracy")}


def _answer_lines(results: Results) -> Iterator[Line]:
    for arm in results["arms"]:
        for key, found in (arm.get("by_question") or {}).items():
            if found.get("answer") is not None:
                question = (results["questions"].get(key) or {}).get("question")
                yield {"arm": arm["name"], "key": key, "question": question} | found


def _table(heads: Sequence[str], rows: Iterator[list[str]] | Sequence[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return lines + ["| " + " | ".join(in_cell(cell) for cell in row) + " |" for row in rows]
