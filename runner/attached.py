"""A model that somebody else calls, edited: a pipeline, an evaluation harness, a training loop.

Where the tokens of a call stand is told from the call. `model.generate` is taken over, so that it knows where
its prompts end; any other forward call is a sequence of its own, or continues one whose cache it brings.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from subvene.interventions.positions import needs_length
from subvene.runner.intervenable import IntervenableModel
from subvene.runner.positions import (
    PositionError,
    TokenTracker,
    by_name,
    cache_of,
    cached_length,
    check_prompt_lengths,
    inputs_of,
    mask_of,
)
from subvene.runner.receipt import NotSteeredError, Receipt, check_together, merged
from subvene.runner.refusals import refuse_foreign_call, refuse_recomputation
from subvene.runner.runs import Attachment, Run
from subvene.runner.scopes import ConcurrentRunError, Scope, entered, innermost, refuse_nested
from subvene.specs import SubveneError

# [rows], or a function of (input_ids, attention_mask) that gives them.
PromptLengths = Sequence[int] | torch.Tensor | Callable[[torch.Tensor, torch.Tensor | None], Any]

_LOCK = threading.Lock()
# Base model → how many attachments have taken its `generate` over.
_TAKEN_OVER: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def attached(
    intervenable: IntervenableModel,
    prompt_lengths: PromptLengths | None = None,
    strengths: Mapping[str, Any] | None = None,
) -> Iterator[torch.nn.Module]:
    """Edit every call of the model by this thread or task; see `IntervenedModel.attached`."""
    base = intervenable.model
    refuse_nested(base, intervenable, is_driven=True)
    intervenable.leave()
    calls = _Calls(intervenable, prompt_lengths, strengths)
    try:
        with entered(calls.attachment.scope), _generate_taken_over(base):
            calls.attach()
            yield base
        calls.close()
    finally:
        calls.attachment.remove()
        calls.remember()


class _Calls:
    """The calls of one attachment: the runs that are open, and the receipts of those that have ended."""

    def __init__(
        self,
        intervenable: IntervenableModel,
        prompt_lengths: PromptLengths | None,
        strengths: Mapping[str, Any] | None,
    ) -> None:
        self.intervenable = intervenable
        self.attachment = Attachment(Scope(intervenable.model, self, is_run=True, is_driven=True))
        self._prompt_lengths, self._strengths = prompt_lengths, strengths
        self._receipts: list[Receipt] = []
        self._error: SubveneError | None = None
        # Cache → the run that filled it; a run whose cache nobody holds any more cannot go on.
        self._open: list[tuple[Run, weakref.ref[Any] | None]] = []
        self._in_generate = False

    def attach(self) -> None:
        model = self.intervenable.model
        self.attachment.handles += [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]
        self.intervenable.attach(self.attachment)

    def generate(self, kwargs: dict[str, Any]) -> Any:
        """The model's `generate`, as a run that knows where its prompts end."""
        names = ("input_ids", "inputs_embeds", "attention_mask")
        base = {name: value for name in names if (value := kwargs.pop(name, None)) is not None}
        if not base.keys() - {"attention_mask"}:
            raise PositionError(
                "generate was given neither input_ids nor inputs_embeds, so nothing can be placed"
            )
        lengths = self._lengths(base)
        output = self.intervenable.generate(
            base,
            strengths=self._strengths,
            prompt_lengths=lengths,
            must_act=False,
            inside=self.attachment.scope,
            **kwargs,
        )[1]
        if (receipt := self.intervenable.receipt) is not None:
            self._receipts.append(receipt)
        return output

    def close(self) -> None:
        """End every run, and leave the receipt of all.

        Raises:
            NotSteeredError: an intervention acted in no call.
            SubveneError: a call was refused, and whoever made it swallowed that.
        """
        self._end(still_held=True)
        if self._error is not None:
            raise self._error
        if not self._receipts:
            if self._is_off():
                return
            raise NotSteeredError(
                "this run was not steered: nothing in this thread called the attached model or its `generate`"
            )
        self.intervenable.leave(merged(self._receipts, same_rows=False)[0])
        check_together(self._receipts)

    def remember(self) -> None:
        """Record in the caches that are still held what they were filled with."""
        for run, _ in self._open:
            self.intervenable.remember(run)
        self._open.clear()

    def _before(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        here = innermost(model)
        if here is None:
            self._refused(lambda: refuse_foreign_call(_no_tokens(), kwargs))
        if here is not self.attachment.scope:
            return
        kwargs = by_name(model, args, kwargs)
        self._refused(lambda: self._place(model, kwargs))

    def _refused(self, check: Callable[[], None]) -> None:
        try:
            check()
        except SubveneError as error:
            # Whoever makes the calls may swallow it.
            self._error = error
            raise

    def _place(self, model: torch.nn.Module, kwargs: dict[str, Any]) -> None:
        cache = cache_of(kwargs)
        run = self._continued(cache) if cache is not None and cached_length(kwargs) else None
        if run is None:
            run = self._begin(kwargs)
        else:
            self._go_on(run, kwargs)
            run.caches[id(cache)] = cache
        self.attachment.run = run
        run.tracker.observe(model, (), kwargs)
        self.intervenable.before_call(run, kwargs)

    def _begin(self, kwargs: dict[str, Any]) -> Run:
        self._end(still_held=False)
        refuse_recomputation(self.intervenable.model)
        if kwargs.get("input_ids") is None and kwargs.get("inputs_embeds") is None:
            raise PositionError(
                "a forward call carries neither input_ids nor inputs_embeds, so nothing can be placed"
            )
        tracker = TokenTracker(mask_of(kwargs), self._lengths(kwargs), generating=False)
        run = self.intervenable.begin(tracker, self._strengths)
        self._open.append((run, None))
        return run

    def _go_on(self, run: Run, kwargs: dict[str, Any]) -> None:
        rules = {edit.positions for edit in self.intervenable.interventions.values()}
        if late := [rule for rule in rules if needs_length(rule)]:
            raise PositionError(
                f"positions {late[0]!r} count from the end of the response, which goes on here; they work in "
                "calls that carry the whole sequence"
            )
        if kwargs.get("attention_mask") is None:
            new = inputs_of(kwargs).shape[1]
            real = run.tracker.real
            run.tracker.extend(torch.cat([real, real.new_ones(len(real), new)], 1))
        else:
            run.tracker.extend(mask_of(kwargs))

    def _continued(self, cache: Any) -> Run | None:
        return next((run for run, held in self._open if held is not None and held() is cache), None)

    def _after(self, model: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        run = self.attachment.run
        if innermost(model) is not self.attachment.scope or run is None:
            return
        self.intervenable.after_call(run, args, kwargs, output)
        cache = cache_of(output) if isinstance(output, Mapping) else None
        held = None if cache is None else weakref.ref(cache)
        self._open = [(other, held if other is run else ref) for other, ref in self._open]
        # The run must not be what keeps its cache alive.
        run.caches.clear()

    def _end(self, *, still_held: bool) -> None:
        """Summarise the runs that cannot go on, or all."""
        kept: list[tuple[Run, weakref.ref[Any] | None]] = []
        for run, held in self._open:
            if held is not None and (cache := held()) is not None:
                run.caches[id(cache)] = cache
                self.intervenable.remember(run)
                run.caches.clear()
                if not still_held:
                    kept.append((run, held))
                    continue
            self._receipts.append(self.intervenable.finish(run))
        self._open = kept

    def _is_off(self) -> bool:
        edits, given = self.intervenable.interventions, self._strengths or {}
        strengths = (given.get(e.name, edits[e.keys[0]].strength) for e in self.intervenable.entries)
        return not any(torch.as_tensor(strength).any() for strength in strengths)

    def _lengths(self, base: Mapping[str, Any]) -> torch.Tensor | None:
        lengths = self._prompt_lengths
        if lengths is None:
            return None
        inputs = inputs_of(base)
        if callable(lengths):
            lengths = lengths(inputs, base.get("attention_mask"))
        lengths = torch.as_tensor(lengths, device=inputs.device)
        check_prompt_lengths(lengths, {**base, "input_ids": inputs[..., 0] if inputs.ndim == 3 else inputs})
        return lengths


def _no_tokens() -> TokenTracker:
    return TokenTracker(torch.zeros(1, 0, dtype=torch.long), None, generating=False)


@contextlib.contextmanager
def _generate_taken_over(base: Any) -> Iterator[None]:
    """Let `base.generate` begin a run of the attachment that is innermost where it is called."""
    if not hasattr(base, "generate"):
        yield
        return
    with _LOCK:
        _TAKEN_OVER[base] = _TAKEN_OVER.get(base, 0) + 1
        if _TAKEN_OVER[base] == 1:
            base.generate = _routed(base)
    try:
        yield
    finally:
        with _LOCK:
            _TAKEN_OVER[base] -= 1
            if not _TAKEN_OVER[base]:
                del base.generate


def _routed(base: Any) -> Callable[..., Any]:
    original = type(base).generate
    signature = inspect.signature(original)
    held: Callable[[], Any] = weakref.ref(base)

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        model = held()
        here = innermost(model)
        if here is None:
            raise ConcurrentRunError(
                "this model is attached to an IntervenedModel in another thread or task. Call "
                "`m.generate(…)` here, or call the model inside `with m.disabled()`"
            )
        if not isinstance(here.owner, _Calls):
            return original(model, *args, **kwargs)
        given = signature.bind_partial(model, *args, **kwargs).arguments
        own = {name: value for name, value in given.items() if name not in ("self", "kwargs")}
        named = {**own, **given.get("kwargs", {})}
        if (inputs := named.pop("inputs", None)) is not None:
            named["input_ids"] = inputs
        return here.owner.generate(named)

    return generate
