r"""Judgements of people, from JSONL files.

The published form is GPT-judge's: `{"prompt": "Q: …\nA: …\nTrue:", "completion": " yes"}`, with `Helpful:`
for informativeness. One's own labels may also be given as `{"question": …, "answer": …, "label": true}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subvene.runner.judges.base import Aspect
from subvene.runner.judges.scales.yes_no import ENDINGS
from subvene.specs import SubveneError
from subvene.specs.regular_file import read_text

_PROMPT = re.compile(r"Q: (?P<question>.*?)\nA: ?(?P<answer>.*)\n(?P<ending>True|Helpful):", re.DOTALL)
_ASPECTS: dict[str, Aspect] = {ending: aspect for aspect, ending in ENDINGS.items()}
_LABELS = {"yes": True, "no": False, "true": True, "false": False}
_FORMS = (
    r'{"prompt": "Q: …\nA: …\nTrue:" or "…Helpful:", "completion": " yes" or " no"} or '
    r'{"question": …, "answer": …, "label": true or false}'
)
_SHOWN = 80


class LabelError(SubveneError, ValueError):
    """A file of labels cannot be read as it stands; file and line are named."""


@dataclass(frozen=True)
class Label:
    """One answer, and what a person said of it.

    Attributes:
        question: the question, without `Q:`.
        answer: the answer, without `A:`.
        label: whether it has the quality.
    """

    question: str
    answer: str
    label: bool


def read_labels(path: Path, aspect: Aspect | None = None) -> tuple[Aspect, list[Label]]:
    """The labels of a file, in its order, and which quality they are about.

    Args:
        path: a JSONL file.
        aspect: the quality, where the file does not say it; where it does, the two must agree.

    Raises:
        LabelError: a line is not a label, the lines are about several qualities, or nothing says which.
    """
    found: list[Label] = []
    named: Aspect | None = None
    for number, record in _records(path):
        where = f"{path}:{number}"
        label, ending = _label(record, where)
        found.append(label)
        if ending is None:
            continue
        if (named or aspect or ending) != ending:
            raise LabelError(
                f"{where}: expected a prompt that ends in `{ENDINGS[named or aspect or ending]}:` as "
                f"{'the lines before it' if named else 'the aspect says'}, found `{ENDINGS[ending]}:`"
            )
        named = ending
    if not found:
        raise LabelError(f"{path}: expected labelled answers, found an empty file")
    known = named or aspect
    if known is None:
        raise LabelError(f"{path}: says nowhere whether it is about truth or info; name the aspect")
    return known, found


def _records(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        text = read_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: cannot be read as a file of labels ({error})") from error
    # Not splitlines: a line of JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise LabelError(f"{path}:{number}: expected a line of JSON: {error}") from error


def _label(record: Any, where: str) -> tuple[Label, Aspect | None]:
    if isinstance(record, Mapping) and {"prompt", "completion"} <= record.keys():
        match = _PROMPT.fullmatch(record["prompt"]) if isinstance(record["prompt"], str) else None
        label = _yes_or_no(record["completion"])
        if match and label is not None:
            question, answer = match["question"].strip(), match["answer"].strip()
            return Label(question, answer, label), _ASPECTS[match["ending"]]
    elif isinstance(record, Mapping) and {"question", "answer", "label"} <= record.keys():
        question, answer, label = record["question"], record["answer"], _yes_or_no(record["label"])
        if isinstance(question, str) and question.strip() and isinstance(answer, str) and label is not None:
            return Label(question.strip(), answer.strip(), label), None
    shown = json.dumps(record, ensure_ascii=False)
    shown = shown if len(shown) <= _SHOWN else shown[: _SHOWN - 1] + "…"
    raise LabelError(f"{where}: expected {_FORMS}; found {shown}")


def _yes_or_no(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return _LABELS.get(value.strip().lower()) if isinstance(value, str) else None
