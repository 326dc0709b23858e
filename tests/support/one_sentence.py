"""A model that says one sentence whatever is asked: each token alone decides the next."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
import transformers


def write_one_sentence_model(folder: Path, sentence: str) -> Path:
    """Write the model and its tokenizer of whole words; behind the sentence it ends its turn.

    Args:
        folder: where to.
        sentence: of words that are all different.
    """
    said = sentence.split()
    words = ["<pad>", "<s>", "</s>", "<unk>", *said]
    sizes = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    config = transformers.LlamaConfig(
        **sizes, **heads, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False
    )
    model = transformers.LlamaForCausalLM(config)
    following = {word: words.index(said[0]) for word in words}
    following |= {word: words.index(after) for word, after in zip(said, [*said[1:], "</s>"], strict=True)}
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(words), 16))
        model.lm_head.weight.zero_()
        for i, word in enumerate(words):
            model.lm_head.weight[following[word], i] = 1.0
    model.save_pretrained(folder)
    level = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    level.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=level, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder
