"""What a localization experiment must be like, and what it says when it is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from subvene.specs import ExperimentSpec, LocalizationSpec

VALID: dict[str, Any] = {
    "subvene": 1,
    "model": {"name": "m"},
    "fit": {"recipe": "localized_edit", "key": "e", "data": {"truthfulqa": {}}},
    "interventions": [{"kind": "low_rank_edit", "name": "edit", "factors": {"key": "e"}}],
    "evaluate": [{"kind": "localization"}, {"kind": "truthfulqa"}, {"kind": "divergence"}],
}


def test_the_papers_numbers_are_the_defaults() -> None:
    spec = ExperimentSpec.model_validate(VALID)
    assert spec.asks_localization
    assert not spec.compares_conditions
    asked = spec.evaluate[0]
    assert isinstance(asked, LocalizationSpec)
    assert (asked.random, asked.single, asked.test) == (16, 24, 0.2)
    assert (asked.learning_rate_single, asked.learning_rate_all) == (2e-3, 1e-4)
    assert len(asked.arms) == 7
    by_answers = copy.deepcopy(VALID)
    by_answers["evaluate"][0] = {"kind": "localization", "selection": {"by": "true_info"}}
    ExperimentSpec.model_validate(by_answers)


def change(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        place: Any = data
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return apply


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        (change("fit", "data", to={"file": "x.jsonl"}), "fit.data"),
        (change("fit", "heads", to={"rule": "all"}), "fit.heads"),
        (change("fit", "gate", to="constant"), "fit.gate"),
        (change("fit", "validation", to=None), "fit.validation"),
        (change("fit", to={"recipe": "iti", "key": "e"}), "fit"),
        (change("conditions", to=[{"name": "a"}]), "conditions"),
        (change("folds", to=2), "folds"),
        (change("seeds", to=[1, 2]), "seeds"),
        (change("evaluate", to=[{"kind": "localization"}]), "evaluate"),
        (change("evaluate", 2, to={"kind": "truthfulqa"}), "evaluate.2"),
        (change("evaluate", 2, to={"kind": "samples", "coefficients": [1], "prompts": ["a"]}), "evaluate.2"),
        (change("evaluate", 1, "seeds", to=[0]), "evaluate.1.seeds"),
        (change("evaluate", 0, "random", to=1), "evaluate.0.random"),
        (change("evaluate", 0, "arms", to=["edit_probed", "edit_probed"]), "evaluate.0.arms"),
        (change("evaluate", 0, "tau", to=[0]), "evaluate.0.tau.0"),
        (
            change(
                "evaluate",
                to=[
                    {"kind": "localization", "selection": {"by": "true_info"}},
                    {"kind": "truthfulqa", "measure": ["multiple_choice"]},
                ],
            ),
            "evaluate.0.selection.by",
        ),
        (
            change("evaluate", 0, to={"kind": "localization", "arms": ["edit_probed"], "generate": ["lora"]}),
            "evaluate.0.generate",
        ),
        (
            change("evaluate", 0, to={"kind": "localization", "arms": ["edit_probed"], "explore": ["lora"]}),
            "evaluate.0.explore",
        ),
        (
            change(
                "evaluate", 0, to={"kind": "localization", "generate": [], "selection": {"by": "true_info"}}
            ),
            "evaluate.0.generate",
        ),
        (
            change(
                "evaluate",
                to=[
                    {"kind": "localization", "sequential": {}},
                    {"kind": "truthfulqa", "measure": ["generation"]},
                ],
            ),
            "evaluate.0.sequential",
        ),
        (
            change("evaluate", 0, to={"kind": "localization", "arms": ["iti_matched"]}),
            "evaluate.0.arms",
        ),
        (change("evaluate", 0, "sequential", to={"exceedances": 0}), "evaluate.0.sequential.exceedances"),
        (change("interventions", 0, "layer", to=3), "interventions.0.layer"),
        (change("interventions", 0, "factors", "file", to="t.safetensors"), "interventions.0.factors.file"),
        (
            change(
                "interventions",
                to=[{"kind": "steering", "layer": 1, "coefficient": 1, "vector": {"key": "e"}}],
            ),
            "interventions",
        ),
    ],
)
def test_what_does_not_fit_is_named(flaw: Callable[[dict[str, Any]], None], message: str) -> None:
    data = copy.deepcopy(VALID)
    flaw(data)
    with pytest.raises(ValidationError) as caught:
        ExperimentSpec.model_validate(data)
    places = [".".join(map(str, error["loc"])) for error in caught.value.errors()]
    assert message in places, places


def test_only_ipo_has_a_tau() -> None:
    data = copy.deepcopy(VALID)
    data["fit"]["objective"] = {"kind": "dpo"}
    ExperimentSpec.model_validate(data)
    data["evaluate"][0]["mean"] = {}
    with pytest.raises(ValidationError, match="ipo with `reduction: sum`"):
        ExperimentSpec.model_validate(data)
    data["evaluate"][0] = {"kind": "localization", "tau": [0.1]}
    with pytest.raises(ValidationError, match="only the objective ipo"):
        ExperimentSpec.model_validate(data)
