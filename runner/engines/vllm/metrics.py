"""Counters beside vLLM's own at `/metrics`."""

from __future__ import annotations

from functools import cache
from typing import Any

from subvene.runner.engines.vllm.front import Steering


@cache
def _counter(name: str, words: str, *labels: str) -> Any:
    from prometheus_client import Counter

    return Counter(f"subvene_{name}", words, labels)


def count(steering: Steering) -> None:
    """Count a request that has ended."""
    finished = _counter("requests", "Requests that named an artifact, by artifact.", "artifact")
    edited = _counter("tokens_edited", "Tokens edited at each site of an artifact.", "artifact", "role")
    for artifact in sorted({one.artifact for one in steering.asked}):
        finished.labels(artifact).inc()
    for receipt in steering.receipts or ():
        for role, tokens in receipt.edited.items():
            edited.labels(receipt.artifact, role).inc(tokens)
    if steering.error is not None:
        failed = _counter("requests_not_steered", "Requests that were not steered as declared.", "error")
        failed.labels(type(steering.error).__name__).inc()
