"""Receipts say what happened: counts and norms against brute force, and a run that was not steered fails."""

from __future__ import annotations

import json
from typing import Any

import oracle
import pytest
import torch
from oracle import (
    HEADS,
    LENGTHS,
    MIDDLE,
    PROMPTS,
    WIDTH,
    Watch,
    batch,
    both_models,
    every_rule,
    intervened,
    slots,
    steering,
    tiny,
)

from subvene.runner import NotSteeredError
from subvene.runner.edits.compile import CompileError

NEW = 5


def generate(m: Any, rows: Any = PROMPTS, **settings: Any) -> Any:
    ids, mask = batch(rows, "left")
    return m.generate_ids(ids, mask, **{"max_new_tokens": NEW, "do_sample": False} | settings)


def roles(rule: Any, totals: list[int]) -> dict[str, int]:
    """How many tokens of each role `rule` names in the batch, row by row."""
    found = {"prompt": 0, "cursor": 0, "response": 0}
    for prompt, total in zip(LENGTHS, totals, strict=True):
        for token in oracle.selected(rule, prompt, total):
            found["prompt" if token < prompt - 1 else "cursor" if token == prompt - 1 else "response"] += 1
    return found


@both_models
@every_rule
def test_counts_positions_and_norms_of_a_generation(name: str, rule: Any) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule))
    with Watch(model) as watch:
        generate(m)
    receipt = m.receipt[0]
    totals = [length + NEW - 1 for length in LENGTHS]
    named = [oracle.selected(rule, p, total) for p, total in zip(LENGTHS, totals, strict=True)]
    _, mask = batch(PROMPTS, "left")
    ratios = watch.relative()[slots(mask, rule, LENGTHS, mask.shape[1] + NEW - 1)]
    assert receipt.edited == roles(rule, totals)
    assert receipt.tokens == receipt.changed == sum(map(len, named))
    assert receipt.first == min(min(tokens) for tokens in named)
    assert receipt.last == max(max(tokens) for tokens in named)
    assert receipt.mean_relative == pytest.approx(float(ratios.mean()), rel=1e-4)
    assert receipt.max_relative == pytest.approx(float(ratios.max()), rel=1e-4)
    # A rule that ends with the prompt costs nothing in the decoding steps.
    is_of_the_prompt = rule in ("prompt", "last_prompt_token") or (
        isinstance(rule, dict) and rule["of"] == "prompt"
    )
    assert receipt.calls == (1 if is_of_the_prompt else NEW)
    assert (receipt.rows, receipt.rows_edited) == (3, 3)
    assert (receipt.name, receipt.kind, receipt.sites) == (
        "steering_0",
        "steering",
        (f"block_output[{MIDDLE}]",),
    )
    assert receipt.strengths == (1.0,)
    json.dumps(m.receipt.to_dict())


@both_models
@every_rule
@pytest.mark.parametrize("side", ["left", "right"])
def test_counts_positions_and_norms_of_a_scoring_pass(name: str, rule: Any, side: str) -> None:
    model = tiny(name)
    m = intervened(model, steering(rule, coefficient=-0.5))
    rows = [[*prompt, 51, 52, 53, 54] for prompt in PROMPTS]
    with Watch(model) as watch:
        m(*batch(rows, side), prompt_lengths=LENGTHS)
    receipt = m.receipt[0]
    totals = [len(row) for row in rows]
    named = [oracle.selected(rule, p, total) for p, total in zip(LENGTHS, totals, strict=True)]
    ratios = watch.relative()[watch.changed()]
    assert receipt.edited == roles(rule, totals)
    assert receipt.first == min(min(tokens) for tokens in named)
    assert receipt.last == max(max(tokens) for tokens in named)
    assert receipt.mean_relative == pytest.approx(float(ratios.mean()), rel=1e-4)
    assert receipt.max_relative == pytest.approx(float(ratios.max()), rel=1e-4)
    assert receipt.calls == 1


def test_norms_of_tokens_are_their_own_whatever_the_strengths_of_the_rows() -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    with Watch(model) as watch:
        generate(m, strengths=[2.0, 0.0, -1.0])
    receipt = m.receipt[0]
    assert receipt.strengths == (2.0, 0.0, -1.0)
    assert receipt.rows_edited == 2
    assert receipt.tokens == 7 + 1 + 2 * (NEW - 1)
    assert receipt.max_relative == pytest.approx(float(watch.relative()[watch.changed()].max()), rel=1e-4)
    assert receipt.mean_relative == pytest.approx(float(watch.relative()[watch.changed()].mean()), rel=1e-4)


