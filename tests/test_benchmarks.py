"""Benchmarks that no machine here can run in full run small, and what they claim of exactness holds."""

from __future__ import annotations

import compiled
import gpu
import pytest
import torch


@pytest.mark.parametrize("dtype", gpu.TOLERANCE, ids=str)
def test_the_gpu_script_runs_on_the_cpu_and_kinds_are_plain_hooks(dtype: torch.dtype) -> None:
    numbers = gpu.measured("tiny", dtype, "cpu", quick=True)
    differences = {name: one for name, one in numbers.items() if name.startswith("differs")}
    known = {name: one for name, one in differences.items() if one is not None}
    assert len(known) >= 8
    assert max(known.values()) <= gpu.TOLERANCE[dtype], known
    missing = {name for name, one in numbers.items() if one is None} - differences.keys()
    assert missing == ({"training: GB beside the weights"} if dtype == torch.bfloat16 else set())
    gpu.report({"tiny": numbers})


def test_compiled_arms_give_the_tokens_of_uncompiled_ones() -> None:
    assert compiled.alike(compiled.arms_of("tiny", "eager", 3, num_hidden_layers=1)) == 3
