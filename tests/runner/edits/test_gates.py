"""Gates: an edit acts where they are open, the same in generation, in scoring, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gated_by_hand import (
    Opening,
    condition,
    gate,
    gated,
    generated,
    logits_by_hand,
    projected,
    scored,
)
from oracle import NEW, blocks, every_model, responses, steering, tiny

from subvene.runner import NotSteeredError
from subvene.runner.edits.openings import GateError
from subvene.runner.edits.positions import PositionError

# Rows whose cursors read on both sides of 0 in every model, one of a single token among them.
NORM = 4.6  # within the range of norms at block 0 of either model
PROMPTS = ([11, 12, 13, 14, 15, 16, 17], [21, 22, 23, 24], [31], [41, 42], [51, 52, 53], [61, 7, 8, 9, 10])


def _once(h: torch.Tensor, prompt: int) -> float:
    return float(projected(h)[prompt - 1])


def _case(when: Any, during: Any, opening: Callable[[int], Opening]) -> Any:
    fields = {"when": when} if when else {}
    return fields | ({"during": during} if during else {}), opening


def _step(value: float, threshold: float = 0.0) -> float:
    return float(value > threshold)


def _first_open(most: int) -> Callable[[int], Opening]:
    """Open at a row's first so many tokens of the response at which its own reading is above 0."""

    def of_row(prompt: int) -> Opening:
        def opening(h: torch.Tensor, token: int) -> float:
            is_open = [t for t in range(prompt - 1, token + 1) if projected(h)[t] > 0]
            return float(token in is_open[:most])

        return opening

    return of_row


def _mean(h: torch.Tensor, prompt: int) -> float:
    return float(projected((h[1:prompt] if prompt > 1 else h[:1]).mean(0)))


CASES: dict[str, Any] = {
    "once": _case(gate(above=0.0), None, lambda p: lambda h, t: _step(_once(h, p))),
    "below": _case(gate(below=0.0), None, lambda p: lambda h, t: float(_once(h, p) < 0)),
    "ramp": _case(
        gate(above=-1.0, ramp=2.0), None, lambda p: lambda h, t: min(max((_once(h, p) + 1) / 2, 0), 1)
    ),
    "token": _case(gate(above=0.0, decide="token"), None, lambda p: lambda h, t: _step(projected(h)[t])),
    "turn": _case(gate(above=0.0, decide="turn"), None, lambda p: lambda h, t: _step(_once(h, p))),
    "mean": _case(gate(above=0.0, tokens="mean"), None, lambda p: lambda h, t: _step(_mean(h, p))),
    "any": _case(
        {"any": [gate(above=0.3), gate(vector={"key": "d"}, above=0.0, decide="token")]},
        None,
        lambda p: lambda h, t: max(_step(_once(h, p), 0.3), _step(projected(h, 10)[t])),
    ),
    "all": _case(
        {"all": [gate(above=-0.5), gate(vector={"key": "d"}, above=0.0, decide="token")]},
        None,
        lambda p: lambda h, t: min(_step(_once(h, p), -0.5), _step(projected(h, 10)[t])),
    ),
    "not": _case({"not": gate(above=0.0)}, None, lambda p: lambda h, t: 1 - _step(_once(h, p))),
    "norm": _case(
        {"measure": "norm", "layer": 0, "above": NORM, "decide": "token"},
        None,
        lambda p: lambda h, t: _step(float(h[t].norm()), NORM),
    ),
    "cosine": _case(
        gate(measure="cosine", above=0.02, decide="token"),
        None,
        lambda p: lambda h, t: _step(float(torch.cosine_similarity(h[t], condition(), dim=0)), 0.02),
    ),
    "cast": _case(
        gate(measure="cast", above=0.1, decide="token"),
        None,
        lambda p: lambda h, t: _step(_cast(h[t], condition()), 0.1),
    ),
    "probe": _case(
        gate(measure="probe", above=0.6, decide="token"),
        None,
        lambda p: lambda h, t: _step(1 / (1 + math.exp(-float(h[t] @ condition()))), 0.6),
    ),
    "during": _case(None, {"from": 1, "to": 4}, lambda p: lambda h, t: float(1 <= t - p + 1 < 4)),
    "decay": _case(None, {"from": 1, "decay": 0.5}, lambda p: lambda h, t: 0.5 ** (t - p) if t >= p else 0.0),
    "max_tokens": _case(None, {"max_tokens": 2}, lambda p: lambda h, t: float(0 <= t - p + 1 < 2)),
    "max_tokens of open ones": _case(gate(above=0.0, decide="token"), {"max_tokens": 2}, _first_open(2)),
}


