"""Runs that are refused before they start, because they would be steered wrongly or not at all."""

from __future__ import annotations

from typing import Any

import torch

from subvene.interventions.positions import names_text, needs_length, needs_prompt_length
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.positions import PositionError, TokenTracker
from subvene.runner.edits.scopes import ConcurrentRunError
from subvene.runner.models.anatomy import component_module
from subvene.runner.models.generation import Settings
from subvene.specs import Positions, SubveneError


class CompiledModelError(SubveneError):
    """The model was compiled before the edit was attached, so the edit would do nothing."""


class RecomputationError(SubveneError):
    """Activations would be recomputed for the backward pass when the edits are no longer attached."""


def refuse_compiled(model: torch.nn.Module) -> None:
    """Raise `CompiledModelError` if the model, or a part of it, went through `torch.compile`."""

    # By name: importing torch._dynamo to ask takes seconds, and nothing is compiled where it is not loaded.
    def is_compiled(module: torch.nn.Module) -> bool:
        if module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule":
            return True
        # `model.forward = torch.compile(model.forward)`, perhaps with accelerate's wrapper around it.
        own = (module.__dict__.get(name) for name in ("forward", "_old_forward"))
        return any(hasattr(forward, "_torchdynamo_orig_callable") for forward in own)

    if any(is_compiled(module) for module in model.modules()):
        raise CompiledModelError(
            "the model (or a part of it) went through torch.compile, which ignores hooks attached "
            "afterwards: the edit would do nothing. Pass the uncompiled model (`compiled._orig_mod`), or "
            "load it anew"
        )


def refuse_recomputation(model: Any) -> None:
    """Raise `RecomputationError` if this forward call would be recomputed without its edits."""
    if not torch.is_grad_enabled():
        return
    # A checkpointed layer looks at its own mode, whatever the mode of the model around it.
    if any(
        module.training and getattr(module, "gradient_checkpointing", False) for module in model.modules()
    ):
        raise RecomputationError(
            "gradient checkpointing runs the blocks again in the backward pass, when the edits of this call "
            "are gone, and the gradients would be wrong. Turn it off for the model, "
            "or hold `intervenable.attached(tracker)` around both the forward and the backward pass"
        )


def refuse_undecidable(key: str, rule: Positions, tracker: TokenTracker) -> None:
    """Raise `PositionError` if a position rule cannot be decided in this run; `key` says whose it is."""
    if needs_prompt_length(rule) and tracker.prompt_lengths is None:
        raise PositionError(
            f"{key}: positions {rule!r} cannot be decided without knowing where the prompts end; pass "
            "prompt_lengths=[tokens of each row's prompt]"
        )
    if names_text(rule) and rule not in tracker.tables:
        raise PositionError(
            f"{key}: positions {rule!r} name a text, and this run was not given the rows' texts; they work "
            "in m.generate, m.generate_ids and m(…) with whole sequences"
        )
    if needs_length(rule) and tracker.generating:
        raise PositionError(
            f"{key}: positions {rule!r} count from the end of the response, which generation does not know; "
            "they work in a teacher-forced pass only"
        )


def refuse_generation(settings: Settings) -> None:
    """Refuse what `generate` would do beside or instead of the hooked forward calls."""
    refuse_no_generation(settings.model)
    if (settings["guidance_scale"] or 1) != 1:
        raise PositionError(
            "guidance_scale runs a second, unconditional sequence beside the first, whose positions cannot "
            "be told apart from it; generate without it"
        )
    guided = "UnbatchedClassifierFreeGuidanceLogitsProcessor"
    if any(type(processor).__name__ == guided for processor in settings.given("logits_processor") or []):
        raise PositionError(f"{guided} calls the model on a second sequence; generate without it")


class NoGenerationError(SubveneError):
    """The model generates nothing."""


def refuse_no_generation(model: Any) -> None:
    """Raise `NoGenerationError` for a model that has no `generate`, as classifiers have none."""
    if not hasattr(model, "generate"):
        raise NoGenerationError(
            f"{type(model).__name__} generates no text; m(input_ids, attention_mask, prompt_lengths=…) gives "
            "its own output, edited"
        )


def is_in_backward() -> bool:
    """Whether autograd is going backward here: it recomputes checkpointed blocks, which are no new call."""
    return torch._C._current_graph_task_id() != -1


def refuse_second_call(run: Any) -> None:
    """Raise `ConcurrentRunError` if a call of this run is under way in another thread."""
    if run is not None and run.is_in_call:
        raise ConcurrentRunError(
            "a forward call of this run is under way: two at once (from threads that share its context) "
            "cannot be told apart. Make the calls one after the other, or give each thread a run of its own"
        )


def refuse_other_width(mask: torch.Tensor, inputs: torch.Tensor, settings: Settings) -> None:
    """Raise `PositionError` if a `generate` call has another number of mask columns than tokens."""
    if mask.ndim == 2 and mask.shape[1] != inputs.shape[1] and settings.given("past_key_values") is None:
        raise PositionError(
            f"attention_mask has {mask.shape[1]} columns, for {inputs.shape[1]} tokens; expected one for each"
        )


class ChangedModelError(SubveneError):
    """The model is no longer the one that the interventions were compiled onto."""


def refuse_changed_places(intervenable: Any) -> None:
    """Raise `ChangedModelError` if a module path of an edit now leads to another module.

    A LoRA around the output projection reads its input past an edit there; after a block was put in, paths
    and receipts name other blocks than those that the hooks are on.
    """
    for key in intervenable.sorted_keys:
        component = str(intervenable.representations[key].component)
        if not component.endswith((".input", ".output")):
            continue  # a name of pyvene's own, in a model that pyvene itself loaded
        compiled = intervenable.intervention_hooks[key].__self__
        try:
            now = component_module(intervenable.model, component)[0]
        except (AttributeError, IndexError):
            now = None
        if now is not compiled:
            found = "no module" if now is None else f"a {type(now).__name__}"
            raise ChangedModelError(
                f"{component}: the interventions were compiled onto a {type(compiled).__name__}, and there "
                f"is {found} now: the model has changed since (an adapter, a block put in or taken out). "
                "Compile again: IntervenedModel.from_spec(m.spec, model=m.model, tokenizer=m.tokenizer, "
                "tensors=m.tensors)"
            )


def refuse_unmasked_padding(inputs: torch.Tensor, pad_id: Any) -> None:
    """Raise `PositionError` if padding ids stand in a batch that has no mask to tell padding from text."""
    if pad_id is None or inputs.ndim != 2 or inputs.shape[0] == 1:
        return
    pads = torch.isin(inputs, torch.as_tensor(pad_id, device=inputs.device))
    if pads.any():
        rows = pads.any(1).nonzero().flatten().tolist()
        raise PositionError(
            f"rows {rows} hold the padding id {pad_id}, and without attention_mask it cannot be told whether "
            "that is padding or text; pass attention_mask [batch, tokens], 1 on real tokens"
        )


def refuse_foreign_call(tracker: TokenTracker, call: ForwardCall) -> None:
    """Refuse a call of an attached model by a thread or task that has no run of its own.

    Whether it belongs to the attached run (continuous batching calls the model in a thread of its own) or is
    somebody else's cannot be told, so both are made to know.
    """
    try:
        tracker.refuse_packed(call, 0)
        raise ConcurrentRunError(
            "this model is attached to an IntervenedModel in another thread or task, and a call from here "
            "can neither be edited nor be sure to be meant unedited. Call `m(…)` or `m.generate(…)` here, or "
            "call the model inside `with m.disabled()`"
        )
    except (PositionError, ConcurrentRunError) as error:
        tracker.error = error
        raise
