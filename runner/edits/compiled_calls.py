"""Whose decoding steps are compiled: a run's, while transformers' `generate` makes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from subvene.runner.edits.compiled import CompiledStep, why_uncompiled
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.own_calls import has_other_loop
from subvene.runner.edits.refusals import CompiledModelError, refuse_second_call
from subvene.runner.edits.runs import Attachment, Run
from subvene.runner.edits.scopes import innermost
from subvene.runner.models.devices import is_offloaded
from subvene.runner.models.generation import Settings, drafts

# IntervenableModel → the steps that were compiled for it, by what they were compiled for.
_STEPS: WeakKeyDictionary[Any, dict[Any, CompiledStep]] = WeakKeyDictionary()
# While one thread's hooks are traced, no other may trace its own.
_LOCK = threading.RLock()


def may_compile(intervenable: Any, settings: Settings, obstacle: str | None) -> bool:
    """Whether the decoding steps of a generation can be compiled, if transformers would.

    Args:
        intervenable: whose edits act.
        settings: of the call.
        obstacle: what else keeps it from that, in words.

    Raises:
        CompiledModelError: they cannot, and the call asks for it.
    """
    edits = {key: intervenable.interventions[key] for key in intervenable.sorted_keys}
    why = obstacle or why_uncompiled(edits, intervenable.declared.readings)
    if why is None and any(settings[name] for name in ("output_hidden_states", "output_attentions")):
        why = "output_hidden_states and output_attentions record what was there before the edits"
    if why is None and len({parameter.device for parameter in intervenable.model.parameters()}) > 1:
        why = "the model is on several devices"
    if why is None and is_offloaded(intervenable.model):
        why = "weights of the model are offloaded"
    asked = settings.given("disable_compile") is False or settings.given("compile_config") is not None
    if why is not None and asked:
        raise CompiledModelError(
            f"this generation cannot be compiled: {why}. Leave out compile_config and disable_compile=False, "
            "and it runs uncompiled"
        )
    return why is None


def obstacle_to_compiling(settings: Settings, inside: Any) -> str | None:
    """What keeps a generation from being compiled, whatever its edits; `inside` is the scope around it."""
    if inside is not None:
        return "`attached()` follows the calls of the model, which a graph would leave out"
    if (settings["num_beams"] or 1) > 1:
        return "beams trade places between steps"
    if drafts(settings) or has_other_loop(settings):
        return "its loop is not transformers' own of one token a step"
    return None


@contextmanager
def compiled_decoding(intervenable: Any, attachment: Attachment) -> Iterator[None]:
    """Inside, what transformers compiles of this run's calls is compiled with its edits."""
    model = intervenable.model
    before = model.__dict__.get("get_compiled_call")
    others = model.get_compiled_call

    def get_compiled_call(config: Any = None) -> Any:
        if innermost(model) is not attachment.scope:
            return others(config)
        config = config or getattr(model, "_default_compile_config", _default_config)()
        # Not a copy, as its `to_dict` gives: the same backend is the same graph.
        given = {name: value for name, value in vars(config).items() if name != "_compile_all_devices"}
        return lambda **inputs: _step(intervenable, attachment, given, inputs)

    model.get_compiled_call = get_compiled_call
    try:
        yield
    finally:
        if model.__dict__.get("get_compiled_call") is get_compiled_call:
            del model.get_compiled_call
            if before is not None:
                model.get_compiled_call = before


def _default_config() -> Any:
    from transformers import CompileConfig

    return CompileConfig()


def _step(intervenable: Any, attachment: Attachment, config: dict[str, Any], inputs: dict[str, Any]) -> Any:
    run, call = attachment.run, ForwardCall.of(**inputs)
    if run is None or call.inputs.shape[1] != 1 or not run.tracker.is_behind_the_input:
        return intervenable.model(**inputs)
    refuse_second_call(run)
    run.tracker.observe(call)
    intervenable.before_call(run, call)
    output = None
    try:
        step = _compiled(intervenable, run, call.inputs.shape[0], config)
        with _LOCK:
            output = step(run, attachment.handles, inputs)
    finally:
        intervenable.after_call(run, call, output)
    return output


def _compiled(intervenable: Any, run: Run, rows: int, config: dict[str, Any]) -> CompiledStep:
    """The compiled step of these edits for this many rows, made once."""
    parameter = next(intervenable.model.parameters())
    acting = [key for entry in run.entries for key in entry.keys]
    edits = {
        key: (intervenable.interventions[key], intervenable.intervention_hooks[key])
        for key in intervenable.sorted_keys
        if key in acting
    }
    made_for = (
        tuple((key, id(edit), edit.positions) for key, (edit, _) in edits.items()),
        (rows, parameter.dtype, parameter.device),
        tuple(sorted((name, repr(value)) for name, value in config.items())),
    )
    steps = _STEPS.setdefault(intervenable, {})
    if made_for not in steps:
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        steps[made_for] = CompiledStep(intervenable.model, edits, rows, dtype, config)
    return steps[made_for]
