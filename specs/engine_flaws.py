"""What an experiment that an engine runs must be like."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.specs._flaws import Flaw, Loc
from subvene.specs.experiment_fields import ExperimentFields
from subvene.specs.kinds import TraitScoresSpec
from subvene.specs.positions import TEXT_POSITIONS
from subvene.specs.sites import CORE_SITES

_DONE = (
    "samples",
    "trait_scores",
    "truthfulqa",
    "multiple_choice",
    "contrast",
    "likelihood",
    "refusals",
)
"""Evaluations that generate, score given texts, or read means over them."""
_FITTED = ("mean_difference", "pca", "logistic", "affine_map", "persona", "random_direction")
"""Recipes that are made of such means."""


def engine_flaws(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields what an engine cannot do; none of it is done by transformers instead."""
    if spec.engine is None:
        return
    yield from _unfitted(spec)
    if not spec.evaluate:
        yield Flaw(("evaluate",), f"any of {', '.join(_DONE)}, for `engine` to do", None, found="none")
    for i, one in enumerate(spec.evaluate):
        if one.kind not in _DONE or not one.compares:
            expected = f"any of {', '.join(_DONE)}, of conditions and without `coefficients`: `engine` does "
            yield Flaw(("evaluate", i), f"{expected}nothing else", None, found=one.kind)
        if isinstance(one, TraitScoresSpec) and one.sampling.settings == "model":
            expected = "temperature and top_p: `engine` asks for no settings of the checkpoint"
            yield Flaw(("evaluate", i, "sampling"), expected, None, found="`settings: model`")
    for i, condition in enumerate(spec.conditions):
        if condition.bake:
            expected = "false: a baked checkpoint is not the model that `engine` holds"
            yield Flaw(("conditions", i, "bake"), expected, condition.bake)
    for i, intervention in enumerate(spec.interventions):
        if intervention.is_gated:
            field = "when" if intervention.when is not None else "during"
            expected = f"none beside `engine`, which carries out no `{field}`; leave `engine` out"
            yield Flaw(("interventions", i, field), expected, None, found="one")
    named = any(isinstance(one.positions, TEXT_POSITIONS) for one in spec.interventions)
    if spec.sources or named:
        what = "`sources`" if spec.sources else "positions that name a text"
        expected = f"none beside {what}, which requests to an engine cannot say"
        yield Flaw(("engine",), expected, None, found=f"`{'vllm' if spec.engine.url is None else 'url'}`")


def _unfitted(spec: ExperimentFields) -> Iterator[Flaw]:
    """Yields recipes that an engine does not fit."""
    if spec.engine is not None and spec.engine.url is not None and spec.fits:
        expected = (
            "nothing beside `engine: {url: …}`, since a server holds what was saved before it started: "
        )
        instead = (
            "fit in a file without `engine`, and name the artifact's tensors by `file`, or `engine: vllm`"
        )
        yield Flaw(("fit",), f"{expected}{instead}", None, found="`fit`")
        return
    several = isinstance(spec.fit, tuple)
    for i, recipe in enumerate(spec.fits):
        loc: Loc = ("fit", i) if several else ("fit",)
        if recipe.recipe not in _FITTED:
            expected = f"any of {', '.join(_FITTED)}, which `engine` fits; of others fit in a file without it"
            yield Flaw((*loc, "recipe"), expected, recipe.recipe)
            continue
        if (site := getattr(recipe, "site", "block_output")) not in CORE_SITES:
            yield Flaw((*loc, "site"), f"any of {', '.join(CORE_SITES)}, where `engine` reads", site)
        if getattr(recipe, "tokens", None) == "max":
            yield Flaw((*loc, "tokens"), "mean or last: `engine` gives means over tokens", "max")
