"""Models that are no decoder language models (GRUs, MLPs, encoders, encoder-decoders, vision models).

Where their tokens stand in a prompt and a response cannot be said, and often there are no tokens.
Interventions are put on modules by path, and edit the whole tensor that a module takes or hands on, at every
call of it, or those of its vectors that have given numbers; padding is left alone or refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch

from subvene.interventions import Tokens
from subvene.runner.edits.hooks import take_input, take_output
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.pyvene_calls import own_arguments
from subvene.runner.edits.receipt import InterventionReceipt, Receipt
from subvene.runner.edits.recorder import Recorder
from subvene.runner.edits.refusals import refuse_changed_places, refuse_compiled, refuse_recomputation
from subvene.runner.edits.sources import Feed, Reading, inputs_by_name
from subvene.runner.edits.strengths import strengths_in_force
from subvene.runner.edits.whole_sources import check_counts, feed_of, inputs_of_source, placed, read_of
from subvene.runner.models.anatomy import component_module
from subvene.runner.models.devices import input_device

# The run that the calls of this thread or task belong to: another's calls are not edited by our hooks.
_RUN: ContextVar[_Run | None] = ContextVar("whole_tensor_run", default=None)


@dataclass(eq=False)
class _Run:
    """One call of the model: its strengths, what each edit did, and where its padding is.

    Attributes:
        strengths: key → strength in force, scalar or [rows].
        real: Bool[batch, tokens] of the tokens that are no padding; None where nothing is.
        recorders: key → its measurements; each has a recorder of its own, since tensors differ in shape.
        seen: key → vectors per row that its earlier calls in this run had (a GRU's cell is called per step).
        feeds: key → what it is given of another run.
        edited: key → Long[rows], vectors that it was to edit.
    """

    strengths: dict[str, torch.Tensor]
    real: torch.Tensor | None
    recorders: dict[str, Recorder] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    feeds: dict[str, Feed] = field(default_factory=dict)
    edited: dict[str, torch.Tensor] = field(default_factory=dict)


class WholeTensorModel(IntervenableModel):
    """An `IntervenableModel` whose edits are at vectors along the last dimension of their tensors.

    In its receipts such vectors stand for tokens, all of them under the role `prompt`: one per row for a
    tensor [batch, width], `tokens` per row for [batch, tokens, width], channels × height for an image.
    """

    @property
    def main_input(self) -> str:
        """What the model calls the input that its callers pass first (`input_ids`, `pixel_values`)."""
        return str(getattr(self.model, "main_input_name", "input_ids"))

    def call(self, first: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
        """The model's own output for these inputs, edited.

        Args:
            first: the model's main input; None where `inputs` hold it.
            inputs: arguments of the model's forward; those that are None are left out.
            **options: as for `forward`.
        """
        return self.forward(self._on_device(first, inputs), **options)[1]

    def call_plain(self, first: Any, inputs: Mapping[str, Any]) -> Any:
        """The same call without any edit; it leaves no receipt."""
        self.leave()
        with _entered(None):
            return self.model(**self._on_device(first, inputs))

    def forward(self, base: Mapping[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """(None, the model's output for the inputs `base`); with `strengths`, `must_act`, `labels`.

        `sources` has by name the inputs of each declared source's run.

        Raises:
            SourceError: a source's inputs are missing, or do not fit the base's.
            PositionError: `prompt_lengths`, or padding of which it cannot be told where it is.
            NotSteeredError: an intervention that should have acted did not.
            NotFiniteError: an edited tensor or the output is not finite.
        """
        kwargs = own_arguments("forward", self.model, args, **kwargs)
        strengths, must_act = kwargs.pop("strengths", None), kwargs.pop("must_act", True)
        if kwargs.pop("prompt_lengths", None) is not None:
            self._refuse("prompt_lengths=")
        given = inputs_by_name(kwargs.pop("sources", None), tuple(self.declared.sources))
        self.leave()
        refuse_compiled(self.model)
        refuse_changed_places(self)
        refuse_recomputation(self.model)
        run = _Run(
            strengths_in_force(self.entries, self.interventions, strengths, _rows(base)),
            self._real(base),
            feeds=self._feeds(given, _rows(base)),
        )
        with self._hooked(run, [self._edit_at(run, key) for key in self.sorted_keys]):
            output = self.model(**base, **kwargs)
        check_counts(run.feeds, run.edited)
        receipt = self._receipt(run)
        _refuse_not_finite(receipt, output, run.real)
        self.leave(receipt, _collected(run))
        if must_act:
            receipt.check()
        return None, output

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: an edit of generated tokens needs their places."""
        self._refuse("generate")

    def running(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a run is one call here."""
        self._refuse("running")

    def begin(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a run is one call here."""
        self._refuse("begin")

    def attached(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a run is one call here."""
        self._refuse("attached")

    def _refuse(self, what: str) -> NoReturn:
        raise PositionError(
            f"{what}: {type(self.model).__name__} is no decoder language model, so prompt and response "
            "cannot be told apart in it; m(…) with the model's own inputs edits whole tensors, in one call"
        )

    def _on_device(self, first: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        given = {self.main_input: first, **inputs} if first is not None else dict(inputs)
        device = input_device(self.model)
        return {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in given.items()
            if value is not None
        }

    def _real(self, base: Mapping[str, Any]) -> torch.Tensor | None:
        masks = {name: base[name] for name in ("attention_mask", "decoder_attention_mask") if name in base}
        padded = {name: mask for name, mask in masks.items() if mask is not None and not mask.bool().all()}
        if not padded:
            return None
        if getattr(self.model.config, "is_encoder_decoder", False):
            raise PositionError(
                f"{', '.join(padded)}: which of an encoder-decoder's tensors a mask is for cannot be told, "
                "and padding would be edited; pass rows of one length, without padding"
            )
        if padded["attention_mask"].ndim != 2:
            raise PositionError("attention_mask must be [batch, tokens]: padding cannot be told from another")
        return padded["attention_mask"].bool()

    @contextmanager
    def _hooked(self, run: _Run, handles: Sequence[Any]) -> Iterator[None]:
        try:
            with _entered(run):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _feeds(self, given: Mapping[str, Any], n_rows: int) -> dict[str, Feed]:
        """Run every source, and say what goes where."""
        feeds: dict[str, Feed] = {}
        for name in self.declared.sources:
            inputs = self._on_device(None, inputs_of_source(name, given.get(name), n_rows))
            readings = {key: r for key, r in self.declared.readings.items() if r.source == name}
            run = _Run({}, self._real(inputs))
            calls: dict[str, list[tuple[torch.Tensor, Tokens]]] = {key: [] for key in readings}
            handles = [self._read_at(run, key, readings[key], calls[key]) for key in readings]
            with self._hooked(run, handles), torch.no_grad():
                self.model(**inputs)
            for key, reading in readings.items():
                rule = self.interventions[key].positions
                feeds[key] = feed_of(key, rule, read_of(reading, calls[key]))
        return feeds

    def _read_at(
        self, run: _Run, key: str, reading: Reading, calls: list[tuple[torch.Tensor, Tokens]]
    ) -> Any:
        module, is_input = component_module(self.model, reading.component)

        def hook(_module: torch.nn.Module, args: Any, kwargs: dict[str, object], output: Any = None) -> None:
            if _RUN.get() is run:
                found = (take_input(args, kwargs) if is_input else take_output(output))[0]
                h, tokens = self._placed(run, key, reading.component, found)
                # The module may go on to write into its own tensor.
                calls.append((h.clone(), tokens))

        register = module.register_forward_pre_hook if is_input else module.register_forward_hook
        return register(hook, with_kwargs=True)

    def _edit_at(self, run: _Run, key: str) -> Any:
        edit, register = self.interventions[key], self.intervention_hooks[key]
        is_pre_hook = register.__name__ == "register_forward_pre_hook"

        def hook(_module: torch.nn.Module, args: Any, kwargs: dict[str, object], output: Any = None) -> Any:
            if _RUN.get() is not run:
                return None
            found, put_back = take_input(args, kwargs) if is_pre_hook else take_output(output)
            h, tokens = self._placed(run, key, str(self.representations[key].component), found)
            if edit.strength.device != h.device:
                edit.to(h.device)
            context = {}
            if edit.needs_module_input:
                context["module_input"] = take_input(args, kwargs)[0].reshape(h.shape)
            if (feed := run.feeds.get(key)) is not None:
                context["positions"], context["source"] = feed.at(tokens, h)
                selected = context["positions"].sum(1)
                run.edited[key] = selected + run.edited.get(key, torch.zeros_like(selected))
            strength = run.strengths[key]
            edited = edit(h, tokens=tokens, strength=strength, **context)
            recorder = run.recorders.setdefault(key, Recorder({key: strength}, run.feeds))
            recorder.reached.add(key)
            recorder.record(key, edit.positions, h, edited, tokens)
            if feed is not None:
                recorder.record_source(key, edit.part(h), context["source"], tokens.start)
            if edit.collects:
                recorder.collect(key, edit.collected(h), tokens.mask(edit.positions, h.device))
                return None
            return put_back(edited.view(found.shape))

        return register(hook, with_kwargs=True)

    def _placed(self, run: _Run, key: str, place: str, found: Any) -> tuple[torch.Tensor, Tokens]:
        """A module's tensor as [rows, vectors, width], and the vectors of it that are no padding."""
        if not isinstance(found, torch.Tensor) or not found.is_floating_point() or found.ndim < 2:
            what = f"{found.dtype} {list(found.shape)}" if isinstance(found, torch.Tensor) else type(found)
            raise PositionError(
                f"{place} is {what}; an intervention edits floating-point tensors [batch, …, width]"
            )
        h, real = _as_rows(found, run.real, place)
        start = run.seen.get(key, 0)
        run.seen[key] = start + h.shape[1]
        index = torch.arange(start, start + h.shape[1], device=h.device).expand(h.shape[:2])
        if real is None:
            return h, placed(index, torch.ones_like(index, dtype=torch.bool), start)
        real = real.to(h.device)
        return h, placed(start + (real.cumsum(1) - 1).clamp_min(0), real, start)

    def _receipt(self, run: _Run) -> Receipt:
        receipts: list[InterventionReceipt] = []
        for entry in self.entries:
            (key,) = entry.keys
            recorder = run.recorders.get(key) or Recorder({key: run.strengths[key]}, run.feeds)
            receipts += recorder.finish([(entry.name, entry.keys, entry.sites, self.interventions[key])])
        return Receipt(tuple(receipts))


@contextmanager
def _entered(run: _Run | None) -> Iterator[None]:
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


def _rows(base: Mapping[str, Any]) -> int:
    return next((value.shape[0] for value in base.values() if isinstance(value, torch.Tensor)), 1)


def _as_rows(
    found: torch.Tensor, mask: torch.Tensor | None, place: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`found` [batch, …, width] as [rows, vectors, width], and Bool[rows, vectors] of what is no padding."""
    if mask is None:
        return found.reshape(found.shape[0], -1, found.shape[-1]), None
    batch, count = mask.shape
    if found.ndim == 3 and found.shape[:2] == mask.shape:
        return found, mask
    if found.ndim == 2 and found.shape[0] == batch * count and count > 1:
        return found.reshape(batch, count, -1), mask
    if found.ndim == 2 and found.shape[0] == batch:  # one vector per row, as of a pooled sequence
        return found.unsqueeze(1), None
    raise PositionError(
        f"{place}: padding cannot be told in a tensor of shape {list(found.shape)}, where attention_mask is "
        f"{list(mask.shape)}; pass rows of one length, without padding"
    )


def _refuse_not_finite(receipt: Receipt, output: Any, real: torch.Tensor | None) -> None:
    advice = "a smaller strength, or float32, keeps it finite"
    for edit in receipt:
        if edit.max_relative is not None and not math.isfinite(edit.max_relative):
            raise NotFiniteError(
                f"{edit.name!r} at {', '.join(edit.sites)} moves its tensor by ‖Δ‖/‖h‖ = {edit.max_relative} "
                f"at strength {list(edit.strengths)}; {advice}"
            )
    found = getattr(output, "logits", None)
    found = output[0] if found is None else found
    if not isinstance(found, torch.Tensor) or not found.is_floating_point():
        return
    if real is not None and found.shape[:2] == real.shape:
        found = found[real.to(found.device)]
    if not torch.isfinite(found.detach()).all():
        names = ", ".join(repr(edit.name) for edit in receipt)
        raise NotFiniteError(f"the model's output is not finite after {names}; {advice}")


def _collected(run: _Run) -> dict[str, list[torch.Tensor]]:
    """Key → per row, the vectors [vectors, width] that a reading intervention saw."""
    collected = {}
    for key, recorder in run.recorders.items():
        if calls := recorder.collected.get(key):
            activations = torch.cat([activation for activation, _ in calls], 1)
            real = torch.cat([mask for _, mask in calls], 1)
            collected[key] = [row[keep] for row, keep in zip(activations, real, strict=True)]
    return collected
