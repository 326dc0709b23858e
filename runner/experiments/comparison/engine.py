"""What generates and scores a comparison where `engine:` says so, known to do all that is declared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from subvene.runner.edits.compile import place
from subvene.runner.experiments.comparison.arms import Arms, Tuning
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.identity import EngineManifest
from subvene.specs import EngineSpec, ExperimentSpec, ModelSpec
from subvene.specs.kinds import TraitScoresSpec

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


Declared = tuple[ExperimentSpec, int, Tuning]
"""What a condition declares at one of its points, for a seed, and the questions that its fits may see."""


@contextmanager
def engine_of(
    spec: ExperimentSpec, declared: Iterable[Declared], arms: Arms, folder: Path
) -> Iterator[Engine | None]:
    """The engine that `engine:` names, checked before anything is measured; None where it names none.

    What is fitted is fitted by it, before it is asked for anything else; it is let go at the end.

    Raises:
        EngineError: it does not hold the model, or cannot do what a condition declares at one of its points.
    """
    if spec.engine is None:
        yield None
        return
    with closing(_made(spec.engine, spec.model, arms, folder)) as engine:
        arms.engine = engine
        projections = [
            one.projection
            for one in spec.evaluate
            if isinstance(one, TraitScoresSpec) and one.projection is not None
        ]
        engine.check_reads([place("block_output", one.layer) for one in projections])
        for variant, seed, tuning in declared:
            engine.check(arms.compiled(variant, arms.make(variant, seed, tuning, bake=False).fitted))
            for one in projections:
                if one.vector.file is None:
                    arms.fitted_for(spec, [one.vector.key], seed, tuning)
        yield engine


def _made(spec: EngineSpec, model: ModelSpec, arms: Arms, folder: Path) -> Engine:
    plain = IntervenedModel.plain(arms.model, arms.tokenizer)
    if spec.vllm is not None:
        from subvene.runner.engines.vllm.local import Local

        return Local(spec.vllm, model, plain, folder, arms.work / "engine")
    from subvene.runner.engines.remote import Remote

    return Remote(spec, model, plain, arms.base, folder)