def _from(first: int, opening: Opening) -> Opening:
    return lambda h, token: opening(h, token) if token >= first else 0.0


def _cast(h: torch.Tensor, c: torch.Tensor) -> float:
    """As IBM/activation-steering computes it: the projector as a matrix."""
    projector = torch.outer(c, c) / c.dot(c)
    return float(torch.cosine_similarity(h, torch.tanh(projector @ h), dim=0))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("rule", ["response", "all"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generation_scoring_and_edits_by_hand_agree(name: str, rule: str, case: Any) -> None:
    fields, opening = case
    model = tiny(name)
    m = gated(model, steering(rule, **fields))
    turns = [[len(prompt) - 1] for prompt in PROMPTS]
    rows, of_generation = generated(m, PROMPTS, turns=turns)
    receipt = m.receipt[0]
    by_side = {side: scored(m, rows, PROMPTS, side, turns=turns) for side in ("left", "right")}
    for i, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
        is_turn = fields.get("when", {}).get("decide") == "turn"
        of_row = opening(len(prompt))
        own = _from(len(prompt) - 1, of_row) if is_turn else of_row
        by_hand = logits_by_hand(model, row, len(prompt), rule, own).log_softmax(-1)
        steps = slice(len(prompt) - 1, len(row) - 1)
        assert (of_generation[i] - by_hand[steps]).abs().max() <= 1e-5
        for of_scoring in by_side.values():
            assert (of_scoring[i] - by_hand).abs().max() <= 1e-5
    # The case decides something: some tokens that it was asked for are edited.
    assert receipt.gate is not None
    assert 0 < receipt.gate.tokens_opened == receipt.tokens <= receipt.gate.tokens_asked


def test_rows_open_one_by_one_and_the_receipt_counts_them() -> None:
    model = tiny("llama")
    m = gated(model, steering("response", name="steer", when=gate(above=0.0)))
    with m.disabled():
        untouched = responses(m, PROMPTS)
    steered = responses(m, PROMPTS)
    read: list[torch.Tensor] = []
    handle = blocks(model)[0].register_forward_hook(
        lambda _m, _a, out: read.append((out[0] if isinstance(out, tuple) else out)[0, -1])
    )
    for prompt in PROMPTS:
        model(torch.tensor([prompt]), use_cache=False)
    handle.remove()
    is_open = [bool(projected(h) > 0) for h in read]
    assert 0 < sum(is_open) < len(PROMPTS)
    assert [a != b for a, b in zip(untouched, steered, strict=True)] == is_open
    receipt = m.receipt["steer"]
    assert receipt.gate.rows_asked == len(PROMPTS)
    assert receipt.gate.rows_opened == receipt.rows_edited == sum(is_open)
    assert receipt.gate.tokens_asked == len(PROMPTS) * NEW
    assert receipt.tokens == sum(is_open) * NEW
    assert receipt.gate.gates[0].place == "when"
    assert m.receipt.to_dict()[0]["gate"]["rows_opened"] == sum(is_open)


def test_parts_of_a_gate_are_counted_each() -> None:
    m = gated(tiny("llama"), steering("response", when={"any": [gate(above=0.0), gate(below=0.0)]}))
    responses(m, PROMPTS)
    found = m.receipt[0].gate
    assert [node.place for node in found.gates] == ["when", "when.any[0]", "when.any[1]"]
    assert found.gates[0].rows == len(PROMPTS) == found.gates[1].rows + found.gates[2].rows


def test_a_gate_that_stays_closed_is_reported_and_fails_only_if_it_must_open() -> None:
    m = gated(tiny("llama"), steering("response", when=gate(above=1e6)))
    with m.disabled():
        untouched = responses(m, PROMPTS)
    assert responses(m, PROMPTS) == untouched
    assert (m.receipt[0].tokens, m.receipt[0].gate.rows_opened) == (0, 0)
    must = gated(tiny("llama"), steering("response", when=gate(above=1e6, must_open=True)))
    with pytest.raises(NotSteeredError, match=r"`when` must open, and did at none of 36 tokens in 6 rows"):
        responses(must, PROMPTS)
    part = {"any": [gate(above=-1e6), gate(above=1e6, must_open=True)]}
    with pytest.raises(NotSteeredError, match=r"`when.any\[1\]` must open"):
        responses(gated(tiny("llama"), steering("response", when=part)), PROMPTS)


def test_a_schedule_that_no_token_reaches_has_not_steered() -> None:
    m = gated(tiny("llama"), steering("response", during={"from": 50}))
    with pytest.raises(NotSteeredError, match="no position of this run matches"):
        responses(m, PROMPTS)


def test_strength_0_is_the_untouched_model_and_rows_at_0_are_not_asked() -> None:
    m = gated(tiny("llama"), steering("response", when=gate(above=-1e6)))
    with m.disabled():
        untouched = responses(m, PROMPTS)
    assert responses(m, PROMPTS, strengths=0.0) == untouched
    mixed = responses(m, PROMPTS, strengths=[1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    assert mixed[1] == untouched[1]
    assert m.receipt[0].gate.rows_asked == 2


@every_model
def test_a_gate_reads_what_edits_before_it_have_left(name: str) -> None:
    """An edit at the block that is read, declared first or last, moves the reading; the gated one's own does
    not."""
    model = tiny(name)
    first = steering("response", layer=0, coefficient=4.0, name="first")
    when = gate(above=0.0, decide="token")
    for entries in (
        [first, steering("response", when=when, name="gated")],
        [steering("response", when=when, name="gated"), first],
    ):
        m = gated(model, *entries)
        rows, of_generation = generated(m, PROMPTS)
        for i, (prompt, row) in enumerate(zip(PROMPTS, rows, strict=True)):
            expected = _edited_at_0(model, row, len(prompt)).log_softmax(-1)
            steps = slice(len(prompt) - 1, len(row) - 1)
            assert (of_generation[i] - expected[steps]).abs().max() <= 1e-5
    # At its own place it reads what the file puts before it, and nothing of what comes after.
    same = gate(layer=1, above=0.0, decide="token")
    pushed = steering("response", vector={"key": "c"}, coefficient=50.0, name="push")
    opened = gated(model, pushed, steering("response", when=same, name="gated"))
    responses(opened, PROMPTS)
    assert opened.receipt["gated"].gate.tokens_opened == len(PROMPTS) * NEW
    before = gated(model, steering("response", when=same, name="gated"), pushed)
    responses(before, PROMPTS)
    assert before.receipt["gated"].gate.tokens_opened < len(PROMPTS) * NEW


def _edited_at_0(model: Any, row: list[int], prompt: int) -> torch.Tensor:
    from oracle import edited_by_hand, selected, vector

    with edited_by_hand(model, selected("response", prompt, len(row)), 4 * vector(), layer=0):
        return logits_by_hand(model, row, prompt, "response", lambda h, t: float(projected(h)[t] > 0), read=0)


WAYS: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "chunked prefill": {"prefill_chunk_size": 2},
    "several a prompt": {"num_return_sequences": 2, "num_beams": 2},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("decide", ["once", "token"])
def test_every_way_to_generate_reads_the_same(way: dict[str, Any], decide: str) -> None:
    m = gated(tiny("llama"), steering("response", when=gate(above=0.0, decide=decide, ramp=1.0)))
    for prompt in PROMPTS[:2]:
        plain = {"num_beams": 2, "num_return_sequences": 2} if "num_beams" in way else {}
        rows = (
            [prompt] if "prompt_lookup_num_tokens" in way or "prefill_chunk_size" in way else [prompt, [31]]
        )
        expected = responses(m, rows, **plain, use_cache=True)
        opened = m.receipt[0].gate
        assert responses(m, rows, **{"use_cache": True} | way) == expected
        assert m.receipt[0].gate == opened


def test_a_prompt_in_chunks_is_read_whole_for_its_mean() -> None:
    m = gated(tiny("llama"), steering("response", when=gate(above=-5.0, ramp=10.0, tokens="mean")))
    expected = responses(m, PROMPTS[:1])
    assert responses(m, PROMPTS[:1], prefill_chunk_size=2) == expected


def test_edits_of_the_prompt_are_decided_at_its_cursor_or_refused() -> None:
    m = gated(tiny("llama"), steering("all", when=gate(above=0.0)))
    with pytest.raises(GateError, match="a call that does not reach it"):
        responses(m, PROMPTS[:1], prefill_chunk_size=2)


def test_a_run_that_goes_on_from_a_cache_is_refused() -> None:
    m = gated(tiny("llama"), steering("response", when=gate(above=0.0)))
    ids = torch.tensor([PROMPTS[0]])
    out = m(ids, prompt_lengths=[4], use_cache=True)
    with pytest.raises(GateError, match="goes on from a cache"):
        m(ids[:, :1], torch.ones(1, 8), past_key_values=out.past_key_values, prompt_lengths=[4])


def test_calls_of_others_keep_what_was_read() -> None:
    model = tiny("llama")
    m = gated(model, steering("response", when=gate(above=0.0)))
    ids = torch.tensor([[*PROMPTS[0], *range(60, 66)]])
    whole = m(ids, prompt_lengths=[7]).logits
    with m.attached(prompt_lengths=[7]) as attached, torch.no_grad():
        first = attached(ids[:, :9], use_cache=True)
        later = attached(ids[:, 9:], attention_mask=torch.ones(1, 13), past_key_values=first.past_key_values)
    assert (torch.cat([first.logits, later.logits], 1) - whole).abs().max() < 1e-5


def test_turns_are_decided_at_their_own_cursors() -> None:
    model = tiny("llama")
    row = [*range(20, 34)]
    m = gated(model, steering("all", when=gate(above=0.0, decide="turn")))
    turns = [3, 8]

    def opening(h: torch.Tensor, token: int) -> float:
        deciding = [turn for turn in (*turns, 11) if turn <= token]
        return float(bool(deciding) and bool(projected(h)[deciding[-1]] > 0))

    found = scored(m, [row], [row[:12]], "left", turns=[turns])[0]
    expected = logits_by_hand(model, row, 12, "all", opening).log_softmax(-1)
    assert (found - expected).abs().max() < 1e-5
    with pytest.raises(GateError, match="pass turns="):
        scored(m, [row], [row[:12]], "left")
    with pytest.raises(GateError, match="row 0 has 14 tokens, and no position 14"):
        scored(m, [row], [row[:12]], "left", turns=[[14]])


def test_beams_that_would_trade_their_pasts_are_refused() -> None:
    entry = steering("response", when=gate(above=0.0, decide="token"), during={"max_tokens": 2})
    with pytest.raises(GateError, match="beams trade their pasts"):
        responses(gated(tiny("llama"), entry), PROMPTS, num_beams=2)


def test_a_gate_without_prompt_lengths_is_refused() -> None:
    m = gated(tiny("llama"), steering("all", when=gate(above=0.0)))
    with pytest.raises(PositionError, match="where the prompts end"):
        m(torch.tensor([PROMPTS[0]]))
    by_token = gated(tiny("llama"), steering("all", when=gate(above=-1e6, decide="token")))
    by_token(torch.tensor([PROMPTS[0]]))
    assert by_token.receipt[0].tokens == 7
