"""What leaves the project in other formats: artifact in, files and an equivalence record out.

Importing this imports no format: `subvene export --help` needs their names only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from subvene.runner.exchange.exports.base import Export

#: Every format and what it is: a new format is a new module with an `EXPORT` and one line here.
FORMATS: dict[str, str] = {
    "checkpoint": "an ordinary model with the edits in its weights, for transformers and vLLM",
    "peft": "low-rank edits as a LoRA adapter, for peft and vLLM",
    "gguf-control-vector": "steering at block outputs, for llama.cpp",
    "lm-eval": "a steering file for lm-evaluation-harness's `steered` model",
    "pyvene": "the folder that stock pyvene loads (with subvene installed)",
    "vector": "plain safetensors with the vectors, and metadata that says what they are",
}


def load_format(name: str) -> Export:
    """The format of this name; its module is imported now.

    Raises:
        ExportError: there is no such format.
    """
    if name not in FORMATS:
        from subvene.runner.exchange.exports.base import ExportError

        raise ExportError(f"format {name!r}: expected one of: {', '.join(FORMATS)}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return cast("Export", module.EXPORT)
