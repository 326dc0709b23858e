"""pyvene's IntervenableModel, made safe for a model that other people also use.

Differences from the stock class, each a fault of it that DESIGN section 6 lists: only our own hooks are
removed; the caller's train/eval mode and `requires_grad` stay as they were; interventions return a new
activation instead of writing into the old one (autograd, and modules whose output is a view, stay intact);
positions come from a `TokenTracker`; every run leaves a receipt.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from subvene.interventions import ActivationIntervention
from subvene.interventions._pyvene import pyvene
from subvene.interventions.positions import is_within_prompt, needs_length, needs_prompt_length
from subvene.runner.positions import PositionError, TokenTracker
from subvene.runner.receipt import Receipt, Recorder
from subvene.specs import SubveneError

_PRE_HOOK = "register_forward_pre_hook"


class CompiledModelError(SubveneError):
    """The model was compiled before the edit was attached, so the edit would do nothing."""


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


@dataclass
class _Run:
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
        self._run: _Run | None = None
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
        self._refuse_generation_that_hides_tokens(kwargs)
        # Passed on in any case: transformers would guess padding from the token ids of a batch without a mask.
        ids = next(base[name] for name in ("input_ids", "inputs_embeds") if base.get(name) is not None)
        mask = base.get("attention_mask")
        mask = torch.ones(ids.shape[:2], dtype=torch.long, device=ids.device) if mask is None else mask
        if mask.ndim == 2 and not mask[:, -1].all():
            raise PositionError("generate needs left padding: a row of attention_mask ends in padding")
        beams = (self._setting(kwargs, "num_beams") or 1) > 1
        ends, pad_id = self._ends(kwargs)
        # Beams trade places between steps, and one that has ended is not continued: nothing is filled up.
        tracker = TokenTracker(
            mask, mask.sum(-1), generating=True, end_ids=() if beams else ends, pad_id=None if beams else pad_id
        )
        # A compiled decode step would have been traced without our hooks, or would keep them for ever.
        kwargs["disable_compile"] = True
        with self.running(tracker, strengths):
            base = {**base, "attention_mask": mask}
            unedited, output = super().generate(base, unit_locations=None, intervene_on_prompt=True, **kwargs)
            if not beams:
                sequences = output if isinstance(output, torch.Tensor) else output.sequences
                new = sequences.shape[1] - (0 if base.get("input_ids") is None else ids.shape[1])
                # The last token of a sequence has not been passed through the model.
                self._run.recorder.truncate(mask.shape[1] + new - 1)
            return unedited, output

    def forward(self, base: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """As pyvene's `forward`; teacher-forced, with `prompt_lengths` [batch] and `strengths` as keywords."""
        if not self._is_ours(args, kwargs):
            return super().forward(base, *args, **kwargs)
        strengths, prompt_lengths = kwargs.pop("strengths", None), kwargs.pop("prompt_lengths", None)
        mask = base.get("attention_mask")
        if mask is None:
            ids = next(base[name] for name in ("input_ids", "inputs_embeds") if base.get(name) is not None)
            cache = base.get("past_key_values")
            past = 0 if cache is None else int(cache.get_seq_length())
            mask = torch.ones(ids.shape[0], past + ids.shape[1], dtype=torch.long, device=ids.device)
        tracker = TokenTracker(mask, prompt_lengths, generating=False)
        with self.running(tracker, strengths):
            return super().forward(base, unit_locations=None, **kwargs)

    @contextlib.contextmanager
    def running(
        self, tracker: TokenTracker, strengths: Mapping[str, Any] | None = None
    ) -> Iterator[IntervenableModel]:
        """Make `tracker` the source of positions for the calls inside, and leave `receipt` behind.

        Raises:
            NotSteeredError: on leaving, if a declared intervention did not act.
            PositionError: positions cannot be told, of a rule or (again on leaving) of a forward call.
            CompiledModelError: the model was compiled before.
        """
        if self._run is not None:
            raise RuntimeError("this IntervenableModel is running already; a run cannot be entered twice")
        # A run that fails leaves no receipt, rather than that of the run before.
        self.receipt, self.collected = None, {}
        self._refuse_compiled()
        for key, edit in self.interventions.items():
            self._refuse_undecidable(key, edit, tracker)
        in_force = self._strengths_in_force(strengths, tracker.real.shape[0])
        self._run = _Run(tracker, Recorder(in_force, tracker.slots + 64 * tracker.generating), in_force)
        observer = self.model.register_forward_pre_hook(self._observe, with_kwargs=True)
        try:
            yield self
            if tracker.error is not None:
                raise tracker.error
            entries = [(e.name, e.keys, e.sites, self.interventions[e.keys[0]]) for e in self.entries]
            self.receipt = self._run.recorder.finish(entries)
            self.collected = {
                key: _by_row(calls) for key, calls in self._run.recorder.collected.items()
            }
            self.receipt.check()
        finally:
            observer.remove()
            self._remove_forward_hooks()
            self._run = None

    @contextlib.contextmanager
    def attached(
        self, tracker: TokenTracker, strengths: Mapping[str, Any] | None = None
    ) -> Iterator[torch.nn.Module]:
        """Attach the edits to the model for one run that somebody else drives (`model.generate`, an evaluator)."""
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
        asks_pyvene = args or any(
            kwargs.get(k) is not None
            for k in ("sources", "unit_locations", "source_representations", "subspaces", "activations_sources")
        )
        return not asks_pyvene and all(isinstance(v, ActivationIntervention) for v in self.interventions.values())

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
            handlers = pyvene.models.modeling_utils.HandlerList([self._attach(key) for key in keys])
        self._handles.extend(handlers.handlers)
        return handlers

    def _attach(self, key: str) -> Any:
        run, edit, register = self._run, self.interventions[key], self.intervention_hooks[key]
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
                raise PositionError(f"{key} ran before the model's own forward did; call the model, not a part of it")
            if skips_response and tokens.after_prompt:
                return None
            found, put_back = _take(args, kwargs) if is_pre_hook else _take_output(output)
            h = _as_batch(found, tokens, key)
            if edit.strength.device != h.device:
                edit.to(h.device)
            context = {"module_input": _as_batch(_take(args, kwargs)[0], tokens, key)} if wants_input else {}
            edited = edit(h, tokens=tokens, strength=override, **context)
            run.recorder.record(key, rule, h, edited, tokens)
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
                raise ValueError(f"strengths: no intervention is called {name!r}; there are: {', '.join(by_name)}")
            tensor = torch.as_tensor(value, dtype=torch.float32)
            for key in by_name[name].keys:
                in_force[key] = tensor.to(in_force[key].device)
        for entry in self.entries:
            tensor = in_force[entry.keys[0]]
            if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] != rows):
                raise ValueError(
                    f"{entry.name}: strength has shape {list(tensor.shape)}; expected one number, or one for each of "
                    f"the {rows} rows of this batch"
                )
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{entry.name}: strength must be finite, found {tensor.tolist()}")
        return in_force

    def _refuse_undecidable(self, key: str, edit: ActivationIntervention, tracker: TokenTracker) -> None:
        if needs_prompt_length(edit.positions) and tracker.prompt_lengths is None:
            raise PositionError(
                f"{key}: positions {edit.positions!r} cannot be decided without knowing where the prompts end; pass "
                "prompt_lengths=[tokens of each row's prompt]"
            )
        if needs_length(edit.positions) and tracker.generating:
            raise PositionError(
                f"{key}: positions {edit.positions!r} count from the end of the response, which generation does not "
                "know; they work in a teacher-forced pass only"
            )

    def _refuse_compiled(self) -> None:
        # By name: importing torch._dynamo to ask takes seconds, and nothing is compiled where it is not loaded.
        def is_compiled(module: torch.nn.Module) -> bool:
            if module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule":
                return True
            # `model.forward = torch.compile(model.forward)`, perhaps with accelerate's wrapper around it.
            own = (module.__dict__.get(name) for name in ("forward", "_old_forward"))
            return any(hasattr(forward, "_torchdynamo_orig_callable") for forward in own)

        if any(is_compiled(module) for module in self.model.modules()):
            raise CompiledModelError(
                "the model (or a part of it) went through torch.compile, which ignores hooks attached afterwards: the "
                "edit would do nothing. Pass the uncompiled model (`compiled._orig_mod`), or load it anew"
            )

    def _setting(self, kwargs: dict[str, Any], name: str) -> Any:
        """A generation setting as `generate` will see it: keyword, then generation_config, then the model's."""
        if name in kwargs:
            return kwargs[name]
        given = getattr(kwargs.get("generation_config"), name, None)
        return given if given is not None else getattr(self.model.generation_config, name, None)

    def _ends(self, kwargs: dict[str, Any]) -> tuple[list[int], int | None]:
        """The ids that end a row, and the one that fills up a row which something else has ended."""
        ends = self._setting(kwargs, "eos_token_id")
        ends = [] if ends is None else torch.as_tensor(ends).reshape(-1).tolist()
        other = kwargs.get("stopping_criteria") or self._setting(kwargs, "stop_strings")
        # Without an end token transformers fills nothing up: finished rows are generated further.
        return ends, self._setting(kwargs, "pad_token_id") if other and ends else None

    def _refuse_generation_that_hides_tokens(self, kwargs: dict[str, Any]) -> None:
        if (self._setting(kwargs, "guidance_scale") or 1) != 1:
            raise PositionError(
                "guidance_scale runs a second, unconditional sequence beside the first, whose positions cannot be told "
                "apart from it; generate without it"
            )
        if kwargs.get("disable_compile") is False or kwargs.get("compile_config") is not None:
            raise CompiledModelError("a compiled generate ignores hooks; leave out compile_config/disable_compile=False")


