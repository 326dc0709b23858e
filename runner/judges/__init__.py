"""Who says what an answer is worth: spec in, judge out. A new back end is a file and a line here.

A back end's module is imported when a judge of its kind is made: each brings libraries that the others do
without.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from subvene.runner.judges.base import (
    Answer,
    Aspect,
    Description,
    Identity,
    Judge,
    JudgeError,
    Quality,
    Scale,
)
from subvene.runner.judges.scales.yes_no import ASPECTS, BOTH, INFO, TRUTH, Judgement
from subvene.runner.judges.scales.yes_no import SCALE as YES_NO
from subvene.runner.judges.scales.zero_to_hundred import COHERENCE, Score, scored, shows
from subvene.runner.judges.scales.zero_to_hundred import SCALE as ZERO_TO_HUNDRED

__all__ = [
    "ASPECTS",
    "BACKENDS",
    "BOTH",
    "COHERENCE",
    "INFO",
    "TRUTH",
    "YES_NO",
    "ZERO_TO_HUNDRED",
    "Answer",
    "Aspect",
    "Description",
    "Identity",
    "Judge",
    "JudgeError",
    "Judgement",
    "Quality",
    "Scale",
    "Score",
    "make_judge",
    "scored",
    "shows",
]

BACKENDS: dict[str, str] = {
    "openai": "subvene.runner.judges.backends.endpoint:EndpointJudge",
    "reference": "subvene.runner.judges.backends.reference:ReferenceJudge",
    "trained": "subvene.runner.judges.backends.trained:TrainedJudge",
    "transformers": "subvene.runner.judges.backends.local:LocalJudge",
}
"""By ``kind``: the module and the class, which takes a spec, the folder that its paths are relative to, and
``cache``."""


def make_judge(spec: Any, folder: Path, *, scale: Scale[Any] = YES_NO, cache: Path | None = None) -> Judge:
    """The judge that a spec declares; nothing is loaded and nothing is asked yet.

    Args:
        spec: one of `AnyJudge`.
        folder: what relative paths of the spec are relative to.
        scale: on which it is to judge.
        cache: where replies that cost something are kept; left out: `judgements` in subvene's cache folder.

    Raises:
        JudgeError: judges of this kind do not judge on this scale.
    """
    backend: Callable[..., Judge] = resolve_name(BACKENDS[spec.kind])
    judge = backend(spec, folder, cache=cache)
    if not scale.asks(judge):
        able = ", ".join(kind for kind, place in BACKENDS.items() if scale.asks(resolve_name(place)))
        raise JudgeError(f"a judge of kind {spec.kind} {scale.lacking}; use one of {able}")
    return judge
