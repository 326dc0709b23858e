"""pyvene's IntervenableModel, made safe for a model that other people also use.

Differences from the stock class, each a fault of it that DESIGN section 6 lists: only our own hooks are
removed; the caller's train/eval mode and `requires_grad` stay as they were; interventions return a new
activation instead of writing into the old one (autograd, and modules whose output is a view, stay intact);
positions come from a `TokenTracker`; every run leaves a receipt, and is one thread's or task's alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from subvene.runner.edits import gates
from subvene.runner.edits.acting import attach_edit, observe_calls
from subvene.runner.edits.cache_record import CacheRecord, record_of, refuse_unmasked
from subvene.runner.edits.compiled_calls import compiled_decoding, may_compile, obstacle_to_compiling
from subvene.runner.edits.copying import NotPickled
from subvene.runner.edits.eager import eagerly
from subvene.runner.edits.edit_names import EditNames
from subvene.runner.edits.finite_watch import FiniteWatch
from subvene.runner.edits.forward_call import ForwardCall, cache_in
from subvene.runner.edits.generation_inputs import with_mask
from subvene.runner.edits.outcomes import Outcome, Outcomes
from subvene.runner.edits.own_calls import OwnCalls, has_other_loop
from subvene.runner.edits.positions import PositionError, TokenTracker, mask_of, prompt_lengths_of
from subvene.runner.edits.pyvene_calls import own_arguments
from subvene.runner.edits.receipt import Receipt
from subvene.runner.edits.recorder import Recorder
from subvene.runner.edits.refusals import (
    refuse_changed_places,
    refuse_compiled,
    refuse_generation,
    refuse_recomputation,
    refuse_undecidable,
)
from subvene.runner.edits.runs import Attachment, Entry, Run
from subvene.runner.edits.scopes import Scope, entered, innermost, plain, refuse_nested
from subvene.runner.edits.source_runs import Given, SourceRuns
from subvene.runner.edits.sources import Declared, Fed, refuse_unfed
from subvene.runner.edits.stock_runs import StockRuns
from subvene.runner.edits.strengths import Strength, strengths_in_force
from subvene.runner.models.forked_cache import is_forked
from subvene.runner.models.generation import Settings, drafts, guard_callbacks, row_ends


class IntervenableModel(NotPickled, StockRuns):
    """A pyvene IntervenableModel whose interventions are subvene's.

    Args:
        config: a `pyvene.IntervenableConfig`, or what it accepts.
        model: the transformers model; not copied, and not changed while nothing runs.
        entries: (name, sites) of the declared interventions, each with as many sites as it has consecutive
            representations in `config`; one entry per representation if None.
        declared: the sources that they read from; its readings by the place of the representation.
        **kwargs: as for pyvene.
    """

    def __init__(
        self,
        config: Any,
        model: torch.nn.Module,
        entries: Sequence[tuple[str, Sequence[str]]] | None = None,
        declared: Declared | None = None,
        **kwargs: Any,
    ) -> None:
        self.tokenizer: Any = None  # finds texts in prompts, and reads sources that are texts
        self._outcomes = Outcomes()
        self._edit_names = EditNames()
        # pyvene's constructor calls eval() and freezes every parameter of a model that is not its own.
        training = [(module, module.training) for module in model.modules()]
        trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        super().__init__(config, model, **kwargs)
        for module, was_training in training:
            module.training = was_training
        for parameter, required_grad in trainable:
            parameter.requires_grad_(required_grad)
        keys = iter(self.sorted_keys)
        entries = entries or [(key, [key]) for key in self.sorted_keys]
        self.entries = tuple(
            Entry(name, tuple(sites), tuple(next(keys) for _ in sites)) for name, sites in entries
        )
        self.declared = Declared() if declared is None else declared.by_key(self.sorted_keys)

    @property
    def receipt(self) -> Receipt | None:
        """What each intervention did in the last run; None before the first, and after one that failed."""
        return self._outcomes.get().receipt

    @property
    def collected(self) -> dict[str, list[torch.Tensor]]:
        """Key → per row, the activations [tokens, width] that a reading intervention kept in the last run."""
        return self._outcomes.get().collected

    def acting(self, source: str | None) -> tuple[Entry, ...]:
        """The declared interventions that act on the run of a source; None: on the base."""
        on = self.declared.acts_on
        return tuple(e for e in self.entries if (source in on[e.name] if e.name in on else source is None))

    def leave(
        self, receipt: Receipt | None = None, collected: Mapping[str, list[torch.Tensor]] | None = None
    ) -> None:
        """Make this the outcome of the last run of this thread."""
        self._outcomes.put(Outcome(receipt, dict(collected or {})))

    def generate(
        self, base: Mapping[str, torch.Tensor], *args: Any, inside: Scope | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """As pyvene's `generate`, with positions taken from `base["attention_mask"]` (left padding).

        `strengths` (entry name → scalar or [batch]) replaces stored strengths for this run; `prompt_lengths`
        [batch] says that of each row's tokens only so many are prompt and the rest is response already;
        `must_act` is as for `running`. Returns pyvene's pair (None, what the model's `generate` returned).

        Raises:
            PyveneCallError: pyvene's `sources`, `unit_locations` and the like; the spec declares them.
        """
        if not self._is_ours():
            return super().generate(base, *args, **kwargs)
        kwargs = own_arguments("generate", self.model, args, **kwargs)
        strengths, prompt_lengths = kwargs.pop("strengths", None), kwargs.pop("prompt_lengths", None)
        must_act, about = kwargs.pop("must_act", True), Given.taken_from(kwargs)
        settings = Settings(self.model, **kwargs)
        refuse_generation(settings)
        if prompt_lengths is not None:
            prompt_lengths = prompt_lengths_of(prompt_lengths, ForwardCall.of(**base))
        base = with_mask(base, settings)
        call = ForwardCall.of(**{"past_key_values": ForwardCall.of(**kwargs).cache, **base})
        inputs, mask = call.inputs, base["attention_mask"]
        if mask.ndim == 2 and not mask[:, -1].all():
            raise PositionError("generate needs left padding: a row of attention_mask ends in padding")
        beams = (settings["num_beams"] or 1) > 1
        is_looped_otherwise = has_other_loop(settings)
        # Beams trade places between steps, and one that has ended is not continued: nothing is filled up.
        ends = [] if beams else row_ends(settings)
        if beams:
            gates.refuse_looking_back(self.acting(None), self.interventions)
        tracker = TokenTracker(
            mask,
            mask.sum(-1) if prompt_lengths is None else prompt_lengths,
            generating=True,
            end_ids=ends,
            is_sequential=not (drafts(settings) or is_looped_otherwise),
            stops_when_ended=not settings.given("stopping_criteria"),
        )
        given = 0 if base.get("input_ids") is None else inputs.shape[1]
        # Without an end token transformers fills nothing up: finished rows are generated further.
        on_ended = (
            (lambda rows, length: tracker.ended(rows, tracker.slots + length - given)) if ends else None
        )
        guard_callbacks(settings, kwargs, lambda: plain(self.model), on_ended)
        compiles = may_compile(self, settings, obstacle_to_compiling(settings, inside))
        if not compiles:
            # A step compiled by transformers would have been traced without our hooks, or keep them for ever.
            kwargs["disable_compile"] = True
        fed = SourceRuns(self, tracker, about, strengths).feed(call)
        with self.running(tracker, strengths, must_act=must_act, edits=True, inside=inside, fed=fed) as run:
            run.watch.clears = beams or is_looped_otherwise or bool(settings["do_sample"] or drafts(settings))
            if is_looped_otherwise:
                run.own_calls = OwnCalls(base, kwargs.get("past_key_values"), mask.shape[1])
            with compiled_decoding(self, run.attachment) if compiles and run.attachment else nullcontext():
                output = self.model.generate(**base, **kwargs)
            sequences = output if isinstance(output, torch.Tensor) else getattr(output, "sequences", None)
            if run.own_calls is not None:
                run.own_calls.check_output(sequences)
            if not beams and sequences is not None:
                # The last token of a sequence has not been passed through the model.
                run.recorder.truncate(mask.shape[1] + sequences.shape[1] - given - 1)
            return None, output

    def forward(self, base: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """As pyvene's `forward`, teacher-forced; with `prompt_lengths` [batch], `strengths`, `must_act`.

        Raises:
            PyveneCallError: pyvene's `sources`, `unit_locations` and the like; the spec declares them.
        """
        if not self._is_ours():
            return super().forward(base, *args, **kwargs)
        kwargs = own_arguments("forward", self.model, args, **kwargs)
        strengths, prompt_lengths = kwargs.pop("strengths", None), kwargs.pop("prompt_lengths", None)
        must_act, about = kwargs.pop("must_act", True), Given.taken_from(kwargs)
        refuse_recomputation(self.model)
        call = ForwardCall.of(**base)
        refuse_unmasked(call)
        mask = mask_of(call, Settings(self.model)["pad_token_id"])
        if prompt_lengths is not None:
            # What all of `base` knows: a prompt may be longer than the part of it that a call passes.
            prompt_lengths = torch.as_tensor(prompt_lengths, device=mask.device)
        tracker = TokenTracker(mask, prompt_lengths, generating=False)
        fed = SourceRuns(self, tracker, about, strengths).feed(call)
        with self.running(tracker, strengths, must_act=must_act, edits=True, fed=fed):
            return None, self.model(**base, **kwargs)

    @contextlib.contextmanager
    def running(
        self,
        tracker: TokenTracker,
        strengths: Mapping[str, Strength] | None = None,
        *,
        must_act: bool = True,
        edits: bool = False,
        is_driven: bool = False,
        inside: Scope | None = None,
        role: str | None = None,
        fed: Fed | None = None,
    ) -> Iterator[Run]:
        """Make `tracker` the source of positions for the calls inside, and leave `receipt` behind.

        Args:
            tracker: says where the tokens of each forward call stand.
            strengths: entry name → scalar or [batch], in place of stored strengths.
            must_act: whether a declared intervention has to act; False for a caller who checks the receipts
                of several runs together (`subvene.runner.edits.receipt.check_together`).
            edits: whether to attach the edits.
            is_driven: whether somebody else makes the calls.
            inside: a scope of this model's own that this run is a part of.
            role: the source whose run this is; None: the base's.
            fed: what the runs of its sources gave.

        Raises:
            NotSteeredError: on leaving, if a declared intervention did not act.
            NotFiniteError: on leaving, if activations or logits of real tokens were not finite.
            PositionError: positions cannot be told, of a rule or (again on leaving) of a forward call.
            CompiledModelError: the model was compiled before.
            ConcurrentRunError: a run of this model is under way in this thread or task.
        """
        if inside is None:
            refuse_nested(self.model, self, is_driven=is_driven)
        # A run that fails leaves no receipt, rather than that of the run before.
        self.leave()
        run = self.begin(tracker, strengths, role, fed)
        attachment = Attachment(Scope(self.model, self, is_run=True, is_driven=is_driven), run)
        try:
            with entered(attachment.scope):
                observe_calls(self, attachment, run)
                if edits:
                    self.attach(attachment)
                    run.attachment = attachment
                yield run
            if tracker.error is not None:
                raise tracker.error
            receipt = self.finish(run)
            self.leave(receipt, run.recorder.collected_by_row())
            if must_act:
                receipt.check()
        finally:
            attachment.remove()
            self.remember(run)

    def begin(
        self,
        tracker: TokenTracker,
        strengths: Mapping[str, Strength] | None,
        role: str | None = None,
        fed: Fed | None = None,
    ) -> Run:
        """A run that has not called the model yet; what can be refused before is refused here."""
        refuse_compiled(self.model)
        refuse_changed_places(self)
        entries, fed = self.acting(role), fed or Fed()
        for key in (key for entry in entries for key in entry.keys):
            refuse_undecidable(key, self.interventions[key].positions, tracker)
            refuse_unfed(key, self.declared, fed)
        in_force = strengths_in_force(self.entries, self.interventions, strengths, tracker.real.shape[0])
        recorder = Recorder(in_force, fed.feeds)
        openings = gates.openings_of(entries, self.interventions, fed, tracker)
        return Run(
            tracker, recorder, in_force, FiniteWatch(tracker), entries=entries, fed=fed, openings=openings
        )

    def finish(self, run: Run) -> Receipt:
        """What the edits did in a run.

        Raises:
            NotFiniteError: activations or logits of real tokens were not finite.
        """
        entries = [(e.name, e.keys, e.sites, self.interventions[e.keys[0]]) for e in run.entries]
        with self.suspended():
            run.watch.check(self.model, run.recorder, entries)
        receipts = gates.with_gates(run.recorder.finish(entries).interventions, run)
        own = {receipt.name: receipt for receipt in receipts} | dict(run.fed.receipts)
        return Receipt(tuple(own[entry.name] for entry in self.entries if entry.name in own))

    def remember(self, run: Run) -> None:
        """Record in a run's caches what they were filled with."""
        caches = [cache for cache in run.caches.values() if not is_forked(cache)]
        if caches:
            record = CacheRecord.of(
                self._edit_names.edits(run.entries, self.interventions, run),
                run.recorder,
                run.tracker,
                run.first or 0,
            )
            for cache in caches:
                record.put(cache)

    @contextlib.contextmanager
    def attached(
        self, tracker: TokenTracker, strengths: Mapping[str, Strength] | None = None
    ) -> Iterator[torch.nn.Module]:
        """Attach the edits for one run that somebody else drives (`model.generate`, a training step).

        For a caller who knows where every token stands; `IntervenedModel.attached` finds that out itself.
        """
        with self.running(tracker, strengths, edits=True, is_driven=True), eagerly():
            yield self.model

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """The untouched model: calls inside are part of no run, not edited, and in no receipt.

        In this thread or task alone: a run in another one goes on.
        """
        with entered(Scope(self.model, self, is_run=False)):
            yield

    def before_call(self, run: Run, call: ForwardCall) -> None:
        """Take notice of a forward call of the whole model that begins; its tokens have been placed."""
        run.fired.clear()
        run.is_in_call = True
        cache = call.cache
        if isinstance(cache, tuple):
            raise PositionError(
                "past_key_values is a tuple of keys and values, as older transformers had it; pass a Cache "
                "(DynamicCache)"
            )
        if run.own_calls is not None and run.tracker.current is not None:
            try:
                run.own_calls.check(run.tracker.current, call)
            except PositionError as error:
                run.tracker.error = error  # the loop may swallow it
                raise
        start = 0 if run.tracker.current is None else run.tracker.current.start
        if run.first is None:
            run.first = start
            gates.refuse_gone_on(run, start)
        if cache is not None and id(cache) not in run.caches:
            record = record_of(cache)
            if (start or record.lies) and not is_forked(cache):
                edited = record.check(
                    cache, self._edit_names.edits(run.entries, self.interventions, run), start, run.tracker
                )
                least = partial(self._edit_names.least, edited, interventions=self.interventions)
                run.recorder.cached = {entry.name: least(entry) for entry in run.entries}
            run.caches[id(cache)] = cache

    def after_call(self, run: Run, call: ForwardCall, output: Any) -> None:
        """Take notice of a forward call of the whole model that has ended."""
        run.is_in_call = False
        if output is None:
            return  # the call failed
        run.watch.observe(call, output)
        if (cache := cache_in(output)) is not None:
            run.caches[id(cache)] = cache
            if run.own_calls is not None:
                run.own_calls.hold(cache)

    def attach(self, attachment: Attachment) -> None:
        """Attach every edit that acts in `attachment.run` (of the base, where that has not begun)."""
        entries = self.acting(None) if attachment.run is None else attachment.run.entries
        keys = {key for entry in entries for key in entry.keys}
        for key in (key for key in self.sorted_keys if key in keys):
            edit, register = self.interventions[key], self.intervention_hooks[key]
            acts_here = partial(self._acts_here, attachment.scope)
            component = str(self.representations[key].component)
            attachment.handles.append(attach_edit(attachment, key, edit, component, register, acts_here))
        # After all edits, so that what is read of a module is what these have left.
        gates.attach_readings(attachment, self, entries, partial(self._acts_here, attachment.scope))

    def _acts_here(self, scope: Scope) -> bool:
        here = innermost(self.model)
        # autograd recomputes checkpointed blocks in threads of its own.
        return here is scope or (here is None and scope.is_driven)