def _take(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """A module's first input, and how a pre-hook hands a replacement back."""
    if args:
        return args[0], lambda new: ((new, *args[1:]), kwargs)
    name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
    return kwargs[name], lambda new: (args, kwargs | {name: new})


def _take_output(output: Any) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """A module's (first) output, and how a forward hook hands a replacement back.

    Decoder blocks return a tuple in older transformers and a tensor in newer ones; some return an object.
    """
    if isinstance(output, torch.Tensor):
        return output, lambda new: new
    if isinstance(output, (tuple, list)):
        return output[0], lambda new: type(output)((new, *output[1:]))
    name = next(iter(output.keys()))

    def put_back(new: torch.Tensor) -> Any:
        output[name] = new
        return output

    return output[name], put_back


def _as_batch(h: torch.Tensor, tokens: Any, key: str) -> torch.Tensor:
    batch, count = tokens.real.shape
    if h.ndim == 2 and h.shape[0] == batch * count:
        return h.view(batch, count, -1)
    if h.ndim != 3 or h.shape[:2] != (batch, count):
        raise PositionError(
            f"{key}: the activation has shape {list(h.shape)} and the forward call {batch} rows of {count} tokens; "
            "tokens that were packed, dropped or added on the way cannot be placed"
        )
    return h


def _by_row(calls: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    activations = torch.cat([activation for activation, _ in calls], 1)
    masks = torch.cat([mask for _, mask in calls], 1)
    return [row[mask] for row, mask in zip(activations, masks, strict=True)]
