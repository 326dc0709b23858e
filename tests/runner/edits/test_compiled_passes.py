"""`torch.compile(model)` while attached: traced once, no break, equal to uncompiled calls, receipts too.

The backend runs what was traced as it stands: what is tested is the trace, and a compiler takes minutes.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import operations
import pytest
import torch
from made_models import made
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from subvene.runner import IntervenedModel
from subvene.specs.interventions import REGISTRY as SPECS

IDS = torch.arange(2, 14).view(2, 6)
LENGTHS = [3, 4]


@pytest.fixture(scope="module")
def model() -> Any:
    return made("tiny", num_hidden_layers=2)


@pytest.fixture
def counter() -> Iterator[CompileCounter]:
    counters.clear()
    yield CompileCounter()
    counters.clear()


def run(m: IntervenedModel, ids: torch.Tensor = IDS, backend: Any = None, **options: Any) -> Any:
    """Logits of a call, compiled where there is a backend, and the receipt."""
    lengths = options.pop("prompt_lengths", LENGTHS)
    with torch.no_grad(), m.attached(prompt_lengths=lengths, **options) as attached:
        called = attached if backend is None else torch.compile(attached, backend=backend, dynamic=True)
        logits = called(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return logits, m.receipt


def assert_alike(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=1e-5)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        for name in ("edited", "changed", "calls", "first", "last", "rows_edited", "strengths"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert ours.mean_relative == pytest.approx(theirs.mean_relative, rel=1e-5)
        assert ours.max_relative == pytest.approx(theirs.max_relative, rel=1e-5)


def declared(kind: str, **fields: Any) -> Any:
    example = next(iter(SPECS[kind].examples.values()))
    return SPECS[kind].model_validate({"kind": kind, **example, "positions": "response", **fields})


def test_one_graph_without_a_break_serves_strengths_runs_and_lengths(
    model: Any, counter: CompileCounter
) -> None:
    m = operations.intervened(
        model,
        [*operations.steering([0, 1]), declared("steering", name="prompt", layer=0, positions="prompt")],
    )
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    for strength in (1.0, 3.0, [2.0, -2.0], 0.0):
        strengths = {"at_0": strength, "at_1": 0.5}
        assert_alike(run(m, backend=counter, strengths=strengths), run(m, strengths=strengths))
    for ids in (torch.arange(2, 20).view(2, 9), torch.arange(2, 23).view(3, 7)):
        lengths = [4] * len(ids)
        found = run(m, ids, counter, prompt_lengths=lengths)
        assert_alike(found, run(m, ids, prompt_lengths=lengths))
    assert counter.frame_count == 1
    assert not counters["graph_break"]
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert "forward" not in vars(model)


def test_kinds_are_traced_together(model: Any, counter: CompileCounter) -> None:
    kinds = ("head_direction", "capping", "ablation", "low_rank_edit", "scaling", "affine")
    m = operations.intervened(model, [declared(kind, name=kind) for kind in kinds])
    assert_alike(run(m, backend=counter), run(m))
    assert counter.frame_count == 1
    assert not counters["graph_break"]


def test_each_attachment_has_its_own_graph_and_none_stays(model: Any, counter: CompileCounter) -> None:
    one, other = (operations.intervened(model, operations.steering([layer])) for layer in (0, 1))
    fast = torch.compile(model, backend=counter, dynamic=True)
    with torch.no_grad():
        plain = fast(IDS, use_cache=False).logits
    for m in (one, other, one):
        assert_alike(run(m, backend=counter), run(m))
        with torch.no_grad():
            assert torch.equal(fast(IDS, use_cache=False).logits, plain)
    # And a wrapper that was called before is edited inside.
    with torch.no_grad(), one.attached(prompt_lengths=LENGTHS):
        found = fast(IDS, use_cache=False).logits
        with one.disabled():
            assert torch.equal(fast(IDS, use_cache=False).logits, plain)
    torch.testing.assert_close(found, run(one)[0])


def test_what_no_graph_holds_runs_uncompiled(model: Any, counter: CompileCounter) -> None:
    m = operations.intervened(model, [declared("noise")])
    assert_alike(run(m, backend=counter), run(m))
    assert counter.frame_count == 0


def test_gradients_and_changed_vectors_are_those_of_now(model: Any, counter: CompileCounter) -> None:
    m = operations.intervened(model, operations.steering([1]))
    before = run(m, backend=counter)[0]
    edit = m.intervenable.interventions[m.intervenable.sorted_keys[0]]
    edit.vector.data.mul_(-1)
    after = run(m, backend=counter)[0]
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, run(m)[0])
    assert counter.frame_count == 1
    embeddings = model.get_input_embeddings()(IDS).detach().requires_grad_()
    gradients = []
    for compiled in (True, False):
        with m.attached(prompt_lengths=LENGTHS) as attached:
            called = torch.compile(attached, backend=counter, dynamic=True) if compiled else attached
            called(inputs_embeds=embeddings, use_cache=False).logits.square().sum().backward()
        gradients.append(embeddings.grad.clone())
        embeddings.grad = None
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_a_copy_of_an_attached_model_is_no_part_of_it(model: Any) -> None:
    m = operations.intervened(model, operations.steering([1]))
    with torch.no_grad(), m.attached(prompt_lengths=LENGTHS) as attached:
        other = copy.deepcopy(attached)
        attached(IDS)
        other.lm_head.weight.data.zero_()
        assert not other(IDS).logits.any()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_the_default_compiler(model: Any) -> None:
    m = operations.intervened(model, operations.steering([0, 1]))
    assert_alike(run(m, backend="inductor"), run(m))
