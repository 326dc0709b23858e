"""The runs of sources: read before the base is run, in one pass each, edited where that is declared.

Each source is passed through the model once for all that is read of it, up to the last module that is read.
What is read of a row goes into the row of the base with the same number.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from pydantic import JsonValue

from subvene.interventions import ActivationIntervention
from subvene.interventions.positions import is_within_prompt, names_text
from subvene.runner.data.prompts import as_prompts
from subvene.runner.data.text import Batch, pad, pad_id_of, prompt_ids
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.gates import place_turns
from subvene.runner.edits.hooks import as_batch, is_half_registered, take_input, take_output
from subvene.runner.edits.positions import PositionError, TokenTracker
from subvene.runner.edits.pyvene_calls import PyveneCallError
from subvene.runner.edits.receipt import InterventionReceipt, Receipt, merged
from subvene.runner.edits.scopes import innermost
from subvene.runner.edits.sources import (
    Fed,
    Feed,
    Read,
    Reading,
    SourceError,
    gathered,
    inputs_by_name,
    paired,
)
from subvene.runner.edits.strengths import Strength
from subvene.runner.edits.text_positions import DataRow, prompts_of, text_table
from subvene.runner.models.anatomy import component_module
from subvene.runner.models.devices import input_device
from subvene.specs import Positions, SourceSpec
from subvene.specs.positions import TEXT_POSITIONS


class Rendering(TypedDict, total=False):
    """How a call's own prompts were made of texts."""

    system: str | None
    chat: bool | None
    chat_template_kwargs: Mapping[str, JsonValue] | None


@dataclass(frozen=True)
class Given:
    """What a call gives beside its tokens.

    Attributes:
        rows: the columns of the data of each row; None where there are none.
        sources: what takes the place of the declared inputs: by name, or in the file's order.
        rendering: how the call's own prompts were made.
        turns: of each row the positions of the cursors of the assistant's turns; None where nobody said.
    """

    rows: Sequence[DataRow] | None = None
    sources: Any = None
    rendering: Rendering = field(default_factory=Rendering)
    turns: Sequence[Sequence[int]] | None = None

    @classmethod
    def taken_from(cls, kwargs: MutableMapping[str, Any]) -> Given:
        """The part of a call's keywords that is no business of the model."""
        return cls(
            kwargs.pop("rows", None),
            kwargs.pop("sources", None),
            kwargs.pop("rendering", None) or Rendering(),
            kwargs.pop("turns", None),
        )


class _AllRead(Exception):
    """Ends a pass whose remaining blocks nobody reads."""


