"""pyvene's own way of calling an IntervenableModel, as far as subvene's interventions understand it.

Stock pyvene says at each call what is swapped in and where; subvene declares both in the spec. What a call
says instead would be dropped, so it is refused here, with what to do.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from subvene.runner.edits.forward_call import PACKED_KEYWORDS
from subvene.specs import SubveneError

_STOCK = "Stock pyvene.IntervenableModel, with pyvene's own classes, takes it"
_SOURCE = (
    "what is put in is declared in the spec (`kind: pyvene` with `source: {from: NAME}` for a run of the "
    "model, or `{file: …, key: …}` for a constant, stored tensor); inputs for the declared sources are "
    f"`sources=`. {_STOCK}"
)
_WHERE = f"the tokens that are edited are declared in the spec (`positions:`). {_STOCK}"
# Names of stock's arguments, and what stands in the spec or in Python instead.
INSTEAD = {
    "source_representations": _SOURCE,
    "activations_sources": _SOURCE,
    "unit_locations": _WHERE,
    "subspaces": f"subspaces are declared in the spec (`kind: pyvene` with `subspaces:`). {_STOCK}",
    "timestep_selector": _WHERE,
    "intervention_additional_kwargs": _WHERE,
    "output_original_output": "the untouched model is another run: call it inside `with m.disabled():`",
    "return_dict": "the answer is always the pair (None, output of the model)",
}
_POSITIONAL = ("sources", "unit_locations", "source_representations")
_OWN = (
    "strengths",
    "prompt_lengths",
    "must_act",
    "labels",
    "use_cache",
    "sources",
    "rows",
    "rendering",
    "turns",
)


class PyveneCallError(SubveneError, TypeError):
    """A call says in pyvene's words what subvene's interventions have declared, and would not be heeded."""


def own_arguments(
    method: str, model: torch.nn.Module, args: tuple[Any, ...], /, **kwargs: Any
) -> dict[str, Any]:
    """The keyword arguments of a call of `forward` or `generate` that are left for the run itself.

    What stock pyvene takes and leaves at its default (None, False, `intervene_on_prompt=True`) says nothing
    and is dropped.

    Args:
        method: `forward` or `generate`.
        model: the model that is called.
        args: positional arguments after `base`.
        **kwargs: keyword arguments.

    Raises:
        PyveneCallError: an argument that would change nothing, though it says that it does.
    """
    given = dict(zip(_POSITIONAL, args, strict=False)) | kwargs
    if len(args) > len(_POSITIONAL):
        raise PyveneCallError(f"{method} takes one positional argument, `base`, found {1 + len(args)}")
    if given.pop("intervene_on_prompt", True) is not True:
        raise PyveneCallError(
            f"{method}: intervene_on_prompt=False would leave the prompt alone, and the spec says which "
            "tokens are edited: declare `positions: response` (or another rule), and leave the argument out"
        )
    for name, instead in INSTEAD.items():
        value = given.pop(name, None)
        if value is not None and value is not False:
            raise PyveneCallError(f"{method}: {name}= does nothing to subvene's interventions: {instead}")
    if method == "forward":
        _refuse_unknown(model, given)
    return given


def refuse_unknown_inputs(model: Any, inputs: Iterable[str]) -> None:
    """Raise `PyveneCallError` for an input that no part of the model takes.

    transformers' forwards take any keyword and drop those that they do not know, a misspelt `strengths=` too.
    """
    from transformers.utils import TransformersKwargs

    known = {*_OWN, "attention_mask", "return_dict", "images_data", *TransformersKwargs.__annotations__}
    known |= {*PACKED_KEYWORDS, "cache_position"}
    for part in (model, getattr(model, "base_model", model), getattr(model, "model", model)):
        known |= set(inspect.signature(part.forward).parameters)
    for name in inputs:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise PyveneCallError(f"a call: {type(model).__name__} takes no {name!r}{hint}")


def refuse_mixture(interventions: Mapping[str, torch.nn.Module], ours: type) -> None:
    """Raise `PyveneCallError` if some interventions are subvene's and some pyvene's own.

    pyvene alone would run them all then, without positions and without receipts.
    """
    foreign = [key for key, edit in interventions.items() if not isinstance(edit, ours)]
    if foreign and len(foreign) < len(interventions):
        raise PyveneCallError(
            f"{', '.join(foreign)}: a class of pyvene's own beside subvene's interventions, which would run "
            "without positions and receipts; declare it as `kind: pyvene`, or put it into a stock "
            "pyvene.IntervenableModel of its own"
        )


def _refuse_unknown(model: torch.nn.Module, given: Iterable[str]) -> None:
    """A model's forward drops keywords that it does not know, so a misspelt one would be lost there."""
    known = {*_OWN, *inspect.signature(model.forward).parameters}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known | set(INSTEAD)), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise PyveneCallError(
                f"forward: no argument {name!r}{hint} What the model itself takes belongs into `base`"
            )
