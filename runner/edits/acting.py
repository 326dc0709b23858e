"""A run at work: the hook that an intervention has at its module, and those that follow the model's calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from subvene.interventions.positions import is_within_prompt
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.hooks import as_batch, is_half_registered, take_input, take_output
from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.refusals import is_in_backward, refuse_foreign_call, refuse_second_call
from subvene.runner.edits.runs import Attachment, Run
from subvene.runner.edits.scopes import innermost

_PRE_HOOK = "register_forward_pre_hook"


def attach_edit(
    attachment: Attachment,
    key: str,
    edit: Any,
    component: str,
    register: Any,
    acts_here: Callable[[], bool],
) -> Any:
    """Attach an edit, to act in `attachment.run`.

    Args:
        attachment: whose run it is.
        key: pyvene's, of the edit.
        edit: the intervention.
        component: the module's input or output that it edits, as pyvene names it.
        register: the method of the module that registers a hook before or after its forward.
        acts_here: whether calls of this thread or task belong to the attachment.

    Returns:
        The hook's handle. The hook raises PositionError where it cannot be told which tokens it sees.
    """
    rule, place = edit.positions, register.__self__
    skips_response = is_within_prompt(rule)
    is_pre_hook = register.__name__ == _PRE_HOOK
    collects = edit.collects
    wants_input = edit.needs_module_input

    def hook(module: torch.nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> Any:
        run = attachment.run
        if is_half_registered(kwargs) or module is not place or not acts_here():
            return None
        tokens = None if run is None else run.tracker.current
        if run is None or tokens is None or not (run.is_in_call or is_in_backward()):
            raise PositionError(
                f"{key} ran before the model's own forward did; call the model, not a part of it"
            )
        if key in run.fired and run.is_in_call:
            raise PositionError(
                f"{key} ran twice in one forward call: the model holds this module in two places, and "
                "the edit would act in both. Give each place a module of its own"
            )
        run.fired.add(key)
        run.recorder.reached.add(key)
        if skips_response and tokens.after_prompt:
            return None
        found, put_back = take_input(args, kwargs) if is_pre_hook else take_output(output)
        h = as_batch(found, tokens, key)
        if edit.strength.device != h.device:
            edit.to(h.device)
        context: dict[str, Any] = {}
        if (openings := run.gate(key)) is not None:
            openings.see(component, h, tokens)
            context["gate"] = openings.at(tokens, h.device)
        if wants_input:
            context["module_input"] = as_batch(take_input(args, kwargs)[0], tokens, key)
        if (feed := run.fed.feeds.get(key)) is not None:
            context["positions"], context["source"] = feed.at(tokens, h)
        edited = edit(h, tokens=tokens, strength=run.strengths[key], **context)
        selecting = run.rule(key, rule)
        before, after = edit.of_site(h), edit.of_site(edited)
        factors = edit.strength_factors(before)
        if openings is not None and openings.gating.is_graded:
            factors = graded(factors, context["gate"])
        run.recorder.record(key, selecting, before, after, tokens, factors)
        if feed is not None:
            run.recorder.record_source(key, edit.part(h), context["source"], tokens.start)
        if collects:
            run.recorder.collect(key, edit.collected(h), tokens.mask(selecting).to(h.device))
            return None
        return put_back(edited.view_as(found))

    return register(hook, with_kwargs=True)


def observe_calls(intervenable: Any, attachment: Attachment, run: Run) -> None:
    """Follow the calls of the whole model while `attachment` stands."""
    scope = attachment.scope

    def before(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        here = innermost(intervenable.model)
        if is_half_registered(kwargs) or model is not intervenable.model:
            return  # a copy of the model may have our hooks on it
        if here is scope:
            refuse_second_call(run)
            call = ForwardCall.made(model, args, **kwargs)
            run.tracker.observe(call)
            intervenable.before_call(run, call)
        elif here is None and scope.is_driven:
            refuse_foreign_call(run.tracker, ForwardCall.of(**kwargs))

    def after(model: torch.nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        if is_half_registered(kwargs):
            return
        if model is intervenable.model and innermost(intervenable.model) is scope:
            intervenable.after_call(run, ForwardCall.made(model, args, **kwargs), output)

    attachment.handles.append(intervenable.model.register_forward_pre_hook(before, with_kwargs=True))
    handle = intervenable.model.register_forward_hook(after, with_kwargs=True, always_call=True)
    attachment.handles.append(handle)


def graded(
    factors: tuple[torch.Tensor, torch.Tensor] | None, gate: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the strength is multiplied by under a gate that opens by degrees, as `strength_factors` has it."""
    if factors is None:
        return gate, torch.ones((), device=gate.device)
    return factors[0] * gate.to(factors[0]), factors[1]
