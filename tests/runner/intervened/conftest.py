"""What tests of intervened models share."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import tokenizers
import transformers as t
from oracle import PAD


@pytest.fixture
def words() -> Any:
    """A tokenizer whose token i is the word `<i>`, padding on the left."""
    vocabulary = {f"<{i}>": i for i in range(oracle.VOCAB)}
    # transformers finds out how a token looks inside a text by putting it behind this one.
    vocabulary["abcdef"] = vocabulary.pop("<98>")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<1>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = t.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=f"<{PAD}>", eos_token="<99>", padding_side="left"
    )
    fast.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    return fast
