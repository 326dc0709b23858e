"""A model that somebody else calls, edited: a pipeline, an evaluation harness, a training loop.

Where the tokens of a call stand is told from the call. `model.generate` is taken over, so that it knows where
its prompts end; any other forward call is a sequence of its own, or continues one whose cache it brings.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from subvene.interventions.positions import needs_length
from subvene.runner.data.limits import refuse_generation_beyond_context
from subvene.runner.edits.cache_record import refuse_unmasked
from subvene.runner.edits.cached_rows import order_of, signature
from subvene.runner.edits.compiled_passes import compiled_passes, compiles
from subvene.runner.edits.eager import eagerly
from subvene.runner.edits.forward_call import ForwardCall, cache_in
from subvene.runner.edits.hooks import is_half_registered
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.edits.positions import PositionError, TokenTracker, mask_of, prompt_lengths_of
from subvene.runner.edits.receipt import NotSteeredError, Receipt, check_together, merged
from subvene.runner.edits.refusals import refuse_foreign_call, refuse_recomputation, refuse_second_call
from subvene.runner.edits.runs import Attachment, Run
from subvene.runner.edits.scopes import ConcurrentRunError, Scope, entered, innermost, refuse_nested
from subvene.runner.edits.strengths import Strength
from subvene.runner.models.generation import Settings
from subvene.runner.models.vocabulary import refuse_without_row
from subvene.specs import SubveneError

# [rows], or a function of (input_ids, attention_mask) that gives them.
PromptLengths = Sequence[int] | torch.Tensor | Callable[[torch.Tensor, torch.Tensor | None], Any]

_T = TypeVar("_T")
_LOCK = threading.Lock()
# Base model → how many attachments have taken its `generate` over.
_TAKEN_OVER: weakref.WeakKeyDictionary[torch.nn.Module, int] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def attached(
    intervenable: IntervenableModel,
    prompt_lengths: PromptLengths | None = None,
    strengths: Mapping[str, Strength] | None = None,
) -> Iterator[torch.nn.Module]:
    """Edit every call of the model by this thread or task; see `IntervenedModel.attached`."""
    base = intervenable.model
    refuse_nested(base, intervenable, is_driven=True)
    intervenable.leave()
    calls = _Calls(intervenable, prompt_lengths, strengths)
    try:
        with entered(calls.attachment.scope), _generate_taken_over(base), eagerly(), compiled_passes(base):
            calls.attach()
            yield base
        calls.close()
    finally:
        calls.attachment.remove()


class _Calls:
    """The calls of one attachment: the runs that are open, and the receipts of those that have ended."""

    def __init__(
        self,
        intervenable: IntervenableModel,
        prompt_lengths: PromptLengths | None,
        strengths: Mapping[str, Strength] | None,
    ) -> None:
        self.intervenable = intervenable
        self.attachment = Attachment(Scope(intervenable.model, self, is_run=True, is_driven=True))
        self._prompt_lengths, self._strengths = prompt_lengths, strengths
        self._receipts: list[Receipt] = []
        self._error: Exception | None = None
        # Each run with the cache that it filled; one whose cache nobody holds any more cannot go on.
        self._open: list[tuple[Run, weakref.ref[Any] | None]] = []
        # Run → by what the rows of its cache are known since its last call.
        self._rows: dict[Run, torch.Tensor | None] = {}

    def attach(self) -> None:
        model = self.intervenable.model

        # Functions, which a deepcopy of the model takes as they are; with a bound method it would copy us.
        def before(*call: Any) -> None:
            self._before(*call)

        def after(*call: Any) -> None:
            self._after(*call)

        self.attachment.handles += [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]
        self.intervenable.attach(self.attachment)
        self.attachment.scope.compiles = compiles(self.intervenable, self.attachment)

    def generate(self, **kwargs: Any) -> Any:
        """The model's `generate`, as a run that knows where its prompts end."""
        return self._refused(lambda: self._generate(**kwargs))

    def _generate(self, **kwargs: Any) -> Any:
        names = ("input_ids", "inputs_embeds", "attention_mask")
        base = {name: value for name in names if (value := kwargs.pop(name, None)) is not None}
        if not base.keys() - {"attention_mask"}:
            raise PositionError(
                "generate was given neither input_ids nor inputs_embeds, so nothing can be placed"
            )
        lengths = self._lengths(ForwardCall.of(**base))
        if "input_ids" in base:
            refuse_without_row(self.intervenable.model, base["input_ids"])
        refuse_generation_beyond_context(base, Settings(self.intervenable.model, **kwargs))
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

    def _before(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
        if is_half_registered(kwargs) or model is not self.intervenable.model:
            return  # a copy of the model, with our hooks on it
        here = innermost(model)
        if here is None:
            self._refused(lambda: refuse_foreign_call(_no_tokens(), ForwardCall.of(**kwargs)))
        if here is not self.attachment.scope:
            return
        self._refused(lambda: self._place(ForwardCall.made(model, args, **kwargs)))

    def _refused(self, check: Callable[[], _T]) -> _T:
        try:
            return check()
        except (SubveneError, ValueError) as error:
            # Whoever makes the calls may swallow it.
            self._error = error
            raise

    def _place(self, call: ForwardCall) -> None:
        refuse_second_call(self.attachment.run)
        cache, start = call.cache, call.held
        if start:
            refuse_unmasked(call)
        before = run = self._continued(cache) if start else None
        order = None if run is None else order_of(self._rows[run], cache, _treated(run))
        if run is not None and order is not None:
            run = self._begin_with(run, order, call)
        elif run is not None and start < run.tracker.slots and _cuts_a_prompt(run.tracker, start):
            run = None  # cropped to what sequences share: another one begins
        elif run is not None:
            self._go_on(run, call)
            run.caches[id(cache)] = cache
        if run is None:
            run = self._begin(call, self._lengths(call), self._strengths)
        if before is not run:
            # The cache is the other one's from here on.
            self._open = [(one, None if one is before else held) for one, held in self._open]
        self.attachment.run = run
        run.tracker.observe(call)
        self.intervenable.before_call(run, call)

    def _begin_with(self, run: Run, order: torch.Tensor, call: ForwardCall) -> Run:
        """A run of some of the rows of another, which it goes on with."""
        lengths = run.tracker.prompt_lengths
        lengths = None if lengths is None else lengths[order.to(lengths.device)]
        strengths = {
            entry.name: _selected(run.strengths[entry.keys[0]], order) for entry in self.intervenable.entries
        }
        return self._begin(call, lengths, strengths)

    def _begin(self, call: ForwardCall, lengths: Any, strengths: Mapping[str, Strength] | None) -> Run:
        self._end(still_held=False)
        refuse_recomputation(self.intervenable.model)
        if not call.is_placed:
            raise PositionError(
                "a forward call carries neither input_ids nor inputs_embeds, so nothing can be placed"
            )
        mask = mask_of(call, Settings(self.intervenable.model)["pad_token_id"])
        run = self.intervenable.begin(TokenTracker(mask, lengths, generating=False), strengths)
        self._open.append((run, None))
        return run

    def _go_on(self, run: Run, call: ForwardCall) -> None:
        rules = {edit.positions for edit in self.intervenable.interventions.values()}
        if late := [rule for rule in rules if needs_length(rule)]:
            raise PositionError(
                f"positions {late[0]!r} count from the end of the response, which goes on here; they work in "
                "calls that carry the whole sequence"
            )
        run.tracker.extend(mask_of(call))

    def _continued(self, cache: Any) -> Run | None:
        return next((run for run, held in self._open if held is not None and held() is cache), None)

    def _after(self, model: torch.nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
        run = self.attachment.run
        if is_half_registered(kwargs) or model is not self.intervenable.model or run is None:
            return
        if innermost(model) is not self.attachment.scope:
            return
        call = ForwardCall.made(model, args, **kwargs)
        self.intervenable.after_call(run, call, output)
        # Now, since whoever holds the cache may hand it to another run at any moment.
        self.intervenable.remember(run)
        cache = cache_in(output) or call.cache
        held = None if cache is None else weakref.ref(cache)
        self._rows[run] = None if cache is None else signature(cache)
        self._open = [(other, held if other is run else ref) for other, ref in self._open]
        if output is None:  # the call failed, and what it did is no part of a result
            self._open = [(other, ref) for other, ref in self._open if other is not run]
            self.attachment.run = None
        # The run must not be what keeps its cache alive.
        run.caches.clear()

    def _end(self, *, still_held: bool) -> None:
        """Summarise the runs that cannot go on, or all."""
        ended = [run for run, held in self._open if still_held or held is None or held() is None]
        self._open = [(run, held) for run, held in self._open if run not in ended]
        for run in ended:
            self._rows.pop(run, None)
            try:
                self._receipts.append(self.intervenable.finish(run))
            except NotFiniteError as error:
                # Not at the call of the next sequence, which has nothing to do with it: on leaving.
                self._error = self._error or error

    def _is_off(self) -> bool:
        edits, given = self.intervenable.interventions, self._strengths or {}
        strengths = (given.get(e.name, edits[e.keys[0]].strength) for e in self.intervenable.entries)
        return not any(torch.as_tensor(strength).any() for strength in strengths)

    def _lengths(self, call: ForwardCall) -> torch.Tensor | None:
        lengths = self._prompt_lengths
        if lengths is None:
            return None
        if callable(lengths):
            lengths = lengths(call.inputs, call.attention_mask)
        return prompt_lengths_of(lengths, call)


def _cuts_a_prompt(tracker: TokenTracker, start: int) -> bool:
    """Whether a call that begins at slot `start` replaces a part of a prompt."""
    if tracker.prompt_lengths is None:
        return True
    before = tracker.real[:, :start].sum(1)
    return bool((before < tracker.prompt_lengths.to(before.device)).any())


def _treated(run: Run) -> torch.Tensor:
    """[rows, …], what is done to each row of a run: where its prompt ends, strengths, and its gates."""
    rows = len(run.tracker.real)
    lengths = run.tracker.prompt_lengths
    columns = [torch.zeros(rows) if lengths is None else lengths.cpu().float()]
    columns += [strength.detach().cpu().float().expand(rows) for strength in run.strengths.values()]
    if run.openings:  # which may have opened for one row and not for another
        columns.append(torch.arange(rows).float())
    return torch.stack(columns, 1)


def _selected(strength: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return strength[order.to(strength.device)] if strength.ndim else strength


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
            base.generate = _Routed(base)
    try:
        yield
    finally:
        with _LOCK:
            _TAKEN_OVER[base] -= 1
            if not _TAKEN_OVER[base]:
                own = base.generate.own
                del base.generate
                if own is not None:
                    base.generate = own


class _Routed:
    """A model's `generate` while it is attached: a run of the attachment that is innermost at the call."""

    def __init__(self, base: Any) -> None:
        # Somebody may have put one of their own onto the model; it is what the class has otherwise.
        self.own = vars(base).get("generate")
        self._original = functools.partial(type(base).generate, base) if self.own is None else self.own
        self._signature = inspect.signature(self._original)
        self._base: Callable[[], Any] = weakref.ref(base)
        functools.update_wrapper(self, type(base).generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        here = innermost(self._base())
        if here is None:
            raise ConcurrentRunError(
                "this model is attached to an IntervenedModel in another thread or task. Call "
                "`m.generate(…)` here, or call the model inside `with m.disabled()`"
            )
        if not isinstance(here.owner, _Calls):
            return self._original(*args, **kwargs)
        if self.own is not None:
            # Whatever it does: its calls of the model are placed by themselves.
            return self._original(*args, **kwargs)
        given = self._signature.bind_partial(*args, **kwargs).arguments
        named = {name: value for name, value in given.items() if name != "kwargs"}
        named |= given.get("kwargs", {})
        if (inputs := named.pop("inputs", None)) is not None:
            named["input_ids"] = inputs
        return here.owner.generate(**named)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the model (a reference, say) generates by itself."""
        copied: Any = memo[id(self._base())]
        return types.MethodType(type(copied).generate, copied)