class SourceRuns:
    """The runs of the sources of one call.

    Args:
        intervenable: the compiled model.
        tracker: where the tokens of the base stand.
        given: what the call gives.
        strengths: entry name → strength, in place of the stored ones.
    """

    def __init__(
        self, intervenable: Any, tracker: TokenTracker, given: Given, strengths: Mapping[str, Strength] | None
    ) -> None:
        self.intervenable = intervenable
        self.declared = intervenable.declared
        self.tracker, self.given, self.strengths = tracker, given, strengths
        self.n_rows = len(tracker.real)
        if given.rows is not None:
            _refuse_rows(given.rows, self.n_rows)
        if given.sources is not None and not self.declared.sources:
            raise PyveneCallError(
                "sources: this spec declares no source, and the inputs would do nothing: declare them "
                "(`sources:`), and what reads them (`kind: pyvene` with `source: {from: NAME}`)"
            )
        self.inputs = inputs_by_name(given.sources, tuple(self.declared.sources))
        self._read: dict[str, Read] = {}
        self._receipts: dict[str, list[InterventionReceipt]] = {}

    def feed(self, base: ForwardCall) -> Fed:
        """Find the texts of the base's rules, run the sources, and pair what was read with the base's tokens.

        Args:
            base: what the run starts from.

        Raises:
            PositionError: a text cannot be found, or the base goes on from a cache.
            SourceError: a source cannot be run, or does not fit the base.
            GateError: the call's `turns` are not those of its rows.
        """
        place_turns(self.tracker, self.given.turns)
        entries = self.intervenable.acting(None)
        keys = [key for entry in entries for key in entry.keys]
        rules = [self._edits[key].positions for key in keys]
        reads = any(key in self.declared.readings for key in keys)
        if not reads and not any(map(names_text, rules)):
            return Fed()
        if base.held:
            raise PositionError(
                "a run with a source, or with positions that name a text, goes on from a cache, and what it "
                "holds of the prompt cannot be looked at; pass the whole sequence without past_key_values"
            )
        self._find_texts(self.tracker, base.inputs, rules, "the base")
        feeds = self._feeds(keys, self.tracker)
        receipts = {
            name: merged([Receipt((one,)) for one in several], same_rows=True)[0][0]
            for name, several in self._receipts.items()
        }
        return Fed(feeds, receipts)

    @property
    def _edits(self) -> Mapping[str, ActivationIntervention]:
        edits: Mapping[str, ActivationIntervention] = self.intervenable.interventions
        return edits

    def _feeds(self, keys: Sequence[str], tracker: TokenTracker) -> dict[str, Feed]:
        feeds = {}
        for key in keys:
            if (reading := self.declared.readings.get(key)) is None:
                continue
            if key not in self._read:
                self._run(reading.source)
            rule = self._edits[key].positions
            base = tracker.place(0, self.n_rows, tracker.slots)
            is_open = tracker.generating and not is_within_prompt(rule)
            feed = paired(key, rule, self._read[key], base, is_open=is_open)
            if feed.units is not None:
                tracker.tables[feed.rule] = feed.units > 0
            feeds[key] = feed
        return feeds

    def _run(self, name: str) -> None:
        """Read all that is read of a source."""
        declared: SourceSpec = self.declared.sources[name]
        readings = {key: r for key, r in self.declared.readings.items() if r.source == name}
        batch = self._batch(name, declared).to(input_device(self.intervenable.model))
        tracker = TokenTracker(batch.attention_mask, batch.prompt_lengths, generating=False)
        keys = [key for entry in self.intervenable.acting(name) for key in entry.keys]
        rules = [self._edits[key].positions for key in keys]
        rules += [reading.positions for reading in readings.values()]
        self._find_texts(tracker, batch.input_ids, rules, f"source {name!r}")
        feeds = Fed(self._feeds(keys, tracker))
        trains = any(p.requires_grad for key in keys for p in self._edits[key].parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            self._read |= self._pass(name, batch, tracker, feeds, readings)

    def _pass(
        self, name: str, batch: Batch, tracker: TokenTracker, fed: Fed, readings: Mapping[str, Reading]
    ) -> dict[str, Read]:
        m, found = self.intervenable, dict[str, Read]()
        places: dict[str, list[str]] = {}
        for key, reading in readings.items():
            places.setdefault(reading.component, []).append(key)
        left = set(places)
        strengths = {entry.name: self.strengths[entry.name] for entry in m.acting(name)
                     if self.strengths and entry.name in self.strengths}  # fmt: skip
        handles = []
        with m.running(tracker, strengths, must_act=False, edits=True, role=name, fed=fed):
            scope = innermost(m.model)

            def attach(component: str) -> None:
                module, is_input = component_module(m.model, component)

                def hook(_module: Any, args: Any, kwargs: Any = None, output: Any = None) -> None:
                    if is_half_registered(kwargs) or innermost(m.model) is not scope:
                        return
                    tokens = tracker.current
                    if tokens is None:
                        raise PositionError(f"{component} ran before the model's own forward did")
                    tensor = (take_input(args, kwargs) if is_input else take_output(output))[0]
                    tensor = as_batch(tensor, tokens, component)
                    for key in places[component]:
                        found[key] = gathered(readings[key], tensor, tokens)
                    left.discard(component)
                    if not left:
                        raise _AllRead

                register = module.register_forward_pre_hook if is_input else module.register_forward_hook
                handles.append(register(hook, with_kwargs=True))

            try:
                for component in places:
                    attach(component)
                m.model(**self._inputs(batch))
            except _AllRead:
                pass
            finally:
                for handle in handles:
                    handle.remove()
            if left:
                raise SourceError(f"source {name!r}: {', '.join(left)} did not run, so that nothing was read")
        for receipt in m.receipt or ():
            self._receipts.setdefault(receipt.name, []).append(receipt)
        return found

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        parameters = inspect.signature(self.intervenable.model.forward).parameters
        if "position_ids" in parameters:
            inputs["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
        return inputs | ({"use_cache": False} if "use_cache" in parameters else {})

    def _batch(self, name: str, declared: SourceSpec) -> Batch:
        """A source's rows, padded on the side on which the base is."""
        given = self.inputs.get(name)
        if isinstance(given, Mapping) and "role" not in given:
            return self._given_ids(name, given)
        prompts = self._prompts(name, declared) if given is None else as_prompts(given)
        if len(prompts) == 1:
            prompts = prompts * self.n_rows
        if len(prompts) != self.n_rows:
            raise SourceError(
                f"source {name!r}: expected one text, or one for each of the {self.n_rows} rows of the base, "
                f"found {len(prompts)}"
            )
        tokenizer = self.intervenable.tokenizer
        if tokenizer is None:
            raise SourceError(f"source {name!r} is a text, and there is no tokenizer; pass one to from_spec")
        options: Rendering = {**self.given.rendering}
        if declared.chat is not None:
            options["chat"] = declared.chat
            if not declared.chat:
                options["system"] = None
        rows = [prompt_ids(tokenizer, prompt, **options) for prompt in prompts]
        side = "right" if bool(self.tracker.real[:, 0].all()) else "left"
        return pad(rows, [len(row) for row in rows], pad_id_of(tokenizer), side)

    def _prompts(self, name: str, declared: SourceSpec) -> list[Any]:
        if declared.prompt is not None:
            return [declared.prompt]
        if declared.messages is not None:
            return [[message.model_dump() for message in declared.messages]]
        column, rows = str(declared.column), self.given.rows
        if rows is None:
            raise SourceError(
                f"source {name!r} is the column {column!r} of the data, and this run was given none: pass "
                f"rows=[{{{column!r}: …}}, …], one mapping for each row"
            )
        for i, row in enumerate(rows):
            if column not in row:
                there = ", ".join(row) or "nothing"
                raise SourceError(f"row {i}: source {name!r} expects a column {column!r}; there is: {there}")
        return as_prompts([row[column] for row in rows])

    def _given_ids(self, name: str, given: Mapping[str, torch.Tensor]) -> Batch:
        """Token ids that the call gives for a source, as for the base."""
        ids = given.get("input_ids")
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or len(ids) != self.n_rows:
            what = f"shape {list(ids.shape)}" if isinstance(ids, torch.Tensor) else f"{ids!r:.40}"
            raise SourceError(
                f"source {name!r}: expected input_ids [{self.n_rows}, tokens], as many rows as the base has, "
                f"found {what}"
            )
        if unknown := sorted(given.keys() - {"input_ids", "attention_mask", "token_type_ids"}):
            raise SourceError(
                f"source {name!r}: takes input_ids and attention_mask, not {', '.join(unknown)}"
            )
        mask = given.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        if mask.shape != ids.shape:
            raise SourceError(
                f"source {name!r}: attention_mask has shape {list(mask.shape)}, not {list(ids.shape)}"
            )
        return Batch(ids, mask, mask.sum(1))

    def _find_texts(
        self, tracker: TokenTracker, ids: torch.Tensor, rules: Sequence[Positions], what: str
    ) -> None:
        textual = [rule for rule in dict.fromkeys(rules) if isinstance(rule, TEXT_POSITIONS)]
        if not textual:
            return
        if ids.is_floating_point():
            raise PositionError(
                f"{what}: positions that name a text need input_ids, and these are embeddings"
            )
        tokens = tracker.place(0, self.n_rows, tracker.slots)
        prompts = prompts_of(tokens, ids)
        for rule in textual:
            table = text_table(rule, self.intervenable.tokenizer, prompts, self.given.rows, what=what)
            tracker.tables[rule] = table.to(tracker.real.device)


def _refuse_rows(rows: Any, count: int) -> None:
    """Refuse what is no list of as many mappings as the batch has rows."""
    if isinstance(rows, str | Mapping) or not hasattr(rows, "__len__"):
        raise SourceError(
            f"rows: expected a list of {count} mappings, the columns of each row of the batch, found "
            f"{type(rows).__name__}"
        )
    if len(rows) != count:
        raise SourceError(f"rows: expected the columns of {count} rows, as the batch has, found {len(rows)}")
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise SourceError(f"rows: row {i}: expected a mapping of its columns, found {row!r:.60}")
