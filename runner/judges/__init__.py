"""Who says what an answer is worth: spec in, judge out. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from subvene.runner.judges.base import Answer, Aspect, Judge, Judgement

__all__ = ["Answer", "Aspect", "Judge", "Judgement"]