def test_a_receipt_grows_with_a_long_generation() -> None:
    """More slots than a receipt sets aside at first."""
    config_limit, rule = 64, "response"
    model = tiny("llama")
    model.config.max_position_embeddings = 256
    m = intervened(model, steering(rule))
    new = config_limit + 40
    with Watch(model) as watch:
        generate(m, [[5, 6]], max_new_tokens=new)
    receipt = m.receipt[0]
    assert receipt.edited == {"prompt": 0, "cursor": 1, "response": new - 1}
    assert (receipt.first, receipt.last) == (1, new)
    assert receipt.mean_relative == pytest.approx(float(watch.relative()[watch.changed()].mean()), rel=1e-4)


def test_tokens_that_a_run_takes_back_are_not_counted() -> None:
    model = tiny("llama")
    m = intervened(model, steering("response"))
    ids = torch.arange(11, 19).unsqueeze(0)
    with torch.no_grad(), m.intervenable.attached(oracle.tracker(torch.ones(1, 3, dtype=torch.long))):
        cache = model(ids, use_cache=True).past_key_values
        cache.crop(-3)  # as after a draft of which three tokens were rejected
        model(ids[:, :1], past_key_values=cache)
    assert m.receipt[0].edited == {"prompt": 0, "cursor": 1, "response": 3}
    assert (m.receipt[0].first, m.receipt[0].last) == (2, 5)


def test_a_receipt_is_that_of_the_last_run() -> None:
    m = intervened(tiny("llama"), steering("prompt"))
    assert m.receipt is None
    generate(m, [[5, 6, 7]])
    assert m.receipt[0].tokens == 3
    generate(m, [[5, 6]])
    assert m.receipt[0].tokens == 2
    with m.disabled():
        generate(m, [[5]])
    assert m.receipt is None, "the receipt of the run before would speak for a baseline"


def test_receipts_are_found_by_name_and_place() -> None:
    m = intervened(tiny("llama"), steering("all", name="warm"), steering("prompt", layer=0))
    generate(m)
    assert m.receipt["warm"] is m.receipt[0]
    assert m.receipt["steering_1"] is m.receipt[1]
    assert [r.name for r in m.receipt] == ["warm", "steering_1"]
    with pytest.raises(KeyError, match="warm"):
        m.receipt["cold"]


# What fails a run -----------------------------------------------------------------------------------------


def both_ways(m: Any, rows: Any = PROMPTS) -> list[Any]:
    """Something to call for each way to run, all of which must fail alike."""
    scoring = batch([[*row, 51, 52] for row in rows], "right")
    lengths = [len(row) for row in rows]
    return [lambda: generate(m, rows), lambda: m(*scoring, prompt_lengths=lengths)]


def test_a_zero_vector_is_refused() -> None:
    zero = {f"v.block_output[{MIDDLE}]": torch.zeros(WIDTH)}
    with pytest.raises(CompileError, match=r"'v.block_output\[1\]' is zero everywhere"):
        intervened(tiny("llama"), steering("all"), tensors=zero)


def test_a_vector_that_rounds_away_fails_the_run() -> None:
    tiny_one = {f"v.block_output[{MIDDLE}]": torch.full((WIDTH,), 1e-30)}
    m = intervened(tiny("llama"), steering("all", name="nothing"), tensors=tiny_one)
    for run in both_ways(m):
        with pytest.raises(NotSteeredError, match=r"'nothing'.*changed no activation"):
            run()
        assert m.receipt[0].changed == 0, "the receipt of the failed run says why"
        assert oracle.hooks(m.model) == []
    generate(m, strengths=0.0)


@pytest.mark.parametrize(
    "rule", [{"indices": [9], "of": "prompt"}, {"indices": [-8], "of": "prompt"}], ids=str
)
def test_an_index_beyond_the_prompt_fails_the_run(rule: Any) -> None:
    m = intervened(tiny("llama"), steering(rule))
    for run in both_ways(m):
        with pytest.raises(NotSteeredError, match="edited no token"):
            run()
    m.generate_ids(torch.arange(1, 12).unsqueeze(0), max_new_tokens=2)  # long enough for either index
    assert m.receipt[0].tokens == 1


