"""Compiled calls, edited as declared: what is traced of edits, and the decoding steps of `generate`.

A compiled graph keeps what the hooks did when it was traced. The hooks that are traced here therefore read
from buffers of fixed size all that differs from step to step, run to run and strength to strength. These are
filled before each step, and others hold the norms for the receipt after it. Prompts run uncompiled, with the
hooks of every other run.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from subvene.interventions import ActivationIntervention, Tokens
from subvene.interventions.base import per_row
from subvene.interventions.positions import is_within_prompt
from subvene.runner.edits.runs import Run

_NUMBERS = itertools.count()


def why_uncompiled(
    edits: Mapping[str, ActivationIntervention], readings: Mapping[str, Any], *, decoding: bool = True
) -> str | None:
    """What keeps a call with these edits from being compiled, in words; None: nothing does.

    `decoding` says that no call holds tokens of a prompt.
    """
    for key, edit in edits.items():
        if decoding and is_within_prompt(edit.positions):
            continue  # it does nothing
        if key in readings:
            return f"{key} reads from a source"
        if edit.gating is not None:
            return f"{key} has a gate, which reads what is compiled away"
        if edit.kind == "pyvene" or edit.collects or edit.needs_module_input:
            return f"{key} ({edit.kind}) is a class of pyvene's own, which may look at what is compiled away"
        if edit.needs_tokens:
            return f"{key} ({edit.kind}) depends on where tokens stand, which a graph does not know"
        if edit.site_columns is not None:
            return f"{key} edits some of its module's columns alone"
        has_factors = type(edit).strength_factors is not ActivationIntervention.strength_factors
        if has_factors and edit.constant_delta() is None:
            return f"{key} ({edit.kind}) adapts its strength, and its receipt would not say how"
    return None


class Site:
    """One edit in the graph.

    Attributes:
        edit: the intervention.
        delta: its Δ where that is constant, [width]; None: the kind computes it.
        scale: the strength of each token of the call, 0 where it is not selected, [rows, tokens, 1].
        norms: ‖h‖ and ‖Δ‖ of the call, [2, rows, tokens].
    """

    def __init__(self, edit: ActivationIntervention, scale: torch.Tensor) -> None:
        delta = edit.constant_delta()
        self.edit = edit
        self.delta = None if delta is None else delta.detach().to(scale.device).clone()
        self.scale = scale
        self.norms = scale.new_zeros(2, *scale.shape[:2])

    def refresh(self) -> None:
        """Take over what has changed since the graph was made."""
        delta = self.edit.constant_delta()
        if self.delta is not None and delta is not None:
            self.delta.copy_(delta)

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        """The activation [rows, tokens, width], edited; its norms are kept."""
        base = h.view(*self.scale.shape[:2], -1)
        wide = self.scale.dtype
        if self.delta is None:
            edited = self.edit.edit(base.to(wide), self.scale).to(base.dtype)
        else:
            edited = torch.addcmul(base.to(wide), self.scale, self.delta).to(base.dtype)
        edited = torch.where(self.scale != 0, edited, base)
        self.keep(
            torch.linalg.vector_norm(base, dim=-1, dtype=wide),
            torch.linalg.vector_norm(edited.to(wide) - base.to(wide), dim=-1),
        )
        return edited.view_as(h)

    def keep(self, size: torch.Tensor, change: torch.Tensor) -> None:
        """Put ‖h‖ and ‖Δ‖, both [rows, tokens], into the buffer of the step."""
        self.norms[0].copy_(size)
        self.norms[1].copy_(change)


def _pre_hook(site: Site) -> Any:
    def before(_module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return None
        if args:
            return (site(args[0]), *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, {**kwargs, name: site(kwargs[name])}

    return before


def _hook(site: Site) -> Any:
    def after(_module: torch.nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        if not torch.compiler.is_compiling():
            return None
        if isinstance(output, torch.Tensor):
            return site(output)
        return type(output)((site(output[0]), *output[1:]))

    return after


@dataclass(frozen=True)
class _Place:
    """A hook that is traced, and the dictionaries of its module where it stands during a call."""

    hooks: Any
    with_kwargs: Any
    number: int
    hook: Any


class TracedEdits:
    """Edits as they stand in a graph, and what is compiled with them.

    Args:
        sites: key → the edit, in the order in which they act.
        registers: key → the method of its module that registers its hook.
        call: what is compiled.
    """

    def __init__(self, sites: Mapping[str, Site], registers: Mapping[str, Any], call: Any) -> None:
        self.sites = dict(sites)
        self._places = [_place(registers[key], site) for key, site in self.sites.items()]
        # A code object of its own: compiled code is kept by it, and a graph without these hooks would fit.
        code = call.__code__.replace(co_name=f"{call.__name__}_{next(_NUMBERS)}")
        self.call = types.FunctionType(code, call.__globals__)

    @contextmanager
    def traced(self, others: Sequence[Any]) -> Iterator[None]:
        """Inside, the hooks that are traced stand on the modules, and ours that are not traced do not.

        `others` are the handles of those.
        """
        taken = [_taken(handle) for handle in others]
        for place in self._places:
            place.hooks[place.number] = place.hook
            place.with_kwargs[place.number] = True
        try:
            yield
        finally:
            for place in self._places:
                place.hooks.pop(place.number, None)
                place.with_kwargs.pop(place.number, None)
            for put_back in taken:
                put_back()

    def record(self, run: Run, tokens: Tokens) -> None:
        """Give the norms of a call to the receipt."""
        if self.sites:
            norms = torch.stack([site.norms for site in self.sites.values()])
            run.recorder.record_step({k: s.edit.positions for k, s in self.sites.items()}, norms, tokens)


def _decoding_step(model: torch.nn.Module, inputs: Mapping[str, Any]) -> Any:
    return model(**inputs)


class CompiledStep:
    """The decoding step of a model under some edits, for one number of rows.

    Args:
        model: the model.
        edits: key → (edit, the method that registers its hook), in the order in which they act.
        rows: of the batch.
        dtype: in which edits are computed.
        config: what `torch.compile` is given.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        edits: Mapping[str, tuple[ActivationIntervention, Any]],
        rows: int,
        dtype: torch.dtype,
        config: Mapping[str, Any],
    ) -> None:
        self.model, self.rows = model, rows
        device = next(model.parameters()).device
        sites = {
            key: Site(edit, torch.zeros(rows, 1, 1, dtype=dtype, device=device))
            for key, (edit, _) in edits.items()
            if not is_within_prompt(edit.positions)
        }
        for site in sites.values():
            # Or CUDA graphs would copy them, or be left out.
            for buffer in (site.scale, site.norms):
                torch._dynamo.mark_static_address(buffer)
        self._edits = TracedEdits(sites, {key: edits[key][1] for key in sites}, _decoding_step)
        self._graph = torch.compile(self._edits.call, **config)
        self._run: Run | None = None
        self._constant: set[str] = set()

    def __call__(self, run: Run, others: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
        """The output of a step, whose tokens have been placed.

        `others` are the handles of the run's hooks, which are not traced.
        """
        tokens = run.tracker.current
        if tokens is None:
            raise ValueError("a step whose tokens have not been placed")
        self._fill(run, tokens)
        with self._edits.traced(others):
            output = self._graph(self.model, inputs)
        self._edits.record(run, tokens)
        return output

    def _fill(self, run: Run, tokens: Tokens) -> None:
        if self._run is not run:
            self._run = run
            self._constant.clear()
            for site in self._edits.sites.values():
                site.refresh()
        for key, site in self._edits.sites.items():
            selects_all = tokens.selects_all(site.edit.positions)
            if selects_all and key in self._constant:
                continue
            scale = per_row(run.strengths[key], site.scale).to(site.scale.dtype)
            if selects_all:
                self._constant.add(key)
            else:
                self._constant.discard(key)
                scale = scale * tokens.mask(site.edit.positions, site.scale.device).unsqueeze(-1)
            site.scale.copy_(scale.expand_as(site.scale))


def _place(register: Any, site: Site) -> _Place:
    module = register.__self__
    is_pre_hook = register.__name__ == "register_forward_pre_hook"
    hook = _pre_hook(site) if is_pre_hook else _hook(site)
    # The number stays the same for all calls: what was traced is found by it again.
    handle = register(hook, with_kwargs=True)
    handle.remove()
    if is_pre_hook:
        return _Place(module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs, handle.id, hook)
    return _Place(module._forward_hooks, module._forward_hooks_with_kwargs, handle.id, hook)


def _taken(handle: Any) -> Callable[[], None]:
    """Take a hook away; gives what puts it back, as it was."""
    kept = []
    for reference in (handle.hooks_dict_ref, *handle.extra_dict_ref):
        if (hooks := reference()) is not None and handle.id in hooks:
            later = [number for number in hooks if number > handle.id]
            kept.append((hooks, hooks.pop(handle.id), later))

    def put_back() -> None:
        for hooks, hook, later in kept:
            hooks[handle.id] = hook
            for number in later:  # somebody else's, which came after it
                if number in hooks:
                    hooks[number] = hooks.pop(number)

    return put_back
