"""Tiny random-weight models of many architectures, and where each keeps its parts, written down by hand.

The paths here are the tests' own knowledge of transformers: `models.anatomy` must find the same
modules without knowing any of these names.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

LAYERS, WIDTH, HEADS, HEAD_DIM, VOCAB = 2, 32, 4, 16, 96

_COMMON = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.15,
    "attn_implementation": "eager",
}
_LLAMA_LIKE = _COMMON | {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# 4 heads of 16 on a width of 32: `hidden_size // num_attention_heads` would be wrong.
_WITH_HEAD_DIM = _LLAMA_LIKE | {"head_dim": HEAD_DIM}
_GPT2_LIKE = _COMMON | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
_NEOX_LIKE = {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


@dataclass(frozen=True)
class Architecture:
    """A tiny model and the module paths that its source code gives.

    Attributes:
        name: the test id.
        build: makes the model; call it through `fresh` or `shared`.
        blocks: the list of decoder blocks.
        attention: the attention module within a block.
        o_proj: the output projection within the attention module.
        mlp: the module within a block whose output is what the feed-forward part adds.
        head_dim: width of one head at the input of the output projection.
        stock: whether pyvene 0.1.8 can load interventions for the model
            (Llava it lists, and cannot load).
        attention_output: the module within a block whose output is what attention adds, where it is not
            the attention module itself.
    """

    name: str
    build: Callable[[], nn.Module]
    blocks: str = "model.layers"
    attention: str = "self_attn"
    o_proj: str = "o_proj"
    mlp: str = "mlp"
    head_dim: int = HEAD_DIM
    stock: bool = False
    attention_output: str | None = None

    def path(self, site: str, layer: int) -> str:
        """The module whose input (`attention_heads`) or output (every other site) is the site."""
        block = f"{self.blocks}.{layer}"
        return {
            "block_output": block,
            "attention_heads": f"{block}.{self.attention}.{self.o_proj}",
            "attention_output": f"{block}.{self.attention_output or self.attention}",
            "mlp_output": f"{block}.{self.mlp}",
        }[site]

    def width(self, site: str) -> int:
        return HEADS * self.head_dim if site == "attention_heads" else WIDTH

    def fresh(self) -> nn.Module:
        """A model that the caller may change."""
        return copy.deepcopy(self.shared())

    @cache  # noqa: B019 - frozen, and one of each lives as long as the module
    def shared(self) -> nn.Module:
        """One model per architecture and process; leave it as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = self.build()
            for parameter in model.parameters():
                # Biases are born zero, norms as the identity: a test should notice when they are lost.
                if parameter.ndim == 1:
                    parameter.data += 0.1 * torch.randn_like(parameter)
                # Some experts are born as they lie in memory.
                elif not torch.isfinite(parameter).all() or not parameter.any():
                    parameter.data = 0.15 * torch.randn_like(parameter)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model.float().eval()

    def __repr__(self) -> str:
        return self.name


def _causal(config: type, **settings: Any) -> Callable[[], nn.Module]:
    # By hand rather than through AutoModelForCausalLM, which for some configs takes a text-only sibling.
    return lambda: transformers.AutoModelForCausalLM.from_config(config(**settings), dtype=torch.float32)


