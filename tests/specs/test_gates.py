"""Gates as files declare them: read, refused with what was expected, and written back."""

from __future__ import annotations

from typing import Any

import pytest

from subvene.specs import SpecError, dump_spec, parse_spec, spec_of
from subvene.specs.gates import ORDER, comes_before
from subvene.specs.sites import SITES

STEER = {"kind": "steering", "layer": 3, "vector": {"file": "v.safetensors", "key": "v"}, "coefficient": 2.0}
GATE = {"measure": "projection", "vector": {"file": "c.safetensors", "key": "c"}, "layer": 2, "above": 0.5}


def spec(**fields: Any) -> Any:
    return spec_of({"subvene": 1, "model": {"name": "m"}, "interventions": [STEER | fields]})


def test_every_site_has_its_place_in_the_order() -> None:
    assert {site for sites in ORDER for site in sites} == set(SITES)
    assert comes_before("block_output", 2, "block_input", 3)
    assert comes_before("mlp_output", 3, "mlp_output", 3)
    assert not comes_before("key", 3, "query", 3)
    assert not comes_before("block_output", 3, "mlp_output", 3)


def test_a_gate_reads_back_as_it_was_written() -> None:
    when = {"all": [GATE | {"decide": "token", "ramp": 0.1}, {"not": {"any": [GATE | {"must_open": True}]}}]}
    declared = spec(when=when, during={"from": 1, "to": 9, "decay": 0.5, "max_tokens": 4})
    assert parse_spec(dump_spec(declared)) == declared
    assert [loc for loc, _ in declared.tensor_refs()] == [
        ("interventions", 0, "vector"),
        ("interventions", 0, "when", "all", 0, "vector"),
        ("interventions", 0, "when", "all", 1, "not", "any", 0, "vector"),
    ]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "late": ({"when": GATE | {"layer": 4}}, r"when.layer: expected a place that the model computes before"),
    "later in its block": (
        {"site": "mlp_output", "when": {"all": [GATE | {"layer": 3}]}},
        r"when.all\[0\].layer: expected a place that .* before mlp_output\[3\].* found block_output\[3\]",
    ),
    "both sides": ({"when": GATE | {"below": 1.0}}, r"when.below: expected `above` or `below`, not both"),
    "no threshold": (
        {"when": {"measure": "norm", "layer": 1}},
        r"above: expected `above` or `below`, a finite number",
    ),
    "mean of a token": (
        {"when": GATE | {"tokens": "mean", "decide": "token"}},
        r"when.tokens: expected `last`, since the mean is the prompt's",
    ),
    "unknown": ({"when": GATE | {"measure": "projecton"}}, r"measure: .*did you mean 'projection'\?"),
    "nothing": ({"when": {"any": []}}, r"when.any: expected a non-empty list of gates"),
    "of the prompt": (
        {"positions": "prompt", "during": {"to": 3}},
        r"positions: expected positions that reach the response",
    ),
    "empty": ({"during": {}}, r"during: expected a mapping with `from`, `to`, `decay` or `max_tokens`"),
    "backwards": ({"during": {"from": 4, "to": 4}}, r"during.to: expected an integer above `from`, 4"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        spec(**fields)


def test_a_gate_without_a_file_or_a_fit_is_refused_as_any_tensor() -> None:
    with pytest.raises(SpecError, match=r"when.vector.file: expected `file`, since this file has no `fit:`"):
        spec(when=GATE | {"vector": {"key": "c"}})


def test_an_engine_takes_no_gate() -> None:
    evaluate = [{"kind": "samples", "prompts": ["hello"], "seeds": [0]}]
    fields = {"subvene": 1, "model": {"name": "m"}, "engine": "vllm", "evaluate": evaluate}
    with pytest.raises(SpecError, match=r"when: expected none beside `engine`, which carries out no `when`"):
        spec_of(fields | {"interventions": [STEER | {"when": GATE}]})
