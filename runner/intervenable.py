"""pyvene's IntervenableModel, made safe for a model that other people also use.

Differences from the stock class, each a fault of it that DESIGN section 6 lists: only our own hooks are
removed; the caller's train/eval mode and `requires_grad` stay as they were; interventions return a new
activation instead of writing into the old one (autograd, and modules whose output is a view, stay intact);
positions come from a `TokenTracker`; every run leaves a receipt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subvene.interventions import ActivationIntervention
from subvene.interventions._pyvene import pyvene
from subvene.interventions.positions import is_within_prompt
from subvene.runner.finite_watch import FiniteWatch
from subvene.runner.generation import row_ends, setting
from subvene.runner.hooks import as_batch, take_input, take_output
from subvene.runner.positions import PositionError, TokenTracker, cached_length
from subvene.runner.receipt import Receipt, Recorder
from subvene.runner.refusals import (
    refuse_compiled,
    refuse_generation,
    refuse_recomputation,
    refuse_undecidable,
)

_PRE_HOOK = "register_forward_pre_hook"


@dataclass(frozen=True)
class Entry:
    """One declared intervention: its name and the places where it acts.

    Attributes:
        name: what receipts and `strengths=` call it.
        sites: `site[layer]` of each place, in the order of `keys`.
        keys: the pyvene keys of its interventions.
    """

    name: str
    sites: tuple[str, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What one run keeps: where its tokens stand, what its edits did, and the strengths in force."""

    tracker: TokenTracker
    recorder: Recorder
    strengths: dict[str, torch.Tensor]


