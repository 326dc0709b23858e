"""The recipe: which pairs are kept, and that the vectors are those of an independent computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from counting_judge import Counting

from subvene.runner import IntervenedModel
from subvene.runner.data.text import prompt_ids
from subvene.runner.data.traits import Trait
from subvene.runner.measures.responses import Asked, Response
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.fitting import fit
from subvene.runner.recipes.persona import Extraction, extract, vectors_of, why_dropped
from subvene.specs import PersonaSpec, SubveneError


def recipe(**fields: Any) -> PersonaSpec:
    sampling = {"max_new_tokens": 6, "rollouts": 2}
    keep = {"positive": 0, "negative": 100, "coherence": 0}
    defaults = {"recipe": "persona", "traits": ["formal"], "sampling": sampling, "keep": keep}
    return PersonaSpec.model_validate(defaults | fields)


def response(text: str = "a", *, start: int = 0, **fields: Any) -> Response:
    values = {"score": 50.0, "coherence": 90.0, "refused": False, "reason": None} | fields
    return Response(Asked("q"), (5, 6, 7), (8, 9, 10), start, text, True, 0, **values)


def extracted(loaded: Any, trait: Trait, **fields: Any) -> Extraction:
    m = IntervenedModel.plain(*loaded)
    return extract(recipe(**fields), trait, m, Counting(), seed=1, do=lambda identity, work: work())


def test_everything_is_asked_under_both_prompts(loaded: Any, trait: Trait) -> None:
    pairs = extracted(loaded, trait).pairs
    assert len(pairs) == 2 * 3 * 2
    for positive, negative in pairs:
        assert positive.asked.question == negative.asked.question
        assert positive.asked.rollout == negative.asked.rollout
        assert (positive.asked.system, negative.asked.system) in trait.system_prompts()
        assert list(positive.prompt) == prompt_ids(
            loaded[1], positive.asked.question, system=positive.asked.system
        )
    used = {(positive.asked.system, negative.asked.system) for positive, negative in pairs}
    assert len(used) == len(pairs) // len({(p.asked.question, p.asked.rollout) for p, _ in pairs})
    assert len({side.seed for pair in pairs for side in pair}) == 24
    assert extracted(loaded, trait, instructions=1, questions=2).pairs == tuple(
        pair for pair in pairs[:6] if pair[0].asked.question in trait.questions[:2]
    )


def test_units_of_runs_that_counted_missing_verdicts_are_read(loaded: Any, trait: Trait) -> None:
    def recorded(identity: Any, work: Any) -> dict[str, Any]:
        result: dict[str, Any] = work()
        # As before verdicts that are owed were named; a unit that owes some was never recorded.
        return result | {"scores": [score | {"missing": 0} for score in result.get("scores", [])]}

    m = IntervenedModel.plain(*loaded)
    read = extract(recipe(), trait, m, Counting(), seed=1, do=recorded)
    assert read == extracted(loaded, trait)


@pytest.mark.parametrize("tokens", ["response_avg", "prompt_avg", "prompt_avg_all", "prompt_last"])
@torch.no_grad()
def test_vectors_against_hidden_states(loaded: Any, trait: Trait, tokens: str) -> None:
    """Row by row, without padding, from what transformers calls hidden states (block l's is row l + 1)."""
    model, tokenizer = loaded
    found = extracted(loaded, trait)
    spec = recipe(tokens=tokens, batch_size=5)
    kept = Extraction(found.pairs, (0, 3, 4, 9), {}, None)
    vectors = vectors_of(spec, trait, kept, Anatomy.of(model), tokenizer)
    layers = model.config.num_hidden_layers
    last: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda _m, _a, out: last.append(out))
    sums, norms = torch.zeros(2, layers, model.config.hidden_size), torch.zeros(layers)
    for i in kept.kept:
        for sign, side in enumerate(found.pairs[i]):
            prompt = len(side.prompt)
            out = model(torch.tensor([[*side.prompt, *side.tokens]]), output_hidden_states=True)
            states = torch.stack([*(h[0] for h in out.hidden_states[1:-1]), last.pop()[0]])
            span = {
                "response_avg": slice(prompt, None),
                "prompt_avg": slice(1, prompt),
                "prompt_avg_all": slice(0, prompt),
                "prompt_last": slice(prompt - 1, prompt),
            }
            sums[sign] += states[:, span[tokens]].mean(1) / 4
            norms += states[:, prompt:].norm(dim=-1).mean(1) / 8
    torch.testing.assert_close(vectors.vectors, sums[0] - sums[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vectors.residual_norm, norms, atol=1e-5, rtol=1e-4)
    assert vectors.vectors.abs().max() > 1e-2


@torch.no_grad()
def test_reasoning_is_not_averaged(loaded: Any, trait: Trait) -> None:
    model, tokenizer = loaded
    sides = (response(start=1), response(start=2, score=10.0))
    found = vectors_of(recipe(), trait, Extraction((sides,), (0,), {}, None), Anatomy.of(model), tokenizer)
    states = model(torch.tensor([[5, 6, 7, 8, 9, 10]]), output_hidden_states=True).hidden_states[1][0]
    torch.testing.assert_close(found.vectors[0], states[4:].mean(0) - states[5], atol=1e-5, rtol=1e-4)


def test_why_a_pair_is_dropped() -> None:
    spec = recipe(keep={})
    good, bad = response(score=50.0), response(score=49.9)
    assert why_dropped(spec, good, bad) is None
    for reason, positive, negative in (
        ("empty", response(""), bad),
        ("refused", good, response(refused=True, score=None)),
        ("no_score", good, response(score=None)),
        ("no_score", response(coherence=None), bad),
        ("incoherent", good, response(score=0.0, coherence=49.0)),
        ("positive_low", response(score=49.0), bad),
        ("negative_high", good, response(score=50.0)),
    ):
        assert why_dropped(spec, positive, negative) == reason


def test_too_few_pairs_are_told(loaded: Any, trait: Trait) -> None:
    found = extracted(loaded, trait, keep={"positive": 100, "warn_below": 5})
    assert len(found.pairs) == 12
    assert sum(found.dropped.values()) == 12 - len(found.kept)
    assert len(found.kept) < 5
    assert "early" in str(found.warning)
    assert f"{len(found.kept)} of 12 pairs" in str(found.warning)
    nothing = Extraction(found.pairs, (), {"positive_low": 12}, None)
    with pytest.raises(SubveneError, match=r"none of 12 pairs of responses was kept \(positive_low 12\)"):
        vectors_of(recipe(), trait, nothing, Anatomy.of(loaded[0]), loaded[1])


def test_fitted_saved_and_reloaded(loaded: Any, write: Any, judge: Counting, trait_file: Path) -> None:
    path = write(
        f"""fit:
  recipe: persona
  traits: [{{name: early, file: {trait_file}}}]
  sampling: {{max_new_tokens: 6}}
  keep: {{positive: 0, negative: 100, coherence: 0}}
interventions:
  - {{kind: steering, name: s, layer: 1, vector: {{key: early}}, coefficient: 0.5, unit: residual_norm}}
"""
    )
    m = fit(path)
    assert judge.asked > 0
    edit = m.intervenable.interventions[m.intervenable.entries[0].keys[0]]
    norm = m.tensors["early.block_output[1].residual_norm"]
    delta = 0.5 * edit.delta(torch.zeros(1, 1, norm.numel()))
    torch.testing.assert_close(delta.norm(), 0.5 * norm)
    about = m.provenance["traits"]["early"]
    assert about["pairs"] == 6
    assert about["kept"] <= 6
    assert set(about["norm_by_layer"]) == set(about["residual_norm_by_layer"]) == {"0", "1", "2"}
    saved = m.save_pretrained(path.parent / "artifact")
    again = IntervenedModel.from_pretrained(saved)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(m(ids).logits, again(ids).logits)
    with m.disabled():
        assert not torch.allclose(m(ids).logits, again(ids).logits)
