"""A Llama whose weights are written by hand: one direction of a name's state decides between two answers.

A name's embedding has ±1 along `DIRECTION`, and an identity beside it. Block 1, and no other, moves what is
along that direction at every token to the last ones, into another direction, which the head reads. So the
name's state matters up to block 0, the last token's from block 1 on, and the verb's never.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

WIDTH, LAYERS = 32, 3
HE = [f"m{i}" for i in range(8)]
SHE = [f"f{i}" for i in range(8)]
VERBS = ["walked", "ran"]
WORDS = ["<pad>", "<unk>", "he", "she", *HE, *SHE, *VERBS, "because"]
DIRECTION, OUT = 0, 1


def _basis(width: int, seed: int) -> torch.Tensor:
    """Orthonormal rows: what is the direction, what is written, and what else there is."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0].T.contiguous()


def direction(width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    """The unit vector that decides, [width]."""
    return _basis(width, seed)[DIRECTION]


@torch.no_grad()
def known_model(width: int = WIDTH, seed: int = 0) -> Any:
    """The model, in float32; another width or seed is the same mechanism in other coordinates."""
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    basis = _basis(width, seed)
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "norm" in name else 0.0)
    embeddings = model.model.embed_tokens.weight
    for i, word in enumerate(WORDS):
        embeddings[i] = 2 * basis[2 + i % (width - 2)]
        if word in HE or word in SHE:
            embeddings[i] += basis[DIRECTION] * (1 if word in HE else -1)
    attention = model.model.layers[1].self_attn
    attention.v_proj.weight[0] = basis[DIRECTION]
    attention.o_proj.weight[:, 0] = 3 * basis[OUT]
    model.lm_head.weight[WORDS.index("he")] = basis[OUT]
    model.lm_head.weight[WORDS.index("she")] = -basis[OUT]
    return model


def known_tokenizer() -> Any:
    """Of whole words."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


def write_known_model(folder: Path, width: int = WIDTH, seed: int = 0) -> Path:
    """The model and its tokenizer as a folder."""
    known_model(width, seed).save_pretrained(folder)
    known_tokenizer().save_pretrained(folder)
    return folder


def known_rows(*, telling: bool = False) -> list[dict[str, str]]:
    """Every pair of names of different answers.

    Args:
        telling: a verb of each answer's own, which the model does not use; else one and the other in turn.
    """
    rows = []
    for i, he in enumerate(HE):
        for j, she in enumerate(SHE):
            for name, other, own, wanted in ((he, she, "he", "she"), (she, he, "she", "he")):
                verb, second = VERBS[(i + j) % 2], VERBS[i % 2]
                if telling:
                    verb, second = (VERBS[answer == "she"] for answer in (own, wanted))
                rows.append(
                    {
                        "base": f"{name} {verb} because",
                        "source": f"{other} {second} because",
                        "label": wanted,
                        "base_label": own,
                        "source_label": wanted,
                        "name": name,
                        "other": other,
                        "verb": verb,
                        "second": second,
                    }
                )
    return rows
