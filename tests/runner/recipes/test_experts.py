"""The recipe `experts`: AUROC of every neuron by counting pairs, and gains as the paper has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.experts import auroc, fit_experts
from subvene.runner.recipes.fitting import fit
from subvene.specs import ContrastTexts, ExperimentSpec, ExpertsSpec, SubveneError

POSITIVE = ["the rain is very bad", "a sad gloomy day", "gloomy and bad"]
NEGATIVE = ["i am happy", "the sun is good and i am glad", "hello glad world"]
TEXTS = [{"positive": p, "negative": n} for p, n in zip(POSITIVE, NEGATIVE, strict=True)]


def fitted(loaded: Any, **fields: Any) -> Any:
    model, tokenizer = loaded
    spec = ExpertsSpec.model_validate({"key": "x", "pairs": {"texts": TEXTS}, **fields})
    pairs = ContrastTexts.model_validate(spec.pairs.model_dump(exclude_none=True))
    return fit_experts(spec, pairs, Anatomy.of(model), tokenizer)


@torch.no_grad()
def highest(loaded: Any, text: str, layer: int) -> torch.Tensor:
    """One text at a time, by a plain hook: the maximum over all tokens but the first."""
    model, tokenizer = loaded
    seen: list[torch.Tensor] = []
    mlp = model.get_submodule(f"model.layers.{layer}.mlp.down_proj")
    handle = mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ids = tokenizer(text, return_tensors="pt").input_ids
    model(ids)
    handle.remove()
    return seen[0][0, 1:].max(0).values


def counted(loaded: Any, layer: int) -> torch.Tensor:
    """Pairs in which the positive is above, by two loops."""
    positive, negative = ([highest(loaded, text, layer) for text in one] for one in (POSITIVE, NEGATIVE))
    wins = torch.zeros(len(positive[0]), dtype=torch.float64)
    for p in positive:
        for n in negative:
            wins += (p > n).double() + 0.5 * (p == n).double()
    return wins / (len(positive) * len(negative))


def layers_of(loaded: Any) -> range:
    return range(loaded[0].config.num_hidden_layers)


def test_auroc_counts_ties_half() -> None:
    positive = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    negative = torch.tensor([[0.0, 0.0], [2.0, 1.0]])
    assert auroc(positive, negative).tolist() == [0.625, 0.25]


def test_aura_is_one_minus_gini_at_the_experts(loaded: Any) -> None:
    for batch_size in (1, 4):
        found = fitted(loaded, batch_size=batch_size)
        for layer in layers_of(loaded):
            gains, area = found.tensors[f"x.mlp_neurons[{layer}]"], counted(loaded, layer)
            expected = [1 - (2 * a - 1) if a > 0.5 else 1.0 for a in area.tolist()]
            torch.testing.assert_close(gains, torch.tensor(expected), rtol=1e-6, atol=1e-6)
            assert found.provenance["experts_by_layer"][str(layer)] == int((area > 0.5).sum()) > 0


@pytest.mark.parametrize(("gains", "factor"), [("det0", None), ("damp", 0.25)])
def test_the_k_best_of_all_layers_are_set_to_one_value(loaded: Any, gains: str, factor: Any) -> None:
    fields = {} if factor is None else {"factor": factor}
    found = fitted(loaded, gains=gains, k=5, **fields).tensors
    areas = torch.cat([counted(loaded, layer) for layer in layers_of(loaded)])
    flat = torch.cat([found[f"x.mlp_neurons[{layer}]"] for layer in layers_of(loaded)])
    changed = flat != 1
    assert int(changed.sum()) == 5
    assert (flat[changed] == (factor or 0.0)).all()
    assert areas[changed].min() >= areas[~changed].max()
    everyone = torch.cat(list(fitted(loaded, gains=gains, **fields).tensors.values()))
    assert torch.equal(everyone != 1, areas > 0.5)


def test_what_is_the_same_on_both_sides_has_no_expert(loaded: Any) -> None:
    same = [{"positive": "the day", "negative": "the day"}]
    with pytest.raises(SubveneError, match="no neuron at mlp_neurons is an expert"):
        fitted(loaded, pairs={"texts": same})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"k": 3}, "nothing beside `gains: aura`"),
        ({"gains": "det0", "factor": 0.5}, "nothing but beside `gains: damp`"),
        ({"gains": "damp"}, "a number, the gain of the experts"),
    ],
)
def test_fields_of_other_gains_are_refused(fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        ExpertsSpec.model_validate({"key": "x", "pairs": {"texts": TEXTS}, **fields})


def test_a_file_fits_and_scales_every_layer(loaded: Any) -> None:
    model, tokenizer = loaded
    spec = ExperimentSpec.model_validate(
        {
            "subvene": 1,
            "model": {"name": "tiny/llama"},
            "fit": {"recipe": "experts", "key": "x", "pairs": {"texts": TEXTS}},
            "interventions": [{"kind": "scaling", "gains": {"key": "x"}}],
        }
    )
    m = fit(spec, model=model, tokenizer=tokenizer)
    ids = tokenizer("a gloomy day", return_tensors="pt").input_ids
    changed = m(ids).logits
    assert len(m.receipt[0].sites) == len(layers_of(loaded))
    with m.disabled():
        assert (m(ids).logits - changed).abs().max() > 1e-4
