"""The published checks on a real model: SmolLM2-135M-Instruct and a shipped trait."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import hooks

from subvene.runner import IntervenedModel
from subvene.runner.data.span import Text
from subvene.runner.data.text import prompt_ids
from subvene.runner.data.traits import Trait, read_trait
from subvene.runner.intervened.layer_sweep import panel, strengths_at
from subvene.runner.intervened.rollouts import Rollout, Row, rollouts
from subvene.runner.judges import ZERO_TO_HUNDRED, make_judge
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.monitor.projection import project
from subvene.runner.recipes.persona import extract, named_tensors, vectors_of
from subvene.specs import PersonaSpec, SteeringSpec, TrainedJudgeSpec

pytestmark = [pytest.mark.slow, pytest.mark.long]

LAYER = 18
QUESTIONS = 6


@pytest.fixture(scope="module")
def trait() -> Trait:
    return read_trait("apathetic", Path())


@pytest.fixture(scope="module")
def fitted(smollm2: tuple[Any, Any], trait: Trait) -> tuple[IntervenedModel, dict[str, torch.Tensor]]:
    """The vectors of a small extraction, judged by the shipped judge, and a model steered by them."""
    plain = IntervenedModel.plain(*smollm2)
    spec = PersonaSpec.model_validate(
        {
            "traits": ["apathetic"],
            "questions": 3,
            "instructions": 3,
            "sampling": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 32},
        }
    )
    judge = make_judge(TrainedJudgeSpec(), Path(), scale=ZERO_TO_HUNDRED).with_model(plain)
    extraction = extract(spec, trait, plain, judge, seed=0, do=lambda identity, work: work())
    assert 0 < len(extraction.kept) < len(extraction.pairs)
    found = vectors_of(spec, trait, extraction, Anatomy.of(plain.model), plain.tokenizer)
    return plain, named_tensors(trait, found)


def steered(fitted: tuple[IntervenedModel, dict[str, torch.Tensor]], positions: Any) -> IntervenedModel:
    plain, tensors = fitted
    steering = SteeringSpec.model_validate(
        {"layer": LAYER, "vector": {"key": "apathetic"}, "coefficient": 0.3, "unit": "residual_norm"}
        | {"positions": positions}
    )
    return panel(steering, [LAYER], tensors, plain)


def test_projections_are_ordered_on_held_out_questions(
    fitted: tuple[IntervenedModel, dict[str, torch.Tensor]], trait: Trait
) -> None:
    """Baseline < prompted and baseline < steered, read by the unedited model."""
    m = steered(fitted, "response")
    plain, tensors = fitted
    systems = trait.system_prompts()
    rows: dict[str, list[Row]] = {"baseline": [], "prompted": [], "steered": []}
    for i, question in enumerate(trait.evaluation[:QUESTIONS]):
        asked = Row(tuple(prompt_ids(m.tokenizer, question)), i, {}, 0.7, 0.9, 32)
        rows["baseline"].append(asked)
        system = systems[i % len(systems)][0]
        rows["prompted"].append(
            replace(asked, prompt=tuple(prompt_ids(m.tokenizer, question, system=system)))
        )
        rows["steered"].append(replace(asked, strengths=strengths_at((LAYER, 0.3))))
    found, receipts = rollouts(m, [row for condition in rows.values() for row in condition])
    assert sum(receipt[0].edited["response"] for receipt in receipts) > 0
    vectors = {"apathetic": {LAYER: tensors[f"apathetic.block_output[{LAYER}]"]}}
    texts = [
        text(row, rollout) for row, rollout in zip([r for c in rows.values() for r in c], found, strict=True)
    ]
    values = project(plain, texts, vectors).before["apathetic"][LAYER].view(3, QUESTIONS).mean(1)
    baseline, prompted, steered_ = values.tolist()
    assert baseline < prompted
    assert baseline < steered_


def text(row: Row, rollout: Rollout) -> Text:
    return Text((*row.prompt, *rollout.tokens), len(row.prompt), len(row.prompt) + len(rollout.tokens))


@pytest.mark.parametrize("positions", ["all", "prompt", "response"])
def test_what_is_edited(
    fitted: tuple[IntervenedModel, dict[str, torch.Tensor]], trait: Trait, positions: str
) -> None:
    """The receipt's counts are the rule's, row by row; a coefficient of 0 is the untouched model."""
    m = steered(fitted, positions)
    questions = trait.evaluation[:3]
    asked = [Row(tuple(prompt_ids(m.tokenizer, q)), 0, {}, 0.0, 1.0, 8) for q in questions]
    edited = [replace(row, strengths=strengths_at((LAYER, 0.3))) for row in asked]
    found, receipts = rollouts(m, [*asked, *edited])
    with m.disabled():
        plain, _ = rollouts(m, asked)
    assert found[:3] == plain
    counts = {role: sum(one[0].edited[role] for one in receipts) for role in ("prompt", "cursor", "response")}
    before = sum(len(row.prompt) - 1 for row in edited)
    # The last token of a response is not passed on, unless the model went on to end it.
    after = sum(len(one.tokens) - (not one.ended) for one in found[3:])
    assert counts == {
        "prompt": 0 if positions == "response" else before,
        "cursor": 3,
        "response": 0 if positions == "prompt" else after,
    }
    assert found[3:] != plain


def test_hooks_are_gone_after_an_exception(
    fitted: tuple[IntervenedModel, dict[str, torch.Tensor]], trait: Trait, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = steered(fitted, "response")
    row = Row(tuple(prompt_ids(m.tokenizer, trait.evaluation[0])), 0, strengths_at((LAYER, 0.3)), 0.0, 1.0, 4)
    expected, _ = rollouts(m, [row])
    before = hooks(m.model)  # transformers leaves some of its own where hidden states were asked for

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(m.model.model.layers[LAYER + 1], "forward", failing)
        with pytest.raises(RuntimeError, match="in the middle"):
            rollouts(m, [row])
    assert hooks(m.model) == before
    assert rollouts(m, [row])[0] == expected
