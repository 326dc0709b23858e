"""Which judges score traits: spec in, judge out. A new one is a file and a line here.

`make_trait_judge` is to traits what `make_judge` is to truth and information.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.judges.base import JudgeError
from subvene.runner.judges.traits import TraitJudge


def _openai(spec: Any, folder: Path, cache: Path | None, model: IntervenedModel | None) -> TraitJudge:
    from subvene.runner.judges.traits_openai import OpenAITraitJudge

    return OpenAITraitJudge(spec, cache=cache)


def _transformers(spec: Any, folder: Path, cache: Path | None, model: IntervenedModel | None) -> TraitJudge:
    from subvene.runner.judges.traits_transformers import TransformersTraitJudge

    return TransformersTraitJudge(spec, folder)


def _trained(spec: Any, folder: Path, cache: Path | None, model: IntervenedModel | None) -> TraitJudge:
    from subvene.runner.judges.traits_trained import TrainedTraitJudge

    return TrainedTraitJudge(spec, model)


TRAIT_JUDGES: dict[str, Callable[[Any, Path, Path | None, Any], TraitJudge]] = {
    "openai": _openai,
    "trained": _trained,
    "transformers": _transformers,
}


def make_trait_judge(
    spec: Any, folder: Path, *, model: IntervenedModel | None = None, cache: Path | None = None
) -> TraitJudge:
    """The judge of traits that a spec declares; nothing is loaded and nothing is asked yet.

    Args:
        spec: one of `AnyJudge`.
        folder: what relative paths of the spec are relative to.
        model: the model whose responses are judged, for a judge that asks it, unedited, how likely a text is
            (`trained`, for coherence); may be left out until then.
        cache: where replies that cost something are kept; left out: `judgements` in subvene's cache folder.

    Raises:
        JudgeError: judges of this kind cannot score traits.
    """
    if spec.kind not in TRAIT_JUDGES:
        raise JudgeError(
            f"a judge of kind {spec.kind} compares answers with true and false ones, and a trait has none; "
            f"use one of {', '.join(TRAIT_JUDGES)}"
        )
    return TRAIT_JUDGES[spec.kind](spec, folder, cache, model)
