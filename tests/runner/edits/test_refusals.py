"""Gradient checkpointing: refused where recomputed blocks would be unedited, right elsewhere."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from oracle import LENGTHS, PROMPTS, VOCAB, batch, blocks, both_models, intervened, steering, tiny, vector
from torch import nn

from subvene.runner import IntervenedModel
from subvene.runner.edits.refusals import RecomputationError

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

ROWS = [[*prompt, 41, 42, 43] for prompt in PROMPTS]
every_site = pytest.mark.parametrize("site", ["block_output", "attention_heads", "mlp_output"])


def made(name: str, site: str, *, checkpointing: bool, reentrant: bool = False) -> IntervenedModel:
    """An edit at two blocks of a model in training mode, without dropout."""
    model = tiny(name).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    tensors = {f"v.{site}[{layer}]": vector() for layer in (0, 1)}
    if site == "attention_heads":
        tensors = {name: v.view(oracle.HEADS, -1) for name, v in tensors.items()}
        entry: dict[str, Any] = {"kind": "head_direction", "directions": {"key": "v"}, "strength": 1.0}
        entries = [entry | {"positions": "response", "heads": {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}}]
    else:
        entries = [steering("response", layer=layer, site=site) for layer in (0, 1)]
    return intervened(model, *entries, tensors=tensors)


def loss_of(output: Any, mask: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 1, VOCAB)
    return ((output.logits.softmax(-1) * weights).sum(-1) * mask).sum()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def attached_step(m: IntervenedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and gradients of a step inside one run."""
    ids, mask = batch(ROWS, "right")
    with m.intervenable.attached(oracle.tracker(mask, LENGTHS, generating=False)) as model:
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
        loss_of(output, mask).backward()
    return output.logits.detach(), gradients(model)


@both_models
@every_site
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_inside_a_run_are_those_without_checkpointing(
    name: str, site: str, reentrant: bool
) -> None:
    plain = made(name, site, checkpointing=False)
    logits, expected = attached_step(plain)
    m = made(name, site, checkpointing=True, reentrant=reentrant)
    runs: list[int] = []
    blocks(m.model)[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    found_logits, found = attached_step(m)
    assert len(runs) == 2  # it was recomputed
    torch.testing.assert_close(found_logits, logits)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, msg=lambda text, key=key: f"{key}: {text}")
    # A token that is passed again is the same token.
    for again, once in zip(m.receipt, plain.receipt, strict=True):
        assert (again.edited, again.changed, again.rows_edited) == (
            once.edited,
            once.changed,
            once.rows_edited,
        )
        assert again.mean_relative == pytest.approx(once.mean_relative, rel=1e-5)
    # And the edit matters to what was compared.
    with plain.disabled():
        ids, mask = batch(ROWS, "right")
        assert (plain(ids, mask).logits - logits).abs().max() > 0.1


def test_what_is_refused_would_have_been_wrong() -> None:
    """A backward pass outside the run recomputes the heads without their edit, and nobody says so."""
    _, expected = attached_step(made("llama", "attention_heads", checkpointing=False))
    m = made("llama", "attention_heads", checkpointing=True, reentrant=True)
    ids, mask = batch(ROWS, "right")
    with m.intervenable.attached(oracle.tracker(mask, LENGTHS, generating=False)) as model:
        output = model(input_ids=ids, attention_mask=mask, use_cache=False)
    loss_of(output, mask).backward()
    found = gradients(model)
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) > 1e-3


@both_models
@every_site
def test_a_call_in_training_is_refused(name: str, site: str) -> None:
    m = made(name, site, checkpointing=True)
    ids, mask = batch(ROWS, "right")
    before = oracle.hooks(m.model)
    with pytest.raises(RecomputationError, match=r"Turn it off for the model, or hold .*attached"):
        m(ids, mask, prompt_lengths=LENGTHS)
    assert oracle.hooks(m.model) == before


def test_a_block_in_training_is_enough() -> None:
    """A block looks at its own mode, whatever that of the model around it."""
    m = made("llama", "block_output", checkpointing=True)
    m.model.eval()
    blocks(m.model)[2].train()
    ids, mask = batch(ROWS, "right")
    with pytest.raises(RecomputationError):
        m(ids, mask, prompt_lengths=LENGTHS)


@pytest.mark.parametrize("way", ["no_grad", "eval", "off", "disabled"])
def test_where_nothing_is_recomputed_nothing_is_refused(way: str) -> None:
    m = made("llama", "block_output", checkpointing=True)
    ids, mask = batch(ROWS, "right")
    if way == "no_grad":
        with torch.no_grad():
            m(ids, mask, prompt_lengths=LENGTHS)
    elif way == "eval":
        m.model.eval()
        m(ids, mask, prompt_lengths=LENGTHS)
    elif way == "off":
        m.model.gradient_checkpointing_disable()
        m(ids, mask, prompt_lengths=LENGTHS)
    else:
        with m.disabled():
            m(ids, mask, prompt_lengths=LENGTHS)
        assert m.receipt is None
        return
    assert all(receipt.changed == receipt.tokens > 0 for receipt in m.receipt)
