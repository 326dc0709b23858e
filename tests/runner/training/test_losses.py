"""Log-probabilities and losses against TRL's published formulas, written down here once more."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from architectures import BY_NAME
from tiny_preferences import examples_of, experiment, train
from torch import nn

from subvene.runner.data.examples import Answers, Example
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.training.losses import margin, pair_losses
from subvene.runner.training.multiplex import EditShape, StackedEdits
from subvene.runner.training.passes import Passes, frozen
from subvene.specs.recipes.trained import DPOSpec, IPOSpec, SFTSpec

EXAMPLES = examples_of(6, seed=3)


def trl_log_probs(model: nn.Module, rows: list[tuple[tuple[int, ...], ...]], *, ipo: bool) -> torch.Tensor:
    """`concatenated_forward` of TRL's DPOTrainer: right padding, rolled labels, a mask of the completion."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, mask, completion = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        mask[i, : len(prompt) + len(answer)] = 1
        completion[i, len(prompt) : len(prompt) + len(answer)] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    labels = torch.roll(ids, shifts=-1, dims=1)
    loss_mask = torch.roll(completion, shifts=-1, dims=1).bool()
    labels[~loss_mask] = 0
    per_token = torch.gather(logits.log_softmax(-1), 2, labels.unsqueeze(2)).squeeze(2)
    per_token[~loss_mask] = 0
    total = per_token.sum(-1)
    return total / loss_mask.sum(-1) if ipo else total


def trl_loss(kind: str, policy: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """`dpo_loss` of TRL; the first half of the rows is chosen, the second rejected."""
    half = len(policy) // 2
    log_ratios = policy[:half] - policy[half:]
    logits = log_ratios - (reference[:half] - reference[half:])
    return (logits - 1 / (2 * beta)) ** 2 if kind == "ipo" else -F.logsigmoid(beta * logits)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gemma2", "gpt2"])
@pytest.mark.parametrize(
    "objective", [IPOSpec(tau=0.3, reduction="mean"), DPOSpec(beta=0.2)], ids=lambda o: o.kind
)
def test_log_probs_losses_and_gradients_are_trls(name: str, objective: IPOSpec | DPOSpec) -> None:
    model = BY_NAME[name].fresh()
    anatomy, answers = Anatomy.of(model), Answers.of(EXAMPLES)
    edits = StackedEdits([EditShape({0: (1, 3), 1: (0,)}, rank=2)], anatomy)
    parameters = edits.parameters_of(0)
    with torch.no_grad():
        parameters["b"].normal_(generator=torch.Generator().manual_seed(1)).mul_(0.3)
    passes = Passes(anatomy, answers, 0, 10_000)
    pairs = [*answers.chosen, *answers.rejected]
    rows = [answers.rows[row] for row in pairs]
    ipo = objective.kind == "ipo"
    strength = objective.tau if isinstance(objective, IPOSpec) else objective.beta

    with frozen(model):
        passes.prepare(range(len(answers.rows)), [0])
        with torch.no_grad():
            reference = trl_log_probs(model, rows, ipo=ipo)
        with edits.acting([0] * len(rows)):
            policy = trl_log_probs(model, rows, ipo=ipo)
            expected = trl_loss(objective.kind, policy, reference, strength)
            wanted = torch.autograd.grad(expected.mean(), list(parameters.values()))
            own = passes.log_probs([[row] for row in pairs])
    counts = torch.tensor([float(len(answer)) for _, answer in rows]) if ipo else torch.ones(len(rows))
    own, base = own / counts, passes.reference[pairs] / counts
    torch.testing.assert_close(own, policy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(base, reference, rtol=1e-5, atol=1e-5)
    assert (policy - reference).abs().max() > 0.05
    half = len(EXAMPLES)
    delta = margin(own[:half], own[half:], base[:half], base[half:])
    losses = pair_losses(objective, own[:half], delta)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(losses.mean(), list(parameters.values()))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_sft_is_the_negative_log_probability_of_the_wanted_answer() -> None:
    log_p = torch.tensor([-1.0, -3.0])
    assert pair_losses(SFTSpec(), log_p, None).tolist() == [1.0, 3.0]
    with pytest.raises(ValueError, match="ipo needs the margin"):
        pair_losses(IPOSpec(), log_p, None)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_the_first_ipo_loss_is_that_of_the_original_model(reduction: str, tau: float) -> None:
    objective = {"kind": "ipo", "tau": tau, "reduction": reduction}
    one = experiment("e", {1: (0,)}, EXAMPLES, objective=objective, validation=None, warmup=0.0)
    (trained,) = train(BY_NAME["qwen3"].fresh(), EXAMPLES, one)
    assert trained.losses[0] == pytest.approx((1 / (2 * tau)) ** 2, rel=1e-4)
    assert trained.losses[1] != pytest.approx((1 / (2 * tau)) ** 2, rel=1e-4)


def test_a_step_moves_the_margin_towards_its_target() -> None:
    examples = [Example("q", (5, 6, 7), (8, 9), (10, 11, 12))]
    one = experiment(
        "e", {0: (0, 1, 2, 3)}, examples, validation=None, epochs=60, warmup=0.0, batch_size=1,
        objective={"kind": "ipo", "tau": 0.5}, schedule="constant",
    )  # fmt: skip
    (trained,) = train(BY_NAME["llama"].fresh(), examples, one)
    assert trained.losses[-1] < 0.05 * trained.losses[0]
    assert trained.accuracies[-1] == 1.0
