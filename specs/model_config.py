"""What can be said of a model's ``config.json`` without a framework: that it is one, and of what size.

What else a config needs is transformers' to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subvene.specs.regular_file import read_text

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""Fields of a config that count something of which a model that computes has at least one."""


def wrong_size(fields: Mapping[str, Any]) -> str | None:
    """Returns the first size that is no count, in words; a size that is null or left out is none.

    Some families give one number per layer: a list is transformers' to judge.
    """
    for name in SIZES:
        size = fields.get(name)
        if size is not None and not isinstance(size, list | tuple) and (type(size) is not int or size < 1):
            return f"{name} is {size!r} and must be an integer >= 1"
    return None


def config_flaw(path: Path) -> str | None:
    """Returns what is wrong with a config file, in words; None where transformers is to judge.

    Args:
        path: A ``config.json`` that is there.
    """
    try:
        config = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        return f"it cannot be read as JSON: {error}"
    if not isinstance(config, dict):
        return "it is no JSON object"
    if not isinstance(config.get("model_type"), str):
        return "it has no text `model_type`, by which transformers knows the model"
    text = config.get("text_config")
    return wrong_size(config) or (wrong_size(text) if isinstance(text, dict) else None)
