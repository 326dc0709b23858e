"""Low-rank edits: o ← o + Σ_r ⟨a_r, o⟩·b_r, b zero outside the written heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kind_cases import O_PROJ, Case

from subvene.interventions import LowRankEditIntervention, Sizes, TensorError
from subvene.interventions._pyvene import pyvene
from subvene.specs import LowRankEditSpec

GENERATOR = torch.Generator().manual_seed(0)
A = torch.randn(3, 32, generator=GENERATOR)
B = torch.randn(3, 32, generator=GENERATOR)
NAME = "edit.attention_heads[1]"
STORED = {f"{NAME}.a": A, f"{NAME}.b": B}

CASES = [
    Case(
        "low_rank_edit",
        O_PROJ,
        lambda **kw: LowRankEditIntervention(A, B, **kw),
        lambda h: sum((h * A[r].double()).sum(-1, keepdim=True) * B[r].double() for r in range(3)),
    )
]


def spec(**fields: Any) -> LowRankEditSpec:
    default = {"layer": 1, "write_heads": (1, 3), "rank": 3, "factors": {"key": "edit"}}
    return LowRankEditSpec(**default | fields)


def build(tensors: Any, sizes: Sizes, **fields: Any) -> LowRankEditIntervention:
    ((site, layer, edit),) = LowRankEditIntervention.build(spec(**fields), tensors, sizes)
    assert (site, layer) == ("attention_heads", 1)
    return edit


def within(heads: Any) -> torch.Tensor:
    return torch.tensor([float(heads == "all" or i // 8 in heads) for i in range(32)])


@pytest.mark.parametrize("write", ["all", (1, 3), (0,)])
@pytest.mark.parametrize("read", ["all", (2,)])
def test_sum_over_rank_within_the_heads(
    table: Callable[..., Any], sizes: Sizes, write: Any, read: Any
) -> None:
    edit = build(table(**STORED), sizes, write_heads=write, read_heads=read, strength=0.5)
    h = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = (A * within(read)).double(), (B * within(write)).double()
    expected = h.clone()
    for row in range(2):
        for token in range(5):
            for r in range(3):
                expected[row, token] += 0.5 * torch.dot(a[r], h[row, token]) * b[r]
    torch.testing.assert_close(edit(h), expected, rtol=1e-9, atol=1e-9)
    outside = within(write) == 0
    assert torch.equal(edit(h)[..., outside], h[..., outside])


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_training_stays_within_the_heads(table: Callable[..., Any], sizes: Sizes, optimizer: Any) -> None:
    edit = build(table(), sizes, factors=None, read_heads=(0, 2), rank=2)
    start = edit.a.detach().clone()
    optimiser = optimizer(edit.parameters(), lr=0.1, weight_decay=0.1)
    h = torch.randn(2, 5, 32)
    for _ in range(3):
        optimiser.zero_grad()
        edit(h).square().sum().backward()
        optimiser.step()
    assert edit.b.detach()[:, within((1, 3)) == 1].any()
    assert not torch.equal(edit.a.detach() * within((0, 2)), start * within((0, 2)))
    outside = within((1, 3)) == 0
    assert torch.equal(edit(h)[..., outside], h[..., outside])
    other_heads = h + torch.randn(32) * (within((0, 2)) == 0)
    assert torch.allclose(edit(h) - h, edit(other_heads) - other_heads, atol=1e-5)
    stored = edit.stored("edit", "attention_heads", 1)
    assert not stored[f"{NAME}.b"][:, outside].any()
    assert not stored[f"{NAME}.a"][:, within((0, 2)) == 0].any()


def test_factors_are_trained_in_float32(table: Callable[..., Any], sizes: Sizes) -> None:
    edit = build(table(), sizes, factors=None)
    assert {name for name, p in edit.named_parameters() if p.requires_grad} == {"a", "b"}
    h = torch.randn(2, 5, 32).to(torch.bfloat16)
    edit(h).float().square().sum().backward()
    assert edit.b.dtype == edit.b.grad.dtype == torch.float32


@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_weight_update_of_the_output_projection(
    table: Callable[..., Any], llama: Callable[..., Any], sizes: Sizes, bias: bool
) -> None:
    model = llama()
    projection = model.model.layers[1].self_attn.o_proj
    assert projection.in_features == 32 != model.config.hidden_size
    if bias:
        projection.bias = torch.nn.Parameter(torch.randn(24))
    edit = build(table(**STORED), sizes, strength=0.3)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    component = "model.layers[1].self_attn.o_proj.input"
    edited = pyvene.IntervenableModel([{"component": component, "intervention": edit}], model)
    with torch.no_grad():
        plain = model(ids).logits
        _, output = edited({"input_ids": ids}, unit_locations=None)
        a, b = edit.a, edit.b * edit.write_mask
        weight = projection.weight
        # W ← W + (W·B)·A, with B's columns b_r and A's rows a_r.
        weight += 0.3 * (weight @ b.T) @ a
        updated = model(ids).logits
    assert (updated - plain).abs().max() > 0.1
    torch.testing.assert_close(output.logits, updated, rtol=1e-5, atol=1e-5)


def test_fresh_factors_are_kaiming_and_zero_and_seeded(table: Callable[..., Any], sizes: Sizes) -> None:
    state = torch.random.get_rng_state()
    first = build(table(), sizes, factors=None, rank=8, seed=3)
    again = build(table(), sizes, factors=None, rank=8, seed=3)
    other = build(table(), sizes, factors=None, rank=8, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.a, again.a)
    assert not torch.equal(first.a, other.a)
    assert not first.b.any()
    # Kaiming-uniform with a = √5: U(−1/√fan_in, 1/√fan_in).
    bound = 1 / math.sqrt(32)
    assert first.a.abs().max() <= bound
    assert first.a.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert not first.expects_change
    with torch.no_grad():
        first.b += 1
    assert first.expects_change


def test_fresh_edit_has_a_gradient_to_begin_with(table: Callable[..., Any], sizes: Sizes) -> None:
    edit = build(table(), sizes, factors=None)
    h = torch.randn(1, 4, 32)
    assert torch.equal(edit(h), h)
    edit(h).square().sum().backward()
    written = within((1, 3)) == 1
    assert (edit.b.grad[:, written] != 0).all()
    assert not edit.b.grad[:, ~written].any()


def test_without_a_layer_it_is_every_stored_one(table: Callable[..., Any], sizes: Sizes) -> None:
    stored = {
        f"{key}.attention_heads[{layer}].{part}": torch.full((rank, 32), float(layer))
        for key, layer, rank in (("edit", 2, 1), ("edit", 0, 4), ("other", 1, 2))
        for part in ("a", "b")
    }
    declared = LowRankEditSpec(factors={"key": "edit"}, strength=0.5, positions="response")
    built = LowRankEditIntervention.build(declared, table(**stored), sizes)
    assert [(site, layer) for site, layer, _ in built] == [("attention_heads", 0), ("attention_heads", 2)]
    assert [edit.a.shape[0] for _, _, edit in built] == [4, 1]
    assert {float(edit.strength) for _, _, edit in built} == {0.5}
    assert {edit.positions for _, _, edit in built} == {"response"}
    assert float(built[1][2].b[0, 0]) == 2.0
    none = LowRankEditSpec(factors={"key": "none"})
    with pytest.raises(TensorError, match=r"no factors under the key 'none'; they are stored in pairs"):
        LowRankEditIntervention.build(none, table(**stored), sizes)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{NAME}.a": A}, r"no tensor 'edit.attention_heads\[1\].b'; there is: edit.attention_heads\[1\].a"),
        ({f"{NAME}.a": A[:2], f"{NAME}.b": B[:2]}, r"shape \[2, 32\], expected \[3, 32\]"),
        ({f"{NAME}.a": A, f"{NAME}.b": B[:, :24]}, r"shape \[3, 24\], expected \[3, 32\]"),
        ({f"{NAME}.a": A, f"{NAME}.b": B / 0}, "NaN or infinite"),
    ],
)
def test_tensors_that_do_not_fit(
    table: Callable[..., Any], sizes: Sizes, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(TensorError, match=message):
        build(table(**tensors), sizes)
