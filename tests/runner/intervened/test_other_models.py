"""Models that keep states, that see images, and that are no decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import architectures
import oracle
import pytest
import torch
import transformers as t
from oracle import NEW, PROMPTS, intervened, steering
from torch import nn
from ways import GREEDY, rules

from subvene.runner import IntervenedModel, PositionError
from subvene.runner.models.anatomy import AnatomyError

_COMMON = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
_SIZES = _COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
_ALTERNATING = ["linear_attention", "full_attention", "linear_attention"]
HYBRIDS: dict[str, Callable[[], Any]] = {
    # Its cache says that it holds nothing, however much it holds.
    "minimax": lambda: t.MiniMaxConfig(
        **_SIZES,
        head_dim=16,
        layer_types=_ALTERNATING,
        num_local_experts=4,
        num_experts_per_tok=2,
        block_size=4,
    ),
    "jamba": lambda: t.JambaConfig(
        **_SIZES, **_MAMBA, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_dt_rank=4
    ),
    "lfm2": lambda: t.Lfm2Config(**_SIZES, layer_types=["conv", "full_attention", "conv"]),
    "qwen3_next": lambda: t.Qwen3NextConfig(
        **_SIZES, **_LINEAR, **_EXPERTS, head_dim=16, layer_types=_ALTERNATING
    ),
}


def hybrid(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = t.AutoModelForCausalLM.from_config(HYBRIDS[name](), dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("rule", ["all", "prompt", "response", {"first": 3, "of": "prompt"}], ids=str)
@pytest.mark.parametrize("name", HYBRIDS)
def test_models_that_keep_states(name: str, rule: Any) -> None:
    model = hybrid(name)
    v = oracle.vector(32)
    m = intervened(model, steering(rule), tensors={"v.block_output[1]": v})
    row = PROMPTS[1]
    expected, logits = oracle.greedy_by_hand(model, row, rule, NEW, v)
    output = m.generate_ids(torch.tensor([row]), output_logits=True, return_dict_in_generate=True, **GREEDY)
    torch.testing.assert_close(torch.cat(output.logits), logits, atol=1e-5, rtol=1e-5)
    assert output.sequences[0, len(row) :].tolist() == expected
    assert m.receipt[0].tokens == len(oracle.selected(rule, len(row), len(row) + NEW - 1))


def test_a_cache_whose_length_lies_is_refused_where_it_decides() -> None:
    model = hybrid("minimax")
    m = intervened(model, steering("all"), tensors={"v.block_output[1]": oracle.vector(32)})
    with torch.no_grad():
        cache = m(torch.tensor([[11, 12, 13]])).past_key_values
        assert cache.get_seq_length() == 0
        mask = torch.ones(1, 4, dtype=torch.long)
        with pytest.raises(PositionError, match="MiniMaxCache that says it holds 0"):
            m(torch.tensor([[14]]), mask, past_key_values=cache)
        with pytest.raises(PositionError, match="holds nothing"):
            m(torch.tensor([[14]]), past_key_values=cache)


def made(model: nn.Module, rule: Any) -> IntervenedModel:
    fields = {"subvene": 1, "model": {"name": "tiny"}, "interventions": [steering(rule)]}
    return IntervenedModel.from_spec(fields, model=model, tensors={"v.block_output[1]": oracle.vector(32)})


@rules
def test_images(rule: str) -> None:
    """Image tokens are tokens of the prompt; pixels go with the call, and attached as well."""
    llava = architectures.BY_NAME["llava"]
    model = llava.fresh()
    v = oracle.vector(32)
    m = made(model, rule)
    row = [11, 95, 95, 95, 95, 12, 13]
    ids, pixels = torch.tensor([row]), torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    block = model.get_submodule(f"{llava.blocks}.1")
    expected = list(row)
    for _ in range(NEW):
        chosen = oracle.selected(rule, len(row), len(expected))

        def hook(_module: Any, _args: Any, output: torch.Tensor, chosen: set[int] = chosen) -> Any:
            h = output.clone()
            for token in chosen:
                h[0, token] += v
            return h

        handle = block.register_forward_hook(hook)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([expected]), pixel_values=pixels, use_cache=False).logits
        handle.remove()
        expected.append(int(logits[0, -1].argmax()))
    assert m.generate_ids(ids, pixel_values=pixels, **GREEDY)[0].tolist() == expected
    with m.attached() as inside:
        assert inside.generate(input_ids=ids, pixel_values=pixels, **GREEDY)[0].tolist() == expected


def test_encoders_with_decoders_are_refused_by_name() -> None:
    config = t.T5Config(vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    with pytest.raises((AnatomyError, ValueError), match=r"T5|encoder"):
        made(t.T5ForConditionalGeneration(config), "all")
