"""The server that generates a comparison's responses, known to hold all that is declared."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from subvene.runner.experiments.comparison.arms import Arms
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.identity import EngineManifest
from subvene.specs import ConditionSpec, EngineSpec, ExperimentSpec, points, variant

if TYPE_CHECKING:
    from subvene.runner.engines.remote import Remote


def engine_manifest(spec: EngineSpec) -> EngineManifest:
    """What the manifest says of the server; asked for before a model is loaded.

    Raises:
        EngineError: it does not answer, or does not say what it holds.
    """
    from subvene.runner.engines.holdings import holdings

    return holdings(spec).manifest(spec.url)


def engine_of(
    spec: ExperimentSpec, conditions: Iterable[ConditionSpec], arms: Arms, folder: Path
) -> Remote | None:
    """The server that `engine:` names, checked before anything is measured; None where it names none.

    Raises:
        EngineError: it does not hold the model, or what a condition declares at one of its points.
    """
    if spec.engine is None:
        return None
    from subvene.runner.engines.remote import Remote

    engine = Remote(spec.engine, IntervenedModel.plain(arms.model, arms.tokenizer), arms.base, folder)
    for condition in conditions:
        for point in points(condition):
            # Strengths that are still to be chosen do not matter: requests say them.
            if (declared := variant(spec, condition, point, {})) is not None:
                engine.check(arms.compiled(declared, None))
    return engine