def _multimodal(config: type, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: transformers.AutoModelForImageTextToText.from_config(
        config(**settings), dtype=torch.float32
    )


def _gemma3_text(**more: Any) -> dict[str, Any]:
    layers = ["sliding_attention", "full_attention"]
    return (
        _WITH_HEAD_DIM
        | {"query_pre_attn_scalar": HEAD_DIM, "sliding_window": 4, "layer_types": layers}
        | more
    )


_EIGHT = {"head_dim": WIDTH // HEADS}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
_GPT2_PATHS = {"blocks": "transformer.h", "attention": "attn", "o_proj": "c_proj"}
_NEOX_PATHS = {"attention": "attention", "o_proj": "dense"}
_FALCON_PATHS = {"blocks": "transformer.h", "attention": "self_attention", "o_proj": "dense"}

t = transformers
ARCHITECTURES = (
    Architecture("llama", _causal(t.LlamaConfig, **_WITH_HEAD_DIM), stock=True),
    Architecture("mistral", _causal(t.MistralConfig, **_WITH_HEAD_DIM, sliding_window=4), stock=True),
    Architecture(
        "mixtral",
        _causal(t.MixtralConfig, **_WITH_HEAD_DIM, num_local_experts=4, num_experts_per_tok=2),
    ),
    Architecture("qwen2", _causal(t.Qwen2Config, **_LLAMA_LIKE), stock=True, **_EIGHT),
    Architecture("qwen3", _causal(t.Qwen3Config, **_WITH_HEAD_DIM)),
    Architecture("qwen3_moe", _causal(t.Qwen3MoeConfig, **_WITH_HEAD_DIM, **_MOE)),
    Architecture("gemma", _causal(t.GemmaConfig, **_WITH_HEAD_DIM), stock=True),
    Architecture("gemma2", _causal(t.Gemma2Config, **_gemma3_text()), stock=True),
    Architecture("gemma3", _causal(t.Gemma3TextConfig, **_gemma3_text())),
    Architecture("phi3", _causal(t.Phi3Config, **_LLAMA_LIKE), **_EIGHT),
    Architecture("olmo", _causal(t.OlmoConfig, **_LLAMA_LIKE), stock=True, **_EIGHT),
    Architecture("olmo2", _causal(t.Olmo2Config, **_LLAMA_LIKE), **_EIGHT),
    Architecture("gpt2", _causal(t.GPT2Config, **_GPT2_LIKE), stock=True, **_GPT2_PATHS, **_EIGHT),
    Architecture(
        "gpt_neo",
        _causal(
            t.GPTNeoConfig,
            **_COMMON,
            hidden_size=WIDTH,
            num_layers=LAYERS,
            num_heads=HEADS,
            attention_types=[[["global", "local"], 1]],
            window_size=4,
            max_position_embeddings=64,
        ),
        blocks="transformer.h",
        attention="attn.attention",
        o_proj="out_proj",
        stock=True,
        **_EIGHT,
    ),
    Architecture(
        "gpt_neox",
        _causal(t.GPTNeoXConfig, **_NEOX_LIKE),
        blocks="gpt_neox.layers",
        stock=True,
        **_NEOX_PATHS,
        **_EIGHT,
    ),
    Architecture(
        "opt",
        _causal(
            t.OPTConfig,
            **_COMMON | {"init_std": 0.15},
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            ffn_dim=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=64,
        ),
        blocks="model.decoder.layers",
        o_proj="out_proj",
        mlp="fc2",
        **_EIGHT,
    ),
    Architecture(
        "falcon_new",
        _causal(t.FalconConfig, **_LLAMA_LIKE, num_kv_heads=2, new_decoder_architecture=True, alibi=False),
        **_FALCON_PATHS,
        **_EIGHT,
    ),
    Architecture(
        "falcon_multi_query",
        _causal(t.FalconConfig, **_LLAMA_LIKE, multi_query=True, alibi=False, parallel_attn=True),
        **_FALCON_PATHS,
        **_EIGHT,
    ),
    Architecture(
        "bloom",
        _causal(t.BloomConfig, **_COMMON, hidden_size=WIDTH, n_layer=LAYERS, n_head=HEADS),
        blocks="transformer.h",
        attention="self_attention",
        o_proj="dense",
        mlp="mlp.dense_4h_to_h",
        attention_output="self_attention.dense",
        **_EIGHT,
    ),
    Architecture(
        "mpt",
        _causal(t.MptConfig, **_COMMON, d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, max_seq_len=64),
        blocks="transformer.blocks",
        attention="attn",
        o_proj="out_proj",
        mlp="ffn.down_proj",
        **_EIGHT,
    ),
    # Its gate, which comes after the output projection in the source, is as wide where 4 heads of 8 are.
    Architecture(
        "afmoe",
        _causal(
            t.AfmoeConfig,
            **_LLAMA_LIKE | {"head_dim": 8},
            num_experts=4,
            num_experts_per_tok=2,
            num_dense_layers=1,
            moe_intermediate_size=16,
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=4,
        ),
        **_EIGHT,
    ),
    Architecture("stablelm", _causal(t.StableLmConfig, **_LLAMA_LIKE), **_EIGHT),
    Architecture("granite", _causal(t.GraniteConfig, **_LLAMA_LIKE), **_EIGHT),
    Architecture("smollm3", _causal(t.SmolLM3Config, **_LLAMA_LIKE), **_EIGHT),
    Architecture("cohere", _causal(t.CohereConfig, **_LLAMA_LIKE), **_EIGHT),
    Architecture(
        "gpt_oss",
        _causal(
            t.GptOssConfig,
            **_WITH_HEAD_DIM,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=4,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
    Architecture(
        "deepseek_v3",
        _causal(
            t.DeepseekV3Config,
            **_LLAMA_LIKE | {"num_key_value_heads": HEADS},
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=HEAD_DIM,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
        ),
    ),
    Architecture(
        "gemma3_multimodal",
        _multimodal(
            t.Gemma3Config,
            text_config=_gemma3_text(),
            vision_config=_VISION,
            mm_tokens_per_image=4,
            image_token_index=95,
            boi_token_index=94,
            eoi_token_index=93,
            initializer_range=0.15,
            pad_token_id=0,
        ),
        blocks="model.language_model.layers",
    ),
    Architecture(
        "llava",
        _multimodal(
            t.LlavaConfig,
            text_config=t.LlamaConfig(**_WITH_HEAD_DIM),
            vision_config=t.CLIPVisionConfig(**_VISION),
            image_token_index=95,
            pad_token_id=0,
        ),
        blocks="model.language_model.layers",
    ),
    Architecture(
        "qwen2_vl",
        _multimodal(
            t.Qwen2VLConfig,
            text_config=_LLAMA_LIKE
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
            vision_config={
                "embed_dim": 16,
                "hidden_size": WIDTH,
                "depth": 2,
                "num_heads": 2,
                "patch_size": 4,
            },
            image_token_id=95,
            video_token_id=94,
            vision_start_token_id=93,
            vision_end_token_id=92,
        ),
        blocks="model.language_model.layers",
        **_EIGHT,
    ),
)
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
