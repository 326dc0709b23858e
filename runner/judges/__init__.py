"""Who says what an answer is worth: spec in, judge out. A new one is a file and a line here.

A kind's module is imported when a judge of that kind is made: each brings libraries that the others do
without.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from subvene.runner.judges.base import Answer, Aspect, Judge, JudgeError, Judgement

__all__ = ["JUDGES", "Answer", "Aspect", "Judge", "JudgeError", "Judgement", "make_judge"]


def _openai(spec: Any, folder: Path, cache: Path | None) -> Judge:
    from subvene.runner.judges.openai import OpenAIJudge

    return OpenAIJudge(spec, folder, cache=cache)


def _transformers(spec: Any, folder: Path, cache: Path | None) -> Judge:
    from subvene.runner.judges.transformers import TransformersJudge

    return TransformersJudge(spec, folder)


def _reference(spec: Any, folder: Path, cache: Path | None) -> Judge:
    from subvene.runner.judges.reference import ReferenceJudge

    return ReferenceJudge(spec, folder)


def _trained(spec: Any, folder: Path, cache: Path | None) -> Judge:
    from subvene.runner.judges.trained import TrainedJudge

    return TrainedJudge(spec, folder)


JUDGES: dict[str, Callable[[Any, Path, Path | None], Judge]] = {
    "openai": _openai,
    "reference": _reference,
    "trained": _trained,
    "transformers": _transformers,
}
"""By ``kind``: spec, the folder that its paths are relative to, and where answers are cached."""


def make_judge(spec: Any, folder: Path, *, cache: Path | None = None) -> Judge:
    """The judge that a spec declares; nothing is loaded and nothing is asked yet.

    Args:
        spec: one of `AnyJudge`.
        folder: what relative paths of the spec are relative to.
        cache: where replies that cost something are kept; left out: `judgements` in subvene's cache folder.
    """
    return JUDGES[spec.kind](spec, folder, cache)
