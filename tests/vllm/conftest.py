"""Artifacts inside a real vLLM, float32 on the CPU: `make test-vllm`, in an environment of its own.

Engines run in this process unless a test says otherwise; there is one at a time.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# A folder called vllm on the path, such as this one, is found too, but has no file.
HAS_VLLM = getattr(importlib.util.find_spec("vllm"), "origin", None) is not None
SETTINGS = {
    # As little as a small model needs; all of it would be taken from the machine's memory.
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
if HAS_VLLM:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs vLLM where there is none."""
    if HAS_VLLM:
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(
                pytest.mark.skip(reason="needs vLLM in an environment of its own: make test-vllm")
            )


class Engines:
    """Starts engines, one at a time."""

    def __init__(self) -> None:
        self._now: Any = None

    def __call__(self, model: Path, artifacts: dict[str, str] | None = None, **options: Any) -> Any:
        import vllm

        self.close()
        given: dict[str, Any] = {
            "dtype": "float32",
            "max_model_len": 128,
            "max_num_seqs": 128,
            "enforce_eager": True,
            "seed": 0,
            "enable_prefix_caching": False,
            "disable_log_stats": False,
        }
        if artifacts is not None:
            reserve = options.pop("reserve", {})
            held = {"artifacts": artifacts, "reserve": reserve}
            given["additional_config"] = {"subvene": held}
        self._now = vllm.LLM(model=str(model), **given | options)
        return self._now

    def close(self) -> None:
        """End the engine that runs."""
        if self._now is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory

        self._now.llm_engine.engine_core.shutdown()
        self._now = None
        gc.collect()
        cleanup_dist_env_and_memory()


@pytest.fixture(scope="session")
def engines() -> Iterator[Callable[..., Any]]:
    made = Engines()
    yield made
    made.close()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from vllm_cases import Reference

    return Reference(tmp_path_factory.mktemp("reference"))
