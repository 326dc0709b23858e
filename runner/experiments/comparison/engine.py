"""What generates and scores a comparison where `engine:` says so, known to do all that is declared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from subvene.runner.experiments.comparison.arms import Arms
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.identity import EngineManifest
from subvene.specs import ConditionSpec, EngineSpec, ExperimentSpec, ModelSpec, points, variant

if TYPE_CHECKING:
    from subvene.runner.engines.engine import Engine


def engine_manifest(spec: EngineSpec) -> EngineManifest:
    """What the manifest says of the engine; asked for before a model is loaded.

    Raises:
        EngineError: it is not there, or does not say what it holds.
    """
    if spec.vllm is not None:
        from subvene.runner.engines.vllm.local import vllm_manifest

        return vllm_manifest(spec.vllm.model_dump(exclude_none=True))
    from subvene.runner.engines.holdings import holdings

    return holdings(spec).manifest(spec.words)


@contextmanager
def engine_of(
    spec: ExperimentSpec, conditions: Iterable[ConditionSpec], arms: Arms, folder: Path
) -> Iterator[Engine | None]:
    """The engine that `engine:` names, checked before anything is measured; None where it names none.

    It is let go at the end of the block.

    Raises:
        EngineError: it does not hold the model, or cannot do what a condition declares at one of its points.
    """
    if spec.engine is None:
        yield None
        return
    engine = _made(spec.engine, spec.model, arms, folder)
    for condition in conditions:
        for point in points(condition):
            # Strengths that are still to be chosen do not matter: requests say them.
            if (declared := variant(spec, condition, point, {})) is not None:
                engine.check(arms.compiled(declared, None))
    with closing(engine):
        yield engine


def _made(spec: EngineSpec, model: ModelSpec, arms: Arms, folder: Path) -> Engine:
    plain = IntervenedModel.plain(arms.model, arms.tokenizer)
    if spec.vllm is not None:
        from subvene.runner.engines.vllm.local import Local

        return Local(spec.vllm, model, plain, folder, arms.work / "engine")
    from subvene.runner.engines.remote import Remote

    return Remote(spec, model, plain, arms.base, folder)
