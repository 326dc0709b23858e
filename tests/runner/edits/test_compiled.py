"""Decoding steps that transformers compiles, with edits: traced once, equal to uncompiled ones, receipts too.

The backend runs what was traced as it stands: what is tested is the trace, and a compiler takes minutes.
"""

from __future__ import annotations

from typing import Any

import operations
import pytest
import torch
from made_models import made, prompts
from torch._dynamo.testing import CompileCounter
from transformers import CompileConfig

from subvene.runner import IntervenedModel
from subvene.runner.edits.refusals import CompiledModelError
from subvene.specs.interventions import REGISTRY as SPECS

NEW = 6
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}


@pytest.fixture(scope="module")
def model() -> Any:
    return made("tiny", num_hidden_layers=2)


@pytest.fixture
def counter() -> CompileCounter:
    return CompileCounter()


def compiled_by(counter: CompileCounter) -> dict[str, Any]:
    """What asks transformers for a compiled step in one piece: a break in the graph would be an error."""
    config = CompileConfig(backend=counter, mode=None, fullgraph=True)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def run(m: IntervenedModel, rows: int = 2, **options: Any) -> tuple[list[list[int]], Any]:
    answers = m.generate_ids(**prompts(rows, 5), **GREEDY | options)
    return torch.as_tensor(answers).tolist(), m.receipt


def assert_alike(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert (ours.edited, ours.changed, ours.calls, ours.first, ours.last) == (
            theirs.edited,
            theirs.changed,
            theirs.calls,
            theirs.first,
            theirs.last,
        )
        assert ours.mean_relative == pytest.approx(theirs.mean_relative, rel=1e-5)
        assert ours.max_relative == pytest.approx(theirs.max_relative, rel=1e-5)


def declared(kind: str, **fields: Any) -> Any:
    example = next(iter(SPECS[kind].examples.values()))
    return SPECS[kind].model_validate({"kind": kind, **example, "positions": "response", **fields})


def test_one_graph_serves_all_strengths_and_runs(model: Any, counter: CompileCounter) -> None:
    m = operations.intervened(model, operations.steering([0, 1]))
    before = sum(len(module._forward_hooks) for module in model.modules())
    for strength in (1.0, 3.0, [2.0, -2.0], 0.0):
        strengths = {"at_0": strength, "at_1": 0.5}
        assert_alike(
            run(m, strengths=strengths, **compiled_by(counter)),
            run(m, strengths=strengths),
        )
    assert counter.frame_count == 1
    assert sum(len(module._forward_hooks) for module in model.modules()) == before
    assert "get_compiled_call" not in vars(model)


def test_kinds_are_traced_together(model: Any, counter: CompileCounter) -> None:
    kinds = ("head_direction", "capping", "ablation", "low_rank_edit", "scaling", "affine")
    m = operations.intervened(model, [declared(kind, name=kind) for kind in kinds])
    assert_alike(run(m, **compiled_by(counter)), run(m))
    assert counter.frame_count == 1


def test_rows_that_end_and_rules_that_stop_are_followed(model: Any, counter: CompileCounter) -> None:
    edits = [
        *operations.steering([0], coefficient=0.01),
        declared("steering", name="early", layer=1, positions={"first": 2, "of": "response"}),
        declared("steering", name="prompt", layer=0, positions="prompt"),
    ]
    m = operations.intervened(model, edits)
    free, _ = run(m)
    first, second = (row[-NEW:] for row in free)
    end = next(token for token in first if first.index(token) < [*second, token].index(token))
    ends = {"eos_token_id": end, "pad_token_id": 0, "min_new_tokens": 0}
    found, expected = run(m, **ends, **compiled_by(counter)), run(m, **ends)
    assert_alike(found, expected)
    assert found[1][0].edited["response"] < 2 * (NEW - 1)  # a row has ended
    assert counter.frame_count == 1


def test_half_precision(counter: CompileCounter) -> None:
    m = operations.intervened(
        made("tiny", num_hidden_layers=2, dtype=torch.bfloat16), operations.steering([1])
    )
    assert_alike(run(m, **compiled_by(counter)), run(m))


def test_the_untouched_model_and_other_edits_are_not_caught_in_the_graph(
    model: Any, counter: CompileCounter
) -> None:
    one, other = (operations.intervened(model, operations.steering([layer])) for layer in (0, 1))
    plain = model.generate(**prompts(2, 5), **GREEDY).tolist()
    assert_alike(run(one, **compiled_by(counter)), run(one))
    assert model.generate(**prompts(2, 5), **GREEDY, **compiled_by(counter)).tolist() == plain
    assert_alike(run(other, **compiled_by(counter)), run(other))
    assert_alike(run(one, **compiled_by(counter)), run(one))


def test_what_cannot_be_compiled_is_refused_by_name(model: Any, counter: CompileCounter) -> None:
    m = operations.intervened(model, [declared("noise")])
    with pytest.raises(CompiledModelError, match="depends on where tokens stand"):
        run(m, **compiled_by(counter))
    m = operations.intervened(model, operations.steering([1]))
    with pytest.raises(CompiledModelError, match="beams trade places"):
        run(m, num_beams=2, **compiled_by(counter))
    with pytest.raises(CompiledModelError, match="output_hidden_states"):
        run(m, output_hidden_states=True, **compiled_by(counter))
    assert counter.frame_count == 0
    with pytest.raises(CompiledModelError, match="attached"), m.attached():
        model.generate(**prompts(1, 5), **GREEDY, **compiled_by(counter))
