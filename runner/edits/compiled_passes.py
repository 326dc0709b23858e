"""Calls of an attached model that come through `torch.compile(model)`, compiled with their edits.

Attached, what was compiled runs uncompiled (`eager`), since compiled code looks for no hooks. A call of
`torch.compile(model)` is seen at the model's own forward, and what the caller compiles with is then used on a
function that holds the edits. Lengths, strengths and positions are tensors that it reads, and no constants.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch

from subvene.interventions import ActivationIntervention
from subvene.interventions.base import per_row
from subvene.runner.edits.compiled import Site, TracedEdits, why_uncompiled
from subvene.runner.edits.eager import compiling
from subvene.runner.edits.runs import Attachment
from subvene.runner.edits.scopes import innermost
from subvene.runner.models.devices import is_offloaded

# From the model's forward to the wrapper's call there are nn.Module's own frames and the compiler's.
_FRAMES = 16
# IntervenableModel → what was compiled of it, by the edits that stand in it.
_PASSES: WeakKeyDictionary[Any, dict[Any, CompiledPass]] = WeakKeyDictionary()
# While one thread's hooks are traced, no other may trace its own.
_LOCK = threading.RLock()
# Models whose forward is looked at, and how many attachments of theirs there are.
_WATCHED: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_WATCHING = threading.Lock()


class _PassSite(Site):
    """One edit in the graph of whole calls, whose rows and lengths are those of each call."""

    def keep(self, size: torch.Tensor, change: torch.Tensor) -> None:
        """Leave ‖h‖ and ‖Δ‖, both [rows, tokens], as this call's."""
        self.norms = torch.stack([size.detach(), change.detach()])


def _compiled_pass(model: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
    return type(model).forward(model, *args, **kwargs)


class CompiledPass:
    """Forward calls of a model under some edits.

    Args:
        edits: key → (edit, the method that registers its hook), in the order in which they act.
        dtype: in which edits are computed.
        device: the model's.
    """

    def __init__(
        self,
        edits: Mapping[str, tuple[ActivationIntervention, Any]],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        sites = {key: _PassSite(edit, _nowhere(dtype, device)) for key, (edit, _) in edits.items()}
        self._edits = TracedEdits(sites, {key: edits[key][1] for key in sites}, _compiled_pass)
        self._graphs: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    def __call__(self, compiler: Any, model: Any, attachment: Attachment, args: Any, kwargs: Any) -> Any:
        """The output of a call, whose tokens have been placed, through the caller's `compiler`."""
        run, tokens = attachment.run, None if attachment.run is None else attachment.run.tracker.current
        if run is None or tokens is None:
            raise ValueError("a call whose tokens have not been placed")
        for key, site in self._edits.sites.items():
            site.refresh()
            mask = tokens.mask(site.edit.positions, site.scale.device)
            scale = per_row(run.strengths[key], mask.unsqueeze(-1)).to(site.scale.dtype)
            site.scale = scale * mask.unsqueeze(-1)
        if compiler not in self._graphs:
            self._graphs[compiler] = compiler(self._edits.call)
        with self._edits.traced(attachment.handles), compiling():
            output = self._graphs[compiler](model, args, kwargs)
        self._edits.record(run, tokens)
        return output


def _nowhere(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.zeros(1, 1, 1, dtype=dtype, device=device)


@contextlib.contextmanager
def compiled_passes(model: Any) -> Iterator[None]:
    """Inside, calls of `model` through `torch.compile` go to their scope, if it compiles."""
    with _WATCHING:
        if "forward" in vars(model) and model not in _WATCHED:
            watches = False  # somebody's own: what it does around the model's is not known
        else:
            watches = True
            _WATCHED[model] = _WATCHED.get(model, 0) + 1
            if _WATCHED[model] == 1:
                model.forward = _watched_forward(model)
    try:
        yield
    finally:
        if watches:
            with _WATCHING:
                _WATCHED[model] -= 1
                if not _WATCHED[model]:
                    del _WATCHED[model], model.forward


def _watched_forward(model: Any) -> Any:
    own = type(model).forward

    @wraps(own)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        scope = innermost(self)
        compiles = None if scope is None else scope.compiles
        through = None if compiles is None else _compiler(self)
        if compiles is None or through is None:
            return own(self, *args, **kwargs)
        return compiles(through, args, kwargs)

    # A method, so that a copy of the model has its own.
    return types.MethodType(forward, model)


def _compiler(model: Any) -> Any:
    """What the call of `model` that is under way is compiled with; None: it is none of `torch.compile`'s."""
    eval_frame: Any = sys.modules.get("torch._dynamo.eval_frame")
    frame = sys._getframe(2)
    for _ in range(_FRAMES if eval_frame is not None else 0):
        wrapper = frame.f_locals.get("self")
        if isinstance(wrapper, eval_frame.OptimizedModule) and wrapper._orig_mod is model:
            found = wrapper.dynamo_ctx
            return found if isinstance(found, eval_frame.OptimizeContext) else None
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def compiles(intervenable: Any, attachment: Attachment) -> Any:
    """What makes an attachment's calls of `torch.compile(model)`; None: its edits cannot be compiled."""
    model = intervenable.model
    acting = {key for entry in intervenable.acting(None) for key in entry.keys}
    edits = {
        key: (intervenable.interventions[key], intervenable.intervention_hooks[key])
        for key in intervenable.sorted_keys
        if key in acting
    }
    alone = {key: edit for key, (edit, _) in edits.items()}
    if why_uncompiled(alone, intervenable.declared.readings, decoding=False) is not None:
        return None
    if len({parameter.device for parameter in model.parameters()}) > 1 or is_offloaded(model):
        return None
    parameter = next(model.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    key = (tuple((key, id(edit), edit.positions) for key, edit in alone.items()), dtype, parameter.device)

    def call(compiler: Any, args: Any, kwargs: Any) -> Any:
        trains = torch.is_grad_enabled() and any(
            parameter.requires_grad for edit in alone.values() for parameter in edit.parameters()
        )
        if trains:  # what is constant in a graph has no gradient
            return type(model).forward(model, *args, **kwargs)
        passes = _PASSES.setdefault(intervenable, {})
        with _LOCK:
            if key not in passes:
                passes[key] = CompiledPass(edits, dtype, parameter.device)
            return passes[key](compiler, model, attachment, args, kwargs)

    return call
