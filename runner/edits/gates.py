"""The gates of a run: made when it begins, attached where they read, refused where they could not decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from subvene.runner.edits.hooks import as_batch, is_half_registered, take_input, take_output
from subvene.runner.edits.openings import TURNS, GateError, Openings
from subvene.runner.edits.positions import PositionError, TokenTracker
from subvene.runner.edits.receipt import InterventionReceipt
from subvene.runner.edits.runs import Attachment, Entry, Run
from subvene.runner.edits.sources import Fed
from subvene.runner.models.anatomy import component_module
from subvene.specs import Positions


def openings_of(
    entries: Sequence[Entry], interventions: Mapping[str, Any], fed: Fed, tracker: TokenTracker
) -> dict[str, Openings]:
    """The gates of a run, by the name of the declared intervention.

    Args:
        entries: that act in it.
        interventions: key → edit.
        fed: what the runs of its sources gave.
        tracker: of the run.

    Raises:
        PositionError: one of them needs to know where the prompts end.
        GateError: one of them needs to know where the assistant's turns begin.
    """
    found = {}
    for entry in entries:
        edit = interventions[entry.keys[0]]
        if (gating := edit.gating) is None:
            continue
        if gating.needs_prompt and tracker.prompt_lengths is None:
            raise PositionError(
                f"{entry.name}: its gate cannot be decided without knowing where the prompts end; pass "
                "prompt_lengths=[tokens of each row's prompt]"
            )
        if gating.is_by_turn and TURNS not in tracker.tables and not _is_after_cursor(edit.positions):
            raise GateError(
                f"{entry.name}: its gate is decided at every turn, and it edits tokens before the last one's "
                "cursor; pass turns=, of each row the positions of the cursors of the assistant's turns (the "
                "last token before each), or declare `positions: response`"
            )
        feed = fed.feeds.get(entry.keys[0])
        found[entry.name] = Openings(entry.name, gating, edit.positions if feed is None else feed.rule)
    return found


def _is_after_cursor(rule: Positions) -> bool:
    """Whether a rule selects no token before the cursor."""
    if isinstance(rule, str):
        return rule in ("response", "last_prompt_token")
    return getattr(rule, "of", "prompt") == "response"


def place_turns(tracker: TokenTracker, turns: Sequence[Sequence[int]] | None) -> None:
    """Tell a run where the assistant's turns begin.

    Args:
        tracker: of the run.
        turns: of each row the 0-based positions of the tokens that decide the first token of such a turn;
            None: nobody says.

    Raises:
        GateError: not one list for each row, or a position that its row does not have.
    """
    if turns is None:
        return
    lengths = tracker.length.tolist()
    if len(turns) != len(lengths):
        raise GateError(f"turns: expected {len(lengths)} lists of positions, one a row, found {len(turns)}")
    table = torch.zeros(len(lengths), max(1, *lengths), dtype=torch.bool, device=tracker.index.device)
    for row, (positions, length) in enumerate(zip(turns, lengths, strict=True)):
        for position in positions:
            if not 0 <= position < length:
                raise GateError(
                    f"turns: row {row} has {length} tokens, and no position {position}; expected the 0-based "
                    "position of the token before each of the assistant's turns"
                )
            table[row, position] = True
    tracker.tables[TURNS] = table


def refuse_looking_back(entries: Sequence[Entry], interventions: Mapping[str, Any]) -> None:
    """Refuse a beam search under gates that look back: beams trade places, and with them their pasts.

    Raises:
        GateError: naming the intervention.
    """
    for entry in entries:
        gating = interventions[entry.keys[0]].gating
        if gating is not None and gating.looks_back:
            raise GateError(
                f"{entry.name}: `max_tokens` counts the tokens at which a gate has opened (`decide: token`), "
                "and beams trade their pasts; generate without num_beams"
            )


def refuse_gone_on(run: Run, start: int) -> None:
    """Refuse a run under gates that begins at a slot `start` of a cache.

    Raises:
        GateError: what the gates read of the tokens there is not known.
    """
    if not start or not run.openings:
        return
    run.tracker.error = GateError(
        f"{', '.join(run.openings)}: this run goes on from a cache, and what its gate read of the tokens "
        "there is not known; pass the whole sequence without past_key_values"
    )
    raise run.tracker.error


def with_gates(receipts: Sequence[InterventionReceipt], run: Run) -> list[InterventionReceipt]:
    """Receipts with what the gates of the interventions decided."""
    keys = {entry.name: entry.keys[0] for entry in run.entries}
    return [
        receipt
        if (openings := run.openings.get(receipt.name)) is None
        else replace(receipt, gate=openings.receipt(run.strengths[keys[receipt.name]], run.recorder.end))
        for receipt in receipts
    ]


def why_gated(intervenable: Any) -> str | None:
    """Why a prompt cannot be passed in parts: its gates are read in one pass; None without any."""
    for entry in intervenable.entries:
        if intervenable.interventions[entry.keys[0]].gating is not None:
            return f"{entry.name}: its gate is read in one pass over the whole prompt"
    return None


def attach_readings(
    attachment: Attachment, intervenable: Any, entries: Sequence[Entry], acts_here: Callable[[], bool]
) -> None:
    """Attach what reads for the gates of some interventions at places that these do not edit themselves.

    It sees what the edits at a module have left, when it is attached after them.
    """
    for entry in entries:
        gating = intervenable.interventions[entry.keys[0]].gating
        if gating is None:
            continue
        own = {str(intervenable.representations[key].component) for key in entry.keys}
        for component in dict.fromkeys(reading.component for reading in gating.read()):
            if component not in own:
                handle = _attached(attachment, intervenable.model, entry.name, component, acts_here)
                attachment.handles.append(handle)


def _attached(
    attachment: Attachment,
    model: torch.nn.Module,
    name: str,
    component: str,
    acts_here: Callable[[], bool],
) -> Any:
    place, is_input = component_module(model, component)

    def hook(module: torch.nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> None:
        run = attachment.run
        if is_half_registered(kwargs) or module is not place or not acts_here():
            return
        tokens = None if run is None else run.tracker.current
        if run is None or tokens is None or (openings := run.openings.get(name)) is None:
            return
        found = (take_input(args, kwargs) if is_input else take_output(output))[0]
        openings.see(component, as_batch(found, tokens, component), tokens)

    register = place.register_forward_pre_hook if is_input else place.register_forward_hook
    return register(hook, with_kwargs=True)
