"""Declared things in words: positions, places, receipts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from subvene.specs import FieldTokens, FirstTokens, LastOf, LastTokens, Positions, SpanTokens

if TYPE_CHECKING:
    from pydantic import JsonValue

    from subvene.runner.edits.gate_receipt import GateRecord
    from subvene.runner.edits.receipt import ReceiptRecord
    from subvene.runner.edits.source_receipt import SourceRecord

_MODES = {
    "all": "every token",
    "prompt": "every prompt token",
    "response": "the last prompt token and every generated token",
    "last_prompt_token": "the last prompt token",
}


def positions_in_words(rule: Positions) -> str:
    """`response` → "the last prompt token and every generated token"."""
    if isinstance(rule, str):
        return _MODES[rule]
    if isinstance(rule, LastOf):
        return f"the last of {positions_in_words(rule.text)}"
    if isinstance(rule, FieldTokens | SpanTokens):
        of = f"the column {rule.field!r}" if isinstance(rule, FieldTokens) else repr(rule.span)
        return f"the prompt tokens of {of}"
    what = "prompt token" if rule.of == "prompt" else "generated token"
    if isinstance(rule, FirstTokens | LastTokens):
        which, count = ("first", rule.first) if isinstance(rule, FirstTokens) else ("last", rule.last)
        words = f"the {which} {what}" if count == 1 else f"the {which} {count} {what}s"
        return words + (" (in scoring only)" if (which, rule.of) == ("last", "response") else "")
    listed = [str(index) for index in rule.indices]
    words = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
    note = ", counted from 0; -1 is the last" if min(rule.indices) < 0 else ", counted from 0"
    return f"{what}{'s' * (len(listed) > 1)} {words}{note}"


def strength_in_words(strength: float | Sequence[float]) -> str:
    """A number, or the numbers of the batch's rows."""
    if isinstance(strength, int | float):
        return f"{strength:g}"
    return f"{', '.join(f'{value:g}' for value in strength)} (one a row)"


def places_in_words(sites: Sequence[str]) -> str:
    """`block_output[18]`, or how many places and between which."""
    return ", ".join(sites) if len(sites) < 4 else f"{len(sites)} sites, {sites[0]} … {sites[-1]}"


def receipt_in_words(written: Mapping[str, JsonValue]) -> str:
    """One intervention's receipt (as `Receipt.to_dict` gives it) in a sentence."""
    receipt = cast("ReceiptRecord", written)
    where = f"{receipt['name']} at {places_in_words(receipt['sites'])}"
    edited = receipt["edited"]
    total = sum(edited.values())
    rows = receipt["rows"]
    if not any(receipt["strengths"]):
        return f"{where}: strength 0, nothing edited"
    if not total:
        gate = receipt.get("gate")
        return f"{where}: edited no token" + (gate_in_words(gate) if gate is not None else "")
    roles = [
        f"{edited['prompt']} prompt",
        f"{edited['cursor']} cursor",
        f"{edited['response']} response",
    ]
    in_rows = "" if rows == 1 else f" in {receipt['rows_edited']} of {rows} rows"
    moved = _moved(receipt["mean_relative"], receipt["max_relative"])
    if receipt["changed"] is not None and receipt["changed"] < total:
        moved += f"; {receipt['changed']} of them changed"
    if receipt.get("mean_strength") is not None:
        moved = f"strength {receipt['mean_strength']:.3g} on average, {moved}"
    span = f"positions {receipt['first']} to {receipt['last']}"
    words = f"{where}: edited {total} tokens{in_rows} ({', '.join(roles)}; {span}), {moved}"
    words += gate_in_words(gate) if (gate := receipt.get("gate")) else ""
    return words + (source_in_words(source) if (source := receipt.get("source")) else "")


def gate_in_words(gate: GateRecord) -> str:
    """What a gate decided, behind the sentence about its intervention."""
    return (
        f"; its gate opened in {gate['rows_opened']} of {gate['rows_asked']} rows and at "
        f"{gate['tokens_opened']} of {gate['tokens_asked']} tokens"
    )


def _moved(mean: float | None, most: float | None) -> str:
    if mean is None:  # of an engine, where others acted at the same place
        return "‖Δ‖ not measured by itself"
    return f"‖Δ‖ {mean:.1%} of ‖h‖ on average" + ("" if most is None else f", at most {most:.1%}")


def source_in_words(source: SourceRecord) -> str:
    """The source side of a receipt, behind the sentence about the base."""
    equal = f"; equal in {source['rows_equal']} of {source['rows_fed']} rows" * bool(source["rows_equal"])
    return (
        f"; read {source['tokens']} tokens of {source['rows']} rows of source {source['name']!r} at "
        f"{source['place']} (positions {source['first']} to {source['last']}), "
        f"{source['mean_distance']:.1%} of ‖base‖ from it on average{equal}"
    )
