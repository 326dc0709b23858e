"""How many operations a decoding step has more than without edits: counted, since a timing proves nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import operations
import pytest
import torch
from dispatched import dispatched, of_a_step
from made_models import made, prompts

from subvene.runner import IntervenedModel
from subvene.specs.interventions import REGISTRY as SPECS

LAYERS = 4
DTYPES = [torch.float32, torch.bfloat16]


@cache
def model(dtype: torch.dtype) -> Any:
    return made("tiny", num_hidden_layers=LAYERS, dtype=dtype)


def step(generate: Any, rows: int, **options: Any) -> float:
    options = {"do_sample": False, **options}
    inputs = prompts(rows, 4)
    return of_a_step(
        lambda n: generate(**inputs, min_new_tokens=n, max_new_tokens=n, **options), short=3, steps=4
    )


def heads() -> list[Any]:
    example = {"directions": {"key": "iti"}, "heads": {i: [0, 2] for i in range(LAYERS)}}
    return [
        SPECS["head_direction"].model_validate(
            {"kind": "head_direction", "positions": "response", "strength": 2.0, **example}
        )
    ]


@pytest.mark.parametrize("dtype", DTYPES)
# The second: rows end by a token, so that what is edited differs from step to step.
@pytest.mark.parametrize(
    ("rows", "options", "rule"),
    [(1, {}, "response"), (1, {}, "all"), (3, {"eos_token_id": [5, 6]}, "response")],
)
def test_additive_edits_cost_three_operations_a_site(
    dtype: torch.dtype, rows: int, options: dict[str, Any], rule: str
) -> None:
    def cost(*layers: int) -> float:
        m = operations.intervened(model(dtype), operations.steering(layers, positions=rule))
        return step(m.generate_ids, rows, **options)

    one, two, every = cost(1), cost(1, 2), cost(*range(LAYERS))
    assert two - one <= 3
    assert every - one <= 3 * (LAYERS - 1)
    # What remains for the step is whatever the sites do not explain.
    assert one - (two - one) - step(model(dtype).generate, rows, **options) <= 8


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_site_is_within_two_operations_of_a_bare_hook(dtype: torch.dtype) -> None:
    plain = step(model(dtype).generate, 1)
    m = operations.intervened(model(dtype), operations.steering([1], normalize="unit"))
    assert step(m.generate_ids, 1) - plain <= 1 + 2
    m = operations.intervened(model(dtype), heads())
    assert step(m.generate_ids, 1) - plain <= 2 * LAYERS + 1


def test_sampling_costs_what_keeps_it_from_drawing_from_nan() -> None:
    options = {"do_sample": True, "top_k": 0}
    m = operations.intervened(model(torch.float32), operations.steering([1]))
    plain = step(model(torch.float32).generate, 1, **options)
    assert step(m.generate_ids, 1, **options) - plain <= 6


@pytest.mark.parametrize("kind", SPECS)
def test_what_a_kind_costs(kind: str) -> None:
    declared = next(one for one in operations.every_kind().values() if one.kind == kind)
    m = operations.intervened(model(torch.float32), [declared])
    # The kind itself, a copy of what it changed, and the largest logit. Noise is drawn token by token.
    most = 14 if kind == "noise" else 10
    assert step(m.generate_ids, 1) - step(model(torch.float32).generate, 1) <= most


def receipt(m: IntervenedModel, tokens: int, rows: int) -> Any:
    inputs = prompts(rows, 4)
    m.generate_ids(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)
    assert m.receipt is not None
    return m.receipt[0]


@pytest.mark.parametrize("limits", [(0, 0), (2**18, 0), (2**18, 2000)])
def test_norms_do_not_depend_on_when_they_are_measured(
    limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    m = operations.intervened(model(torch.bfloat16), heads())
    later = receipt(m, 9, 2)
    monkeypatch.setattr("subvene.runner.edits.norms.AT_ONCE", limits[0])
    monkeypatch.setattr("subvene.runner.edits.norms.KEPT", limits[1])
    assert receipt(m, 9, 2) == later
    assert later.changed == later.tokens == 2 * 9


def test_a_module_that_writes_into_the_edited_activation_changes_no_receipt() -> None:
    m = operations.intervened(model(torch.float32), operations.steering([1]))

    def with_hook(hook: Any) -> Any:
        handle = model(torch.float32).model.layers[2].register_forward_pre_hook(hook)
        try:
            return receipt(m, 6, 1)
        finally:
            handle.remove()

    def into_it(_module: Any, args: Any) -> None:
        args[0].mul_(1000.0)

    assert with_hook(into_it) == with_hook(lambda _module, args: (args[0] * 1000.0, *args[1:]))


def test_a_vector_that_is_written_between_runs_in_whatever_way_is_the_one_that_acts() -> None:
    m = operations.intervened(model(torch.float32), operations.steering([1]))
    before = receipt(m, 6, 1)
    (edit,) = m.intervenable.interventions.values()
    edit.vector.data.mul_(2.0)
    assert receipt(m, 6, 1).mean_relative == pytest.approx(2 * before.mean_relative, rel=1e-3)


def test_the_counter_leaves_out_what_computes_nothing() -> None:
    counts = dispatched(lambda: torch.empty(4).view(2, 2).add_(1.0))
    assert counts == {"aten.add_.Tensor": 1}
