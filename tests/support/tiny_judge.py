"""A random Llama whose tokenizer knows ` yes` and ` no`: a judge in form, if not in wisdom."""

from __future__ import annotations

import shutil
from pathlib import Path


def save_tiny_judge(model_folder: Path, folder: Path) -> Path:
    """The model of `model_folder` with two of its words replaced."""
    shutil.copytree(model_folder, folder)
    path = folder / "tokenizer.json"
    words = path.read_text(encoding="utf-8")
    path.write_text(words.replace('"glad"', '"yes"').replace('"sad"', '"no"'), encoding="utf-8")
    return folder
