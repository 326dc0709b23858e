"""Training together is training alone; the trained edit is the intervention and the weight update."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import BY_NAME
from tiny_preferences import examples_of, experiment, train
from torch import nn

from subvene.interventions import Sizes
from subvene.runner import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.training.experiments import Experiment, Trained
from subvene.runner.training.multiplex import EditShape, StackedEdits
from subvene.specs import InterventionSpec, tensor_name

EXAMPLES = examples_of(14, seed=2)
SIZES = Sizes(n_layers=2, width=32, n_heads=4, head_dim=16)
# Everything that may differ between experiments of one job does.
MANY: dict[str, dict[str, Any]] = {
    "probed": {"heads": {0: (1, 2), 1: (0,)}, "seed": 1, "objective": {"kind": "ipo", "tau": 0.2}},
    "single": {"heads": {1: (3,)}, "seed": 2, "objective": {"kind": "ipo", "tau": 0.5}, "learning_rate": 0.1},
    "wide": {"heads": {0: (0, 3)}, "seed": 1, "shape": {"rank": 3}, "max_grad_norm": 0.01, "epochs": 3},
    "heads": {"heads": {0: (0, 3), 1: (1,)}, "shape": {"per": "head", "read_heads": "written"}},
    "dpo": {"heads": {1: (0, 1, 2, 3)}, "objective": {"kind": "dpo"}, "batch_size": 5, "max_grad_norm": None},
    "sft": {"heads": {0: (2,)}, "objective": {"kind": "sft"}, "weight_decay": 0.1, "warmup": 0.5},
    "constant": {"heads": {0: (2,), 1: (1, 2)}, "shape": {"gate": "constant"}, "validation": None},
    "patient": {"heads": {1: (2,)}, "patience": 1, "evaluate_every": 1, "epochs": 8, "learning_rate": 3.0},
}


def build(name: str) -> Experiment:
    return experiment(name, **MANY[name] | {"examples": EXAMPLES})


def close(together: Trained, alone: Trained, tolerance: float) -> None:
    for name, tensor in alone.factors.items():
        torch.testing.assert_close(together.factors[name], tensor, rtol=tolerance, atol=tolerance)
    for series in ("losses", "grad_norms", "accuracies"):
        assert getattr(together, series) == pytest.approx(
            getattr(alone, series), rel=tolerance, abs=tolerance
        )
    assert [found["loss"] for found in together.evaluations] == pytest.approx(
        [found["loss"] for found in alone.evaluations], rel=tolerance, abs=tolerance
    )
    assert (together.best_step, together.stopped_early) == (alone.best_step, alone.stopped_early)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_trained_together_each_is_as_if_alone(name: str) -> None:
    model = BY_NAME[name].shared()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    alone = [train(model, EXAMPLES, build(one))[0] for one in MANY]
    # Small passes too, so that experiments meet in them in many ways.
    for pass_tokens in (None, 60):
        experiments = [build(one) for one in MANY]
        if pass_tokens is not None:
            spec = experiments[0].spec.model_copy(update={"pass_tokens": pass_tokens})
            experiments[0] = Experiment(**{**vars(experiments[0]), "spec": spec})
        for found, expected in zip(train(model, EXAMPLES, *experiments), alone, strict=True):
            close(found, expected, 1e-4)
    assert all(len(trained.losses) > 3 for trained in alone if trained.name != "patient")
    patient = alone[list(MANY).index("patient")]
    assert patient.stopped_early
    assert len(patient.losses) < build("patient").steps
    assert len({tuple(trained.losses) for trained in alone}) == len(alone)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_gradients_flow_through_the_prompt() -> None:
    model = BY_NAME["llama"].shared()
    anatomy = Anatomy.of(model)
    edits = StackedEdits([EditShape({0: (1,)})], anatomy)
    b = edits.parameters_of(0)["b"]
    ids = torch.tensor([[5, 6, 7, 8]])
    with edits.acting([0]):
        model(ids).logits[0, -1, 3].backward()
    whole = b.grad.clone()
    # The gradient of an edit at the last token alone, by hand.
    own = torch.zeros_like(b, requires_grad=True)
    a = edits.parameters_of(0)["a"].detach()[0]

    def hook(_module: nn.Module, args: Any) -> Any:
        edited = args[0] + (args[0] @ a.T) @ own[0]
        return (torch.cat([args[0][:, :-1], edited[:, -1:]], 1),)

    handle = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(hook)
    try:
        model(ids).logits[0, -1, 3].backward()
    finally:
        handle.remove()
    assert not torch.allclose(whole[..., 16:32], own.grad[..., 16:32], rtol=0.1)


def intervened(model: nn.Module, trained: Trained, rank: int | None) -> IntervenedModel:
    """The trained factors as low-rank edits, one entry a layer."""
    layers = sorted({int(name.split(".")[0]) for name in trained.factors})
    tensors = {
        tensor_name("edit", "attention_heads", layer, part): trained.factors[f"{layer}.{part}"]
        for layer in layers
        for part in ("a", "b")
    }
    entries = [
        {
            "kind": "low_rank_edit",
            "layer": layer,
            "write_heads": "all",
            "rank": len(trained.factors[f"{layer}.a"]),
            "factors": {"key": "edit"},
        }
        for layer in layers
    ]
    spec = {"subvene": 1, "model": {"name": "tiny"}, "interventions": entries}
    return IntervenedModel.from_spec(InterventionSpec.model_validate(spec), model=model, tensors=tensors)


# Grouped query heads in all of them, and 4 heads of 16 on a width of 32.
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize(
    "form", [{"rank": 2}, {"per": "head", "read_heads": "written"}], ids=["layer", "head"]
)
def test_the_trained_edit_is_the_intervention_and_the_weight_update(name: str, form: dict[str, Any]) -> None:
    model = BY_NAME[name].fresh()
    heads = {0: (1,), 1: (0, 3)}
    one = experiment("e", heads, EXAMPLES, shape=form, validation=None, learning_rate=0.1)
    (trained,) = train(model, EXAMPLES, one)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 0, 0]])
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    real = mask.bool()
    with torch.no_grad():
        plain = model(ids, attention_mask=mask).logits[real]
        as_intervention = intervened(model, trained, None)(ids, mask).logits[real]
        edits = StackedEdits([one.shape], Anatomy.of(model))
        for layer in heads:
            projection = model.model.layers[layer].self_attn.o_proj
            assert projection.in_features == 64 != model.config.hidden_size
            a, b = trained.factors[f"{layer}.a"], trained.factors[f"{layer}.b"]
            written = EditShape({0: heads[layer]}).masks(0, SIZES)[1][0].bool()
            assert b[:, written].any(1).all()
            assert not b[:, ~written].any()
            if form.get("read_heads") == "written":
                assert not a[:, ~written].any()
            # W ← W + (W·B)·A with B's columns b_r and A's rows a_r.
            projection.weight += (projection.weight @ b.T) @ a
        updated = model(ids, attention_mask=mask).logits[real]
    assert edits.first_layer(0) == 0
    assert (updated - plain).abs().max() > 0.1
    torch.testing.assert_close(as_intervention, updated, rtol=1e-5, atol=1e-5)


def test_first_readers_are_kaiming_and_depend_on_seed_and_layer_alone() -> None:
    shape = EditShape({0: (1,), 3: (2,)}, rank=64, seed=5)
    first = shape.first_readers(3, SIZES)
    assert torch.equal(first, EditShape({3: (0, 1)}, rank=64, seed=5).first_readers(3, SIZES))
    assert not torch.equal(first, shape.first_readers(0, SIZES))
    assert not torch.equal(first, EditShape({3: (2,)}, rank=64, seed=6).first_readers(3, SIZES))
    # U(−1/√fan_in, 1/√fan_in), fan_in being what is read: 64 features, or one head of 16.
    assert 0.9 / 8 < first.abs().max() <= 1 / 8
    narrow = EditShape({3: (2,)}, rank=64, seed=5, read_heads="written").first_readers(3, SIZES)
    assert 0.9 / 4 < narrow.abs().max() <= 1 / 4
    assert not narrow[:, :32].any()


def test_a_row_is_edited_by_its_own_experiment_alone() -> None:
    model = BY_NAME["llama"].shared()
    anatomy = Anatomy.of(model)
    edits = StackedEdits([EditShape({0: (1,)}), EditShape({1: (2,)}, gate="constant")], anatomy)
    with torch.no_grad():
        for e in (0, 1):
            edits.parameters_of(e)["b"].fill_(0.5)
        ids = torch.tensor([[5, 6, 7, 8]]).expand(4, -1)
        with edits.acting([0, 1, 1, 0]):
            together = model(ids).logits
        for row, e in enumerate([0, 1, 1, 0]):
            with edits.acting([e]):
                torch.testing.assert_close(together[row], model(ids[:1]).logits[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=0.1)
        assert not any(module._forward_pre_hooks for module in model.modules())