class IntervenableModel(pyvene.IntervenableModel):
    """A pyvene IntervenableModel whose interventions are subvene's.

    Args:
        config: a `pyvene.IntervenableConfig`, or what it accepts.
        model: the transformers model; not copied, and not changed while nothing runs.
        entries: (name, sites) of the declared interventions, each with as many sites as it has consecutive
            representations in `config`; one entry per representation if None.
        **kwargs: as for pyvene.
    """

    def __init__(
        self,
        config: Any,
        model: torch.nn.Module,
        entries: Sequence[tuple[str, Sequence[str]]] | None = None,
        **kwargs: Any,
    ) -> None:
        self._handles: list[Any] = []
        self._run: Run | None = None
        self._suspended = 0
        self.receipt: Receipt | None = None
        self.collected: dict[str, list[torch.Tensor]] = {}
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

    def generate(self, base: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """As pyvene's `generate`, with positions taken from `base["attention_mask"]` (left padding).

        `strengths` (entry name → scalar or [batch]) replaces stored strengths for this run. Returns pyvene's
        pair (None, what the model's `generate` returned). Passing pyvene's `unit_locations` or `sources`
        leaves the run to pyvene alone, without receipts.
        """
        if not self._is_ours(args, kwargs):
            return super().generate(base, *args, **kwargs)
        strengths = kwargs.pop("strengths", None)
        refuse_generation(self.model, kwargs)
        # Passed on in any case: without a mask transformers would guess padding from the token ids.
        inputs = _inputs(base)
        mask = base.get("attention_mask")
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device) if mask is None else mask
        if mask.ndim == 2 and not mask[:, -1].all():
            raise PositionError("generate needs left padding: a row of attention_mask ends in padding")
        beams = (setting(self.model, kwargs, "num_beams") or 1) > 1
        ends, pad_id = row_ends(self.model, kwargs)
        # Beams trade places between steps, and one that has ended is not continued: nothing is filled up.
        if beams:
            ends, pad_id = [], None
        tracker = TokenTracker(mask, mask.sum(-1), generating=True, end_ids=ends, pad_id=pad_id)
        # A compiled decode step would have been traced without our hooks, or would keep them for ever.
        kwargs["disable_compile"] = True
        with self.running(tracker, strengths) as run:
            base = {**base, "attention_mask": mask}
            unedited, output = super().generate(base, unit_locations=None, intervene_on_prompt=True, **kwargs)
            if not beams:
                sequences = output if isinstance(output, torch.Tensor) else output.sequences
                new = sequences.shape[1] - (0 if base.get("input_ids") is None else inputs.shape[1])
                # The last token of a sequence has not been passed through the model.
                run.recorder.truncate(mask.shape[1] + new - 1)
            return unedited, output

    def forward(self, base: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """As pyvene's `forward`, teacher-forced; with `prompt_lengths` [batch], `strengths`, `must_act`."""
        if not self._is_ours(args, kwargs):
            return super().forward(base, *args, **kwargs)
        strengths, prompt_lengths = kwargs.pop("strengths", None), kwargs.pop("prompt_lengths", None)
        must_act = kwargs.pop("must_act", True)
        mask = base.get("attention_mask")
        if mask is None:
            inputs = _inputs(base)
            rows, count = inputs.shape[0], cached_length(base) + inputs.shape[1]
            mask = torch.ones(rows, count, dtype=torch.long, device=inputs.device)
        refuse_recomputation(self.model)
        tracker = TokenTracker(mask, prompt_lengths, generating=False)
        with self.running(tracker, strengths, must_act=must_act):
            return super().forward(base, unit_locations=None, **kwargs)

    @contextlib.contextmanager
    def running(
        self, tracker: TokenTracker, strengths: Mapping[str, Any] | None = None, *, must_act: bool = True
    ) -> Iterator[Run]:
        """Make `tracker` the source of positions for the calls inside, and leave `receipt` behind.

        Args:
            tracker: says where the tokens of each forward call stand.
            strengths: entry name → scalar or [batch], in place of stored strengths.
            must_act: whether a declared intervention has to act; False for a caller who checks the receipts
                of several runs together (`subvene.runner.receipt.check_together`).

        Raises:
            NotSteeredError: on leaving, if a declared intervention did not act.
            NotFiniteError: on leaving, if activations or logits of real tokens were not finite.
            PositionError: positions cannot be told, of a rule or (again on leaving) of a forward call.
            CompiledModelError: the model was compiled before.
        """
        if self._run is not None:
            raise RuntimeError("this IntervenableModel is running already; a run cannot be entered twice")
        # A run that fails leaves no receipt, rather than that of the run before.
        self.receipt, self.collected = None, {}
        refuse_compiled(self.model)
        for key, edit in self.interventions.items():
            refuse_undecidable(key, edit.positions, tracker)
        in_force = self._strengths_in_force(strengths, tracker.real.shape[0])
        run = self._run = Run(tracker, Recorder(in_force, tracker.slots + 64 * tracker.generating), in_force)
        observer = self.model.register_forward_pre_hook(self._observe, with_kwargs=True)
        watch = FiniteWatch(tracker)

        def look(*call: Any) -> None:
            if not self._suspended:
                watch.observe(*call)

        looking = self.model.register_forward_hook(look, with_kwargs=True)
        try:
            yield run
            if tracker.error is not None:
                raise tracker.error
            entries = [(e.name, e.keys, e.sites, self.interventions[e.keys[0]]) for e in self.entries]
            with self.suspended():
                watch.check(self.model, run.recorder, entries)
            self.receipt = run.recorder.finish(entries)
            self.collected = {key: _by_row(calls) for key, calls in run.recorder.collected.items()}
            if must_act:
                self.receipt.check()
        finally:
            observer.remove()
            looking.remove()
            self._remove_forward_hooks()
            self._run = None

    @contextlib.contextmanager
    def attached(
        self, tracker: TokenTracker, strengths: Mapping[str, Any] | None = None
    ) -> Iterator[torch.nn.Module]:
        """Attach the edits for one run that somebody else drives (`model.generate`, a training step)."""
        with self.running(tracker, strengths):
            for key in self.sorted_keys:
                self._intervention_setter([key], [None], None, None)
            yield self.model

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside a run, forward calls that are not part of it: not edited, and not in the receipt."""
        self._suspended += 1
        try:
            yield
        finally:
            self._suspended -= 1

    def _observe(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._suspended and self._run is not None:
            self._run.tracker.observe(model, args, kwargs)

    def _is_ours(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        own = ("sources", "unit_locations", "source_representations", "subspaces", "activations_sources")
        if args or any(kwargs.get(name) is not None for name in own):
            return False
        return all(isinstance(edit, ActivationIntervention) for edit in self.interventions.values())

    def _remove_forward_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _intervention_setter(
        self, keys: Any, unit_locations_base: Any, subspaces: Any, intervention_additional_kwargs: Any = None
    ) -> Any:
        if self._run is None:
            handlers = super()._intervention_setter(
                keys, unit_locations_base, subspaces, intervention_additional_kwargs
            )
        else:
            handlers = pyvene.models.modeling_utils.HandlerList(
                [self._attach(self._run, key) for key in keys]
            )
        self._handles.extend(handlers.handlers)
        return handlers

    def _attach(self, run: Run, key: str) -> Any:
        edit, register = self.interventions[key], self.intervention_hooks[key]
        rule = edit.positions
        skips_response = is_within_prompt(rule)
        override = run.strengths[key]
        is_pre_hook = register.__name__ == _PRE_HOOK
        collects = getattr(edit, "collects", False)
        wants_input = getattr(edit, "needs_module_input", False)

        def hook(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any = None) -> Any:
            if self._suspended:
                return None
            tokens = run.tracker.current
            if tokens is None:
                raise PositionError(
                    f"{key} ran before the model's own forward did; call the model, not a part of it"
                )
            if skips_response and tokens.after_prompt:
                return None
            found, put_back = take_input(args, kwargs) if is_pre_hook else take_output(output)
            h = as_batch(found, tokens, key)
            if edit.strength.device != h.device:
                edit.to(h.device)
            context = {}
            if wants_input:
                context["module_input"] = as_batch(take_input(args, kwargs)[0], tokens, key)
            edited = edit(h, tokens=tokens, strength=override, **context)
            run.recorder.record(key, rule, h, edited, tokens, edit.strength_factors(h))
            if collects:
                run.recorder.collect(key, edit.collected(h), tokens.mask(rule, h.device))
                return None
            return put_back(edited.view_as(found))

        return register(hook, with_kwargs=True)

    def _strengths_in_force(self, strengths: Mapping[str, Any] | None, rows: int) -> dict[str, torch.Tensor]:
        in_force = {key: edit.strength for key, edit in self.interventions.items()}
        by_name = {entry.name: entry for entry in self.entries}
        for name, value in (strengths or {}).items():
            if name not in by_name:
                known = ", ".join(by_name)
                raise ValueError(f"strengths: no intervention is called {name!r}; there are: {known}")
            tensor = torch.as_tensor(value, dtype=torch.float32)
            for key in by_name[name].keys:
                in_force[key] = tensor.to(in_force[key].device)
        for entry in self.entries:
            tensor = in_force[entry.keys[0]]
            if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] != rows):
                raise ValueError(
                    f"{entry.name}: strength has shape {list(tensor.shape)}; expected one number, or one for "
                    f"each of the {rows} rows of this batch"
                )
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{entry.name}: strength must be finite, found {tensor.tolist()}")
        return in_force


def _inputs(base: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Token ids [batch, tokens], or embeddings [batch, tokens, width] where those are given."""
    return next(base[name] for name in ("input_ids", "inputs_embeds") if base.get(name) is not None)


def _by_row(calls: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    activations = torch.cat([activation for activation, _ in calls], 1)
    masks = torch.cat([mask for _, mask in calls], 1)
    return [row[mask] for row, mask in zip(activations, masks, strict=True)]
