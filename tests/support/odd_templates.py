"""A tokenizer of characters, and chat templates that are each odd in the way of some real model's."""

from __future__ import annotations

import string
from typing import Any

import tokenizers
import transformers

SPECIAL = ("<|bos|>", "<|im_start|>", "<|im_end|>", "<pad>")
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# SmolLM2, Qwen2.5: a system prompt of its own where none is given.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
) + CHATML
# Gemma: no system role, and turns must alternate.
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# Some leave the system prompt out and say nothing.
SILENT = CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
# Qwen3: reasoning of earlier turns goes, and `enable_thinking` closes the block beforehand.
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + "
    "(m.content.split('</think>')[-1].lstrip('\n') "
    "if m.role == 'assistant' else m.content) + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
# DeepSeek R1, QwQ: the model's turn begins inside a block of reasoning.
OPENED = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
# Llama 2: marks that are no special tokens, the system prompt within the first turn, a BOS per turn.
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'system' %}{% elif m.role == 'user' %}{{ '<|bos|>[INST] ' "
    "+ ('<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' if loop.index0 == 1 and messages[0].role == "
    "'system' else '') + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' <|im_end|>' }}{% endif %}"
    "{% endfor %}"
)
MARKS_ARE_TEXT = (
    "{% for m in messages %}{{ '### ' + m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant: ' }}{% endif %}"
)


def tokenizer(template: str | None = CHATML, *, bos: bool = False) -> Any:
    """A tokenizer with a token for each ASCII character and some special ones.

    Args:
        template: its chat template.
        bos: put `<|bos|>` before every text.
    """
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *string.printable))}
    characters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    characters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    characters.decoder = tokenizers.decoders.Fuse()
    if bos:
        characters.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
        )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=characters,
        bos_token="<|bos|>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = template
    return made