def test_an_index_beyond_the_response_fails_the_run() -> None:
    m = intervened(tiny("llama"), steering({"indices": [NEW - 1], "of": "response"}))
    with pytest.raises(NotSteeredError, match="edited no token"):
        generate(m)  # the last token of the response is not passed through the model
    generate(m, max_new_tokens=NEW + 1)
    assert m.receipt[0].edited == {"prompt": 0, "cursor": 0, "response": 3}


def test_an_edit_that_rounds_away_in_bfloat16_fails_the_run() -> None:
    model = tiny("llama").to(torch.bfloat16)
    baseline = intervened(model, steering("all"))
    with Watch(model) as watch, baseline.disabled():
        for run in both_ways(baseline):
            run()
    h = torch.cat([before.flatten(0, 1) for before, _ in watch.calls]).abs()
    # One coordinate that is nowhere near 0, where bfloat16 would resolve any number.
    one = torch.nn.functional.one_hot(h[h.sum(1) > 0].amin(0).argmax(), WIDTH).float()
    m = intervened(model, steering("all", coefficient=1e-5), tensors={f"v.block_output[{MIDDLE}]": one})
    for run in both_ways(m):
        with pytest.raises(NotSteeredError, match="too small for the model's dtype"):
            run()
    generate(m, strengths=1.0)
    assert m.receipt[0].changed == m.receipt[0].tokens
    model.float()
    generate(m)  # in float32 the same edit is none too small


def test_one_intervention_of_several_that_does_nothing_fails_the_run() -> None:
    m = intervened(tiny("llama"), steering("all"), steering({"indices": [40], "of": "prompt"}, name="late"))
    with pytest.raises(NotSteeredError, match="'late'") as raised:
        generate(m)
    assert "steering_0" not in str(raised.value)


def test_a_run_in_which_nothing_is_called_fails() -> None:
    m = intervened(tiny("llama"), steering("all"))
    mask = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(NotSteeredError), m.intervenable.attached(oracle.tracker(mask)):
        pass
    with m.intervenable.attached(oracle.tracker(mask), {"steering_0": 0.0}):
        pass


# Order ----------------------------------------------------------------------------------------------------

LOW_RANK = {"kind": "low_rank_edit", "layer": MIDDLE, "write_heads": "all", "factors": {"key": "e"}}
ADDITIVE = steering("response") | {"site": "attention_heads"}


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    a, b = (torch.randn(1, WIDTH, generator=generator) for _ in range(2))
    site = f"attention_heads[{MIDDLE}]"
    return {f"v.{site}": oracle.vector(), f"e.{site}.a": a, f"e.{site}.b": b}


@both_models
@pytest.mark.parametrize("additive_first", [True, False])
def test_interventions_at_one_site_act_in_the_files_order(name: str, additive_first: bool) -> None:
    """⟨a, o + v⟩ is not ⟨a, o⟩: an edit sees what the one before it did."""
    model, tensors = tiny(name), _tensors()
    site = f"attention_heads[{MIDDLE}]"
    v, a, b = tensors[f"v.{site}"], tensors[f"e.{site}.a"][0], tensors[f"e.{site}.b"][0]
    entries = [ADDITIVE, LOW_RANK] if additive_first else [LOW_RANK, ADDITIVE]
    m = intervened(model, *entries, tensors=tensors)
    row, prompt = [11, 12, 13, 14, 15, 51, 52], 5
    named = torch.tensor(
        [token in oracle.selected("response", prompt, len(row)) for token in range(len(row))]
    )

    def add(o: torch.Tensor) -> torch.Tensor:
        return o + named.unsqueeze(-1) * v

    def low_rank(o: torch.Tensor) -> torch.Tensor:
        return o + (o @ a).unsqueeze(-1) * b

    def hook(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        o = low_rank(add(args[0])) if additive_first else add(low_rank(args[0]))
        return (o, *args[1:])

    block = oracle.blocks(model)[MIDDLE]
    projection = block.self_attn.o_proj if name == "llama" else block.attn.c_proj
    with torch.no_grad():
        found = m(torch.tensor([row]), prompt_lengths=[prompt]).logits
        handle = projection.register_forward_pre_hook(hook)
        by_hand = model(torch.tensor([row])).logits
        handle.remove()
    torch.testing.assert_close(found, by_hand, atol=1e-4, rtol=1e-4)
    assert [r.kind for r in m.receipt] == [entry["kind"] for entry in entries]
    assert m.receipt["steering_0" if additive_first else "steering_1"].tokens == 3
    assert m.receipt["low_rank_edit_1" if additive_first else "low_rank_edit_0"].tokens == len(row)


def test_the_order_matters_in_that_test() -> None:
    tensors = _tensors()
    row = torch.tensor([[11, 12, 13, 14, 15, 51, 52]])
    orders = [
        intervened(tiny("llama"), *e, tensors=tensors) for e in ([ADDITIVE, LOW_RANK], [LOW_RANK, ADDITIVE])
    ]
    with torch.no_grad():
        one, other = (m(row, prompt_lengths=[5]).logits for m in orders)
    assert (one - other).abs().max() > 0.01


def test_one_intervention_at_several_layers_is_measured_at_each() -> None:
    generator = torch.Generator().manual_seed(2)
    directions = {
        f"iti.attention_heads[{layer}]": torch.randn(HEADS, WIDTH // HEADS, generator=generator)
        for layer in (0, 2)
    }
    entry = {"kind": "head_direction", "directions": {"key": "iti"}, "strength": 2.0, "positions": "response"}
    model = tiny("llama")
    m = intervened(model, entry, tensors=directions)
    ratios: list[torch.Tensor] = []
    handles = []
    for layer in (0, 2):
        v = directions[f"iti.attention_heads[{layer}]"].flatten()

        def seen(_module: Any, args: tuple[torch.Tensor, ...], v: torch.Tensor = v) -> None:
            ratios.append(2.0 * v.norm() / args[0][0].norm(dim=-1)[-1:])

        # Older than the run's hook, so it sees the activation before the edit.
        handles.append(oracle.blocks(model)[layer].self_attn.o_proj.register_forward_pre_hook(seen))
    generate(m, [PROMPTS[0]])
    for handle in handles:
        handle.remove()
    receipt = m.receipt[0]
    assert receipt.sites == ("attention_heads[0]", "attention_heads[2]")
    assert receipt.calls == 2 * NEW
    assert receipt.tokens == NEW, "tokens at each site, not the sum over sites"
    assert receipt.mean_relative == pytest.approx(float(torch.cat(ratios).mean()), rel=1e-4)
    assert receipt.max_relative == pytest.approx(float(torch.cat(ratios).max()), rel=1e-4)


def test_a_cap_that_nothing_exceeds_does_not_fail_the_run() -> None:
    entry = {
        "kind": "capping",
        "site": "block_output",
        "layer": MIDDLE,
        "direction": {"key": "v"},
        "max": 1e6,
    }
    m = intervened(tiny("llama"), entry)
    generate(m)
    assert (m.receipt[0].changed, m.receipt[0].max_relative) == (0, 0.0)
    assert m.receipt[0].tokens > 0


# --- self-monitored strength

ADAPTIVE = {
    "kind": "head_direction",
    "name": "iti",
    "directions": {"key": "iti"},
    "strength": 3.0,
    "adaptive": "one_minus_p",
}
HEAD_DIM = WIDTH // HEADS


def probed() -> dict[str, torch.Tensor]:
    """Directions of all heads at layer 0, of two heads at layer 2, and probes of every head."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for layer in (0, 2):
        directions = torch.randn(HEADS, HEAD_DIM, generator=generator)
        directions[[0, 3]] *= layer == 0
        tensors |= {
            f"iti.attention_heads[{layer}]": directions,
            f"iti.attention_heads[{layer}].probe_weight": 3
            * torch.randn(HEADS, HEAD_DIM, generator=generator),
            f"iti.attention_heads[{layer}].probe_bias": torch.randn(HEADS, generator=generator),
        }
    return tensors


class Probes:
    """(1 − p) by layer, slot and edited head, read by hooks that are older than the run's."""

    def __init__(self, model: Any, tensors: dict[str, torch.Tensor]) -> None:
        self.seen: dict[int, list[torch.Tensor]] = {0: [], 2: []}
        for layer, heads in ((0, [0, 1, 2, 3]), (2, [1, 2])):
            name = f"iti.attention_heads[{layer}]"
            w, b = tensors[f"{name}.probe_weight"].double(), tensors[f"{name}.probe_bias"].double()

            def see(
                _m: Any, args: Any, layer: int = layer, heads: Any = heads, w: Any = w, b: Any = b
            ) -> None:
                o = args[0].double().unflatten(-1, (HEADS, HEAD_DIM))
                self.seen[layer].append((1 - torch.sigmoid((o * w).sum(-1) + b))[..., heads])

            oracle.blocks(model)[layer].self_attn.o_proj.register_forward_pre_hook(see)

    def mean(self, mask: torch.Tensor, scale: torch.Tensor) -> float:
        """Mean of scale·(1 − p) over the slots of `mask` [rows, slots] and all edited heads."""
        used = [torch.cat(calls, 1) for calls in self.seen.values()]
        return float(torch.cat([(scale[:, None, None] * u)[mask].flatten() for u in used]).mean())


@pytest.mark.parametrize("rule", ["all", "response"])
@pytest.mark.parametrize("strengths", [None, [2.0, 0.0, -1.0]], ids=["one", "by row"])
def test_the_mean_of_a_self_monitored_strength(rule: str, strengths: Any) -> None:
    model, tensors = tiny("llama"), probed()
    probes = Probes(model, tensors)
    m = intervened(model, ADAPTIVE | {"positions": rule}, tensors=tensors)
    generate(m, strengths=strengths)
    _, mask = batch(PROMPTS, "left")
    scale = torch.tensor([3.0] * 3 if strengths is None else strengths, dtype=torch.float64)
    where = slots(mask, rule, LENGTHS, mask.shape[1] + NEW - 1) & (scale != 0)[:, None]
    receipt = m.receipt[0]
    assert receipt.tokens == int(where.sum())
    assert receipt.mean_strength == pytest.approx(probes.mean(where, scale), rel=1e-4)
    assert json.loads(json.dumps(m.receipt.to_dict()))[0]["mean_strength"] == receipt.mean_strength
    if strengths is None:
        assert 0.3 < receipt.mean_strength < 2.7, "neither α nor nothing, or this test shows little"


def test_a_self_monitored_generation_is_what_its_scoring_says() -> None:
    m = intervened(tiny("llama"), ADAPTIVE | {"positions": "response"}, tensors=probed())
    ids, mask = batch(PROMPTS[:1], "left")
    out = m.generate_ids(ids, mask, max_new_tokens=NEW, do_sample=False)
    generated = m.receipt[0].mean_strength
    with torch.no_grad():
        logits = m(out[:, :-1], prompt_lengths=LENGTHS[:1]).logits
    assert torch.equal(logits[:, LENGTHS[0] - 1 :].argmax(-1), out[:, LENGTHS[0] :])
    assert m.receipt[0].mean_strength == pytest.approx(generated, rel=1e-4)


def test_a_self_monitored_strength_of_zero_changes_nothing() -> None:
    m = intervened(tiny("llama"), ADAPTIVE | {"strength": 0.0}, tensors=probed())
    ids, mask = batch(PROMPTS, "left")
    with torch.no_grad():
        edited = m(ids, mask).logits
        assert m.receipt[0].mean_strength is None
        with m.disabled():
            assert torch.equal(edited, m(ids, mask).logits)


def test_probes_that_are_sure_leave_the_run_as_it_is_and_the_receipt_says_so() -> None:
    tensors = probed()
    for layer in (0, 2):
        tensors[f"iti.attention_heads[{layer}].probe_bias"] += 1e4
    m = intervened(tiny("llama"), ADAPTIVE, tensors=tensors)
    generate(m)
    assert (m.receipt[0].changed, m.receipt[0].mean_strength) == (0, 0.0)


def test_a_constant_strength_has_no_mean() -> None:
    m = intervened(tiny("llama"), ADAPTIVE | {"adaptive": "none"}, tensors=probed())
    generate(m)
    assert m.receipt[0].mean_strength is None


def test_a_disabled_run_leaves_no_receipt() -> None:
    ids = torch.tensor([[11, 12, 13]])
    m = oracle.intervened(oracle.tiny("llama"), oracle.steering("all"))
    for run in (m, lambda ids: m.generate_ids(ids, max_new_tokens=2)):
        with torch.no_grad():
            m(ids)
            assert m.receipt is not None
            with m.disabled():
                run(ids)
                assert m.receipt is None
        assert m.receipt is None
