"""Activations: what is read is what one text at a time, read by hand, gives; and nothing is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from oracle import LAYERS, WIDTH, blocks, hooks, tiny
from torch import nn

from subvene.runner.data.span import Text
from subvene.runner.data.text import pad
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import forward_reading, weighted_sums
from subvene.specs import CORE_SITES

TEXTS = [
    Text((11, 12, 13, 14, 15, 16, 17), 0, 7),
    Text((21, 22, 23, 24), 1, 3),
    Text((31,), 0, 1),
    Text((41, 42, 43, 44, 45), 4, 5),
    Text((51, 52, 53), 2, 3),
]
WEIGHTS = [0.5, -2.0, 1.0, -0.25, 3.0]


def model_of(name: str) -> nn.Module:
    if name != "opt":
        return tiny(name)
    config = transformers.OPTConfig(
        vocab_size=100,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=64,
        init_std=0.2,
        dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return transformers.OPTForCausalLM(config).float().eval()


def place(model: nn.Module, site: str, layer: int) -> tuple[nn.Module, bool]:
    """The module of a site, and whether its input is meant, as a person reads it off the model's source."""
    block = model.model.decoder.layers[layer] if model.config.model_type == "opt" else blocks(model)[layer]
    attention, projection, mlp = {
        "llama": ("self_attn", "o_proj", "mlp"),
        "gpt2": ("attn", "c_proj", "mlp"),
        "opt": ("self_attn", "out_proj", "fc2"),
    }[model.config.model_type]
    attention = getattr(block, attention)
    return {
        "block_output": (block, False),
        "attention_heads": (getattr(attention, projection), True),
        "attention_output": (attention, False),
        "mlp_output": (getattr(block, mlp), False),
    }[site]


@torch.no_grad()
def by_hand(model: nn.Module, ids: tuple[int, ...], site: str, layer: int) -> torch.Tensor:
    """[tokens, width] of one text, run alone through the whole model."""
    seen: list[torch.Tensor] = []
    module, is_input = place(model, site, layer)

    def hook(_module: nn.Module, args: Any, output: Any) -> None:
        found = args[0] if is_input else output
        seen.append(found[0] if isinstance(found, tuple) else found)

    handle = module.register_forward_hook(hook)
    try:
        model(torch.tensor([ids]), use_cache=False)
    finally:
        handle.remove()
    return seen[0].reshape(len(ids), -1).double()


def sums(model: nn.Module, site: str = "block_output", layers: Any = (0, 2), **options: Any) -> Any:
    settings = {"pad_id": 0, "batch_size": 2} | options
    return weighted_sums(Anatomy.of(model), site, layers, TEXTS, WEIGHTS, **settings).vectors


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("site", CORE_SITES)
def test_sums_equal_those_of_one_text_at_a_time(name: str, site: str) -> None:
    model = model_of(name)
    found = sums(model, site, range(LAYERS))
    assert list(found) == list(range(LAYERS))
    for layer, vector in found.items():
        expected = sum(
            weight * by_hand(model, text.ids, site, layer)[text.start : text.end].mean(0)
            for text, weight in zip(TEXTS, WEIGHTS, strict=True)
        )
        assert vector.dtype == torch.float32
        assert vector.shape == expected.shape
        assert (vector - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
        assert expected.norm() > 0.1


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_padding_and_batch_size_do_not_matter(name: str) -> None:
    model = model_of(name)
    alone = sums(model, batch_size=1)  # nothing is padded
    for options in ({"batch_size": 2}, {"batch_size": 5}, {"batch_size": 5, "pad_id": 77}):
        for layer, vector in sums(model, **options).items():
            assert (vector - alone[layer]).abs().max() <= 1e-5


def test_layers_in_any_order() -> None:
    model = tiny("llama")
    forth, back = sums(model, layers=[0, 1, 2]), sums(model, layers=[2, 0])
    assert list(back) == [2, 0]
    assert all(torch.equal(back[layer], forth[layer]) for layer in back)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("site", CORE_SITES)
def test_the_pass_ends_at_the_last_layer_needed(name: str, site: str) -> None:
    model = tiny(name)
    ran: list[Any] = []
    for layer, block in enumerate(blocks(model)):
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
    model.lm_head.register_forward_pre_hook(lambda *_: ran.append("head"))
    sums(model, site, [1, 0], batch_size=5)
    assert ran == [0, 1]
    ran.clear()
    sums(model, site, [2], batch_size=5)
    assert ran == [0, 1, 2]
    model(torch.tensor([[1, 2]]))
    assert ran[3:] == [0, 1, 2, "head"]  # the watch sees a head that runs


def test_low_precision_is_summed_in_float32() -> None:
    model = tiny("llama").bfloat16()
    found = sums(model, layers=[1], batch_size=1)[1]
    expected = sum(
        weight * by_hand(model, text.ids, "block_output", 1)[text.start : text.end].mean(0)
        for text, weight in zip(TEXTS, WEIGHTS, strict=True)
    )
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5 * float(expected.abs().max())


# What is left behind --------------------------------------------------------------------------------------


def _modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_hooks_and_modes_are_as_they_were(error: type[BaseException] | None) -> None:
    model = tiny("llama").train()
    blocks(model)[1].eval()  # of a mixed mode
    foreign = blocks(model)[0].register_forward_hook(lambda *_: None)
    before, modes = hooks(model), _modes(model)
    batch = pad([text.ids for text in TEXTS], [1] * 5, 0, "right")
    seen: list[Any] = []

    def read(layer: int, h: torch.Tensor) -> None:
        seen.append((any(_modes(model)), h.requires_grad))
        if error is not None:
            raise error("in the middle")

    if error is None:
        forward_reading(Anatomy.of(model), "block_output", [0, 1], batch, read)
    else:
        with pytest.raises(error, match="in the middle"):
            forward_reading(Anatomy.of(model), "block_output", [0, 1], batch, read)
    assert seen == [(False, False)] * (1 if error else 2)
    assert hooks(model) == before
    assert _modes(model) == modes
    assert torch.is_grad_enabled()
    foreign.remove()


def test_a_layer_that_is_not_there_leaves_nothing_behind() -> None:
    model = tiny("llama").train()
    with pytest.raises(Exception, match="layer 3 is out of range"):
        sums(model, layers=[0, 3])
    assert hooks(model) == []
    assert all(_modes(model))


def test_dropout_is_off_while_it_reads() -> None:
    model = tiny("gpt2").train()
    assert model.config.resid_pdrop > 0
    expected = sums(tiny("gpt2"))
    found = sums(model)
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)
    # The other way round: in training mode this model does drop.
    ids = torch.tensor([TEXTS[0].ids])
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_stopped_pass_does_not_disturb_hidden_states(name: str) -> None:
    """transformers collects hidden states by hooks of its own, which a stopped pass leaves in the middle."""
    model, untouched = tiny(name), tiny(name)
    ids = torch.tensor([TEXTS[0].ids])
    model.config.output_hidden_states = True
    sums(model)
    states, expected = model(ids).hidden_states, untouched(ids, output_hidden_states=True).hidden_states
    assert len(states) == LAYERS + 1
    for found, known in zip(states, expected, strict=True):
        torch.testing.assert_close(found, known)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_is_no_obstacle() -> None:
    model = tiny("llama").train()
    model.gradient_checkpointing_enable()
    before, expected = hooks(model), sums(tiny("llama"))
    assert all(torch.equal(vector, expected[layer]) for layer, vector in sums(model).items())
    assert hooks(model) == before
