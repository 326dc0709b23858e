"""Samples: all coefficients in one batch, and each row what that coefficient alone would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from subvene.runner import IntervenedModel
from subvene.runner.measures.samples import run_samples
from subvene.specs import SamplesSpec

PROMPTS = ["hello world", "tell me about the train", "how are you"]
COEFFICIENTS = [-2.0, 0.0, 2.0]


def spec_of(**fields: Any) -> SamplesSpec:
    given = {"coefficients": COEFFICIENTS, "prompts": PROMPTS, "max_new_tokens": 6} | fields
    return SamplesSpec.model_validate(given)


@pytest.fixture
def m(steer: Path) -> IntervenedModel:
    return IntervenedModel.from_spec(steer)


def answers(result: dict[str, Any], coefficient: float) -> list[str]:
    return [record["response"] for record in result["records"] if record["coefficient"] == coefficient]


def test_one_generate_call_for_all_coefficients(
    m: IntervenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    generate = m.model.generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["input_ids"].shape[0])
        return generate(*args, **kwargs)

    monkeypatch.setattr(m.model, "generate", counted)
    result = run_samples(m, spec_of(), tmp_path)
    assert calls == [9]
    assert [(r["prompt"], r["coefficient"]) for r in result["records"]] == [
        (prompt, c) for prompt in PROMPTS for c in COEFFICIENTS
    ]


def test_coefficient_0_is_the_disabled_model(m: IntervenedModel, tmp_path: Path) -> None:
    result = run_samples(m, spec_of(), tmp_path)
    with m.disabled():
        baseline = m.generate(PROMPTS, max_new_tokens=6, do_sample=False)
    assert answers(result, 0.0) == baseline
    assert all(answers(result, 0.0))


def test_each_coefficient_is_what_it_is_alone(m: IntervenedModel, tmp_path: Path) -> None:
    result = run_samples(m, spec_of(), tmp_path)
    for c in COEFFICIENTS:
        for prompt, response in zip(PROMPTS, answers(result, c), strict=True):
            assert m.generate(prompt, strengths=c, max_new_tokens=6, do_sample=False) == [response]
    assert len({tuple(answers(result, c)) for c in COEFFICIENTS}) == 3


def test_it_is_greedy_whatever_the_model_says(m: IntervenedModel, tmp_path: Path) -> None:
    greedy = run_samples(m, spec_of(), tmp_path)["records"]
    m.model.generation_config.do_sample = True
    m.model.generation_config.temperature = 50.0
    assert run_samples(m, spec_of(), tmp_path)["records"] == greedy


def test_the_receipt(m: IntervenedModel, tmp_path: Path) -> None:
    result = run_samples(m, spec_of(max_new_tokens=4), tmp_path)
    assert result["kind"] == "samples"
    (receipt,) = result["receipt"]
    assert receipt["name"] == "glad"
    assert list(receipt["strengths"]) == COEFFICIENTS * 3
    assert (receipt["rows"], receipt["rows_edited"]) == (9, 6)
    # The last token that is written has not been through the model.
    assert receipt["edited"] == {"prompt": 0, "cursor": 6, "response": 6 * 3}


def test_max_new_tokens(m: IntervenedModel, tmp_path: Path) -> None:
    short, long = (run_samples(m, spec_of(max_new_tokens=n), tmp_path)["records"] for n in (2, 6))
    for one, other in zip(short, long, strict=True):
        assert other["response"].startswith(one["response"])
        assert len(one["response"].split()) <= 2
    assert max(len(record["response"].split()) for record in long) > 2
